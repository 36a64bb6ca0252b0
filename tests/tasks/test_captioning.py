"""What is scored, what is said, and that a model that has learnt captions says them."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fusionkit.errors import ConfigError
from fusionkit.tasks.answering import GenerateAnswer
from fusionkit.tasks.captioning import Captioning
from fusionkit.tasks.decoding import DecoderInputs, decoder_state_of
from fusionkit.tasks.generation import Generated, Greedy, token_losses
from fusionkit.tasks.vqa_generative import GenerativeVQA
from fusionkit.tasks.words import Words
from tests.toys import CLS, SEP, toy_batch, toy_dims, toy_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return toy_model().eval()


def test_every_token_but_the_opening_is_scored(model):
    batch = toy_batch(images=3, texts_per_image=2)
    captions = batch["captions"]
    for prompt, opening in (("", [CLS]), ("t7 t9", [CLS, 7, 9])):
        out = Captioning(toy_dims(model), prompt).eval()(model, batch, model.encode(batch, []))
        wanted = [
            token
            for row, mask in zip(captions["input_ids"], captions["attention_mask"], strict=True)
            for token in row[1 : int(mask.sum())].tolist()
        ]
        assert out.targets.tolist() == wanted
        assert (out.targets == SEP).sum() == 6
        assert Captioning(toy_dims(model), prompt).writer.prompt_ids == opening


def test_loss_is_smoothed_cross_entropy_per_token(model):
    batch = toy_batch(images=3)
    task = Captioning(toy_dims(model), label_smoothing=0.2).eval()
    out = task(model, batch, model.encode(batch, []))
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, out.targets, label_smoothing=0.2))


def test_a_prompt_of_unknown_words_is_one_sentence(model):
    with pytest.raises(ConfigError, match=r"task\.captioning\.prompt: 'picture' is no token"):
        Captioning(toy_dims(model), "t7 picture")


@pytest.mark.parametrize("prompt", ["", "t7 t9"])
def test_learnt_captions_are_said(prompt):
    torch.manual_seed(0)
    model, batch = toy_model(), toy_batch(images=4)
    task = Captioning(toy_dims(model), prompt, label_smoothing=0.0, search=Greedy(), min_length=0)
    optimizer = torch.optim.AdamW([*model.parameters(), *task.parameters()], lr=2e-3, weight_decay=0.0)
    for _ in range(120):
        loss = task(model, batch, model.encode(batch, [])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    task.eval()
    with torch.inference_mode():
        records = task.predict(model, batch, model.encode(batch, []))
    captions = batch["captions"]
    said = [row[1 : int(m.sum()) - 1] for row, m in zip(captions["input_ids"], captions["attention_mask"], strict=True)]
    assert [record["caption"] for record in records] == [" ".join(f"t{i}" for i in row.tolist()) for row in said]
    assert [record["image_id"] for record in records] == batch["image_ids"]


@pytest.mark.parametrize(
    ("fusion", "prompt"), [("cross_attention", ""), ("cross_attention", "t7 t9"), ("prefix", "t7")]
)
def test_a_caption_is_told_with_the_mean_log_probability_of_its_tokens(fusion, prompt):
    torch.manual_seed(0)
    model, batch = toy_model(fusion).eval(), toy_batch(images=3)
    tokens = torch.tensor([[5, 7, SEP, SEP], [6, 8, 9, 5], [SEP, SEP, SEP, SEP]])
    search = lambda steps, rules: Generated(tokens, torch.zeros(3))  # noqa: E731
    task = Captioning(toy_dims(model), prompt, search=search).eval()
    with torch.inference_mode():
        encoded = model.encode(batch, [])
        told = task.reply(model, batch, encoded, 5)
        prompts = task.writer.prompts(torch.arange(3), task.head)
        steps = decoder_state_of(DecoderInputs(model, task.head, encoded.memory, prompts))
        is_said = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
        losses = token_losses(steps, *steps.start(), tokens, is_said)
    assert [row["caption"] for row in told] == ["t5 t7", "t6 t8 t9 t5", ""]
    wanted = -losses[:2] / torch.tensor([2.0, 4.0])
    assert [row["caption_score"] for row in told[:2]] == pytest.approx(wanted.tolist(), abs=1e-5)
    assert told[2]["caption_score"] is None
    assert [row.keys() for row in told] == [{"caption", "caption_score"}] * 3


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["a", "dog", "##s", ",", "the", "cat", "'", "s", "ball", "."], "a dogs, the cat's ball."),
        (["\u0120a", "\u0120caf", "\u00c3\u00a9", "."], "a caf\u00e9."),
    ],
)
def test_tokens_become_text(tokens, text):
    vocabulary = ["<s>", *tokens]
    words = Words(vocabulary, special={0})
    assert words.text([0, *range(1, len(vocabulary)), 99]) == text
    assert words.spell("a", "key") == [1]


def test_letters_of_languages_without_spaces_are_written_together():
    tokens = ["\u7ea2", "\u7684", "\u5706", "\u3002", "a", "red", "\u5706", "\u0e14", "\u0e07"]
    words = Words(["<s>", *tokens], special={0})
    assert words.text(range(1, 5)) == "\u7ea2\u7684\u5706\u3002"
    assert words.text([5, 6, 7]) == "a red \u5706"
    assert words.text([8, 9]) == "\u0e14\u0e07"


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["\u2581two", "\u2581dog", "s", ",", "\u2581a", "\u2581caf", "<0xC3>", "<0xA9>"], "two dogs, a caf\u00e9"),
        (["two</w>", "do", "gs</w>", ",</w>", "a</w>", "caf", "\u00c3\u00a9</w>"], "two dogs, a caf\u00e9"),
    ],
)
def test_sentencepiece_and_clip_become_text(tokens, text):
    words = Words(["<s>", *tokens], special={0})
    assert words.text(range(len(tokens) + 1)) == text
    own = words.tokens[1]
    two, mark, a = (
        words.tokens.index(token)
        for token in (own, "," + own.replace("two", "").strip("\u2581"), own.replace("two", "a"))
    )
    assert words.spell("two a", "task.captioning.prompt") == [two, a]
    assert words.spell("two, a", "task.captioning.prompt") == [two, mark, a]
    assert words.text(words.spell("two, a", "task.captioning.prompt")) == "two, a"
    with pytest.raises(ConfigError, match="',,' is no token"):  # which a tokenizer may have as one
        words.spell("two,,", "task.captioning.prompt")
    with pytest.raises(ConfigError, match="'!' is no token"):
        words.spell("two!", "task.captioning.prompt")
    with pytest.raises(ConfigError, match="'dogs' is no token"):
        words.spell("dogs", "task.captioning.prompt")


@pytest.mark.parametrize(
    "shared", [{"pad_token_id": SEP}, {"cls_token_id": SEP, "pad_token_id": SEP}, {"mask_token_id": None}]
)
def test_the_end_is_said_where_it_is_padding_or_start_too(model, shared):
    dims = replace(toy_dims(model), **shared)
    batch = toy_batch(images=3)
    captions = batch["captions"]
    end = captions["attention_mask"].sum(dim=1) - 1
    captions["input_ids"] = captions["input_ids"].masked_fill(captions["attention_mask"] == 0, dims.pad_token_id)
    captions["input_ids"][:, 0] = dims.cls_token_id
    task = Captioning(dims, min_length=1).eval()
    assert (task(model, batch, model.encode(batch, [])).targets == SEP).sum() == len(end)
    assert SEP not in task.writer.rules.banned
    assert dims.special_ids - {SEP} == set(task.writer.rules.banned)
    with torch.no_grad():
        task.head.bias[SEP] = 1e4
    assert [record["caption"] for record in task.predict(model, batch, model.encode(batch, []))] != [""] * 3
    questions = GenerativeVQA(dims, answering=GenerateAnswer(Greedy()))
    with torch.no_grad():
        questions.head.bias[SEP] = 1e4
    said = questions.eval().predict(model, batch, model.encode(batch, []))
    assert all(len(record["answer"].split()) <= 1 for record in said)


def test_a_language_model_says_captions_by_its_own_head():
    """The library's own loss of [image; caption], of which only the caption's tokens and its end are told."""
    torch.manual_seed(0)
    model = toy_model("prefix").eval()
    task = Captioning(toy_dims(model), "t7", label_smoothing=0.0).eval()
    assert task.head is None
    batch = toy_batch(images=3)
    encoded, total, count = model.encode(batch, []), 0.0, 0
    for row in range(3):
        length = int(batch["captions"]["attention_mask"][row].sum())
        ids = torch.cat([torch.tensor([CLS, 7]), batch["captions"]["input_ids"][row, 1:length]])
        whole = torch.cat([encoded.memory.embeds[row], model.text_encoder.word_embeddings(ids)])[None]
        states = model.text_encoder.backbone(inputs_embeds=whole).last_hidden_state[0]
        logits = F.linear(states, model.text_encoder.word_embeddings.weight)[-length:-1]
        total, count = total + F.cross_entropy(logits, ids[2:], reduction="sum"), count + length - 1
    torch.testing.assert_close(task(model, batch, encoded).loss, total / count, rtol=1e-5, atol=1e-5)


def test_the_longest_caption_counts_towards_the_positions(model):
    assert Captioning(toy_dims(model), max_length=8, min_length=0).longest(12) == 1 + 11
    assert Captioning(toy_dims(model), "t7 t9", max_length=20).longest(12) == 3 + 20
