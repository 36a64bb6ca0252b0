"""Image tokens that hang on what is asked: what is shared, what is not, and the tasks that ask."""

from dataclasses import replace

import pytest
import torch

from fusionkit.contracts import tasks as contracts
from fusionkit.encoders.seq2seq import EncoderDecoderLM
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import SupportsInstructions
from fusionkit.fusion.instructed import InstructedPrefix, InstructedQFormer
from fusionkit.fusion.projectors import QFormer
from fusionkit.tasks.captioning import Captioning
from fusionkit.tasks.decoding import (
    CachedDecoderState,
    DecoderInputs,
    Prompts,
    RecomputedDecoderState,
    asked_of,
    decoder_state_of,
    fuse_causal,
    instructed,
)
from fusionkit.types import Instructions, InstructionWords, Tokens
from tests.toys import CLS, VOCABULARY, choices, scatter_weights, toy_batch, toy_dims, toy_model, toy_task

NAMES = [name for name in choices("fusion") if name.endswith("_instructed")]
assert len(NAMES) == 2
ASKING = ["captioning", "vqa", "vqa_decoder", "vqa_generative", "vqa_open", "likelihood"]
PAIRS = [(name, task) for name in NAMES for task in ASKING]
PAIRS += [(name, "chat") for name in NAMES if not name.startswith("encoder")]  # a T5 has no chat
assert len(PAIRS) == 13


def model_of(name):
    torch.manual_seed(0)
    model = toy_model(name).eval()
    scatter_weights(model.fusion)
    return model


def asked(*texts):
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return Instructions(ids, mask)


def prompts(asks, index=(0, 1, 1, 0)):
    ids = torch.randint(5, VOCABULARY, (4, 3), generator=torch.Generator().manual_seed(1))
    return Prompts(ids, torch.ones_like(ids), torch.tensor(index), torch.full((4,), 3), asks)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_looked_at_once_and_a_pair_is_read_once(name, monkeypatch):
    model = model_of(name)
    assert isinstance(model.fusion, SupportsInstructions)
    assert model.fusion.instruction_size == VOCABULARY
    memory = model.fusion.prepare(model.encode_image(torch.randn(2, 3, 32, 32)))
    given = []
    read = model.fusion.instruct
    monkeypatch.setattr(model.fusion, "instruct", lambda *parts: given.append(parts) or read(*parts), raising=False)
    text = prompts(asked([2, 7, 3], [2, 9, 9, 3], [2, 9, 9, 3], [2, 9, 3]))
    own, found = instructed(model, memory, text)
    ((looked, asks, images),) = given
    assert looked is memory
    assert [(i, row[:n].tolist()) for i, row, n in zip(images.tolist(), asks[0], asks[1].sum(1), strict=True)] == [
        (0, [2, 7, 3]),
        (0, [2, 9, 3]),
        (1, [2, 9, 9, 3]),
    ]
    assert found.image_index.tolist() == [0, 2, 2, 1]
    assert found.asked is None
    assert instructed(model, own, found) == (own, found)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_is_asked_changes_what_is_said_and_a_row_is_alone_as_in_a_batch(name):
    model = model_of(name)
    memory = model.fusion.prepare(model.encode_image(torch.randn(2, 3, 32, 32)))
    text = prompts(asked([2, 7, 3], [2, 9, 9, 3], [2, 9, 9, 3], [2, 9, 3]))
    states = fuse_causal(model, memory, text)
    for row, asks in enumerate(([2, 7, 3], [2, 9, 9, 3], [2, 9, 9, 3], [2, 9, 3])):
        alone = Prompts(*(part[row : row + 1] for part in text[:4]), asked(asks))
        torch.testing.assert_close(fuse_causal(model, memory, alone), states[row : row + 1], rtol=1e-5, atol=1e-5)
    plain = fuse_causal(model, memory, text._replace(asked=None))
    assert ((plain - states).abs().amax(dim=(1, 2)) > 1e-3).all()
    unasked = fuse_causal(model, memory, text._replace(asked=asked(*[[0]] * 4)))
    torch.testing.assert_close(unasked, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_texts_grow_from_kept_keys_as_from_the_whole(name):
    model = model_of(name)
    memory = model.fusion.prepare(model.encode_image(torch.randn(2, 3, 32, 32)))
    shared = DecoderInputs(model, None, memory, prompts(asked([2, 7, 3], [2, 9, 9, 3], [2, 9, 9, 3], [2, 9, 3])))
    assert isinstance(decoder_state_of(shared), CachedDecoderState)
    tokens = torch.tensor([5, 6, 7, 8])
    found = []
    for steps in (decoder_state_of(shared), RecomputedDecoderState(shared)):
        first, state = steps.start()
        found.append(torch.stack([first, steps.advance(tokens, state)[0]]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("check", contracts.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_tasks_keep_their_contract(name, task, check):
    def build():
        torch.manual_seed(0)
        model = toy_model(name)
        return model, toy_task(task, toy_dims(model))

    check(build)


def test_questions_are_asked_by_their_own_tokenizer_where_there_is_one():
    rows = toy_batch(images=2)["questions"]
    assert asked_of(rows) == (rows["input_ids"], rows["attention_mask"])
    own = asked([2, 7], [2])
    assert asked_of(rows | {"instruction_ids": own[0], "instruction_mask": own[1]}) == own
    model, batch = model_of(NAMES[-1]), toy_batch(images=2)
    task = toy_task("vqa_open", toy_dims(model))
    encoded = model.encode(batch, [])
    plain = task(model, batch, encoded).loss
    batch["questions"] |= {"instruction_ids": own[0], "instruction_mask": own[1]}
    assert (task(model, batch, encoded).loss - plain).abs() > 1e-4


@pytest.mark.parametrize("task", ["vqa", "vqa_decoder"])
def test_questions_are_asked_of_images_where_answers_have_a_head_of_their_own(task):
    model, batch = model_of("prefix_instructed"), toy_batch(images=2)
    answers = toy_task(task, toy_dims(model)).eval()
    encoded = model.encode(batch, ["questions"])
    said = answers(model, batch, encoded).loss
    batch["questions"] |= dict(zip(("instruction_ids", "instruction_mask"), asked([2, 7], [2]), strict=True))
    assert (answers(model, batch, encoded).loss - said).abs() > 1e-5


def test_the_prompt_of_captions_is_asked_in_the_words_of_what_looks():
    model = model_of("prefix_instructed")
    dims = replace(toy_dims(model), instruction_words=InstructionWords(("[C]", "[S]", "t9", "t7"), 0, 1))
    assert Captioning(dims, prompt="t7 t9").writer.asked_ids == [0, 3, 2, 1]
    given = Captioning(dims, prompt="t7 t9").writer.prompts(torch.tensor([1, 0]), None)
    assert given.input_ids.tolist() == [[CLS, 7, 9]] * 2
    assert [part.tolist() for part in given.asked] == [[[0, 3, 2, 1]] * 2, [[1] * 4] * 2]
    assert Captioning(dims, prompt=" ").writer.prompts(torch.tensor([1]), None).asked is None
    assert Captioning(toy_dims(model), prompt="t7").writer.asked_ids is None
    with pytest.raises(ConfigError, match=r"task\.captioning\.prompt: 't8' is no token"):
        Captioning(dims, prompt="t8")


def test_words_of_instructions():
    queries = InstructedQFormer(6, 8, num_queries=2, vocab_size=5, max_positions=3, no_words=[4, 1], width=4)
    queries.know(9)
    assert queries.words.weight.shape == (5, 4)
    looked = queries.look(Tokens(torch.randn(2, 3, 6), None, torch.zeros(2, 6)))
    long, cut = asked([1, 2, 3, 4, 4]), asked([1, 2, 3])
    index = torch.tensor([1])
    torch.testing.assert_close(queries.read(looked, long, index), queries.read(looked, cut, index))
    torch.testing.assert_close(queries.read_unasked(looked)[1:], queries.read(looked, asked([4, 1]), index))
    for words in ([], [5], [-1, 2]):
        with pytest.raises(ConfigError, match=r"no_words is .*, but has to name one or more of the 5 words"):
            InstructedQFormer(6, 8, vocab_size=5, no_words=words)
    assert InstructedQFormer(6, 8, vocab_size=5, no_words=[4]).no_words == [4]


def test_what_reads_no_instruction_is_refused():
    fusion = InstructedPrefix(24, 32, QFormer)
    with pytest.raises(ConfigError, match="projector is QFormer, which reads no instruction; choose"):
        fusion.join(toy_model("prefix").text_encoder)
    with pytest.raises(ConfigError, match="EncoderDecoderLM is not; choose text_encoder"):
        fusion.join(EncoderDecoderLM.__new__(EncoderDecoderLM))
