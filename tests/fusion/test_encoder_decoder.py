"""The image and a text through an encoder, and what a decoder says: the library's own numbers and words, alone and in a batch."""

from functools import partial

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from fusionkit.encoders.seq2seq import EncoderDecoderLM
from fusionkit.errors import ConfigError
from fusionkit.fusion import projectors
from fusionkit.fusion.encoder_decoder import EncoderDecoder
from fusionkit.model.model import Reader, assemble
from fusionkit.tasks.captioning import Captioning
from fusionkit.tasks.decoding import CachedDecoderState, DecoderInputs, fuse_causal
from fusionkit.tasks.generation import BeamSearch, GenerationConfig, Greedy
from fusionkit.tasks.vqa_generative import GenerativeVQA
from fusionkit.types import Tokens
from tests.encoders.test_seq2seq import FAMILIES, NO_START, WORDS, config_of, scatter
from tests.fusion import readers
from tests.fusion.readers import IMAGE, INDEX, LENGTH, LENGTHS, TOKENS, check_reader, image
from tests.toys import (
    ANSWER_TOKENS,
    CLS,
    SEP,
    VOCABULARY,
    toy_batch,
    toy_dims,
    toy_fusion,
    toy_language_model,
    toy_model,
)

FORMATS = {"t5": NO_START, "bart": WORDS}
OTHERS = [name for name in FAMILIES if name not in FORMATS]
PROJECTORS = {
    "mlp": projectors.MLP,
    "qformer": partial(projectors.QFormer, num_queries=4),
    "perceiver": partial(projectors.Perceiver, num_latents=4),
    "pooled": partial(projectors.Pooled, tokens=3),
}


def build(name="t5", projector="mlp", words=None):
    """A reader of scattered weights, so that each token matters."""
    torch.manual_seed(0)
    text_encoder = EncoderDecoderLM(VOCABULARY, config=config_of(name), text_format=words or FORMATS.get(name, WORDS))
    fusion = EncoderDecoder(IMAGE, text_encoder.hidden_size, PROJECTORS[projector])
    fusion.join(text_encoder)
    reader = Reader(text_encoder, fusion).eval()
    scatter(reader)
    return reader


def prompts(prefix=None):
    """Texts whose first ``prefix`` tokens are the encoder's; without it all are."""
    return readers.prompts(LENGTHS[:, 0] if prefix is None else prefix, lowest=8)


def library(reader, name):
    """The library's own model of the same weights."""
    ours = reader.text_encoder
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**config_of(name)), attn_implementation="eager")
    if ours.head is not None:
        model.set_output_embeddings(torch.nn.Linear(ours.hidden_size, VOCABULARY, bias=False))
        model.get_output_embeddings().load_state_dict(ours.head.state_dict())
    model.get_encoder().load_state_dict(ours.encoder.state_dict(), strict=False)
    model.get_decoder().load_state_dict(ours.decoder.state_dict(), strict=False)
    model.get_input_embeddings().load_state_dict(ours.words.state_dict())
    for half in (model.get_encoder(), model.get_decoder()):
        assert half.embed_tokens.weight.equal(ours.words.weight)
    return model.eval()


def of_library(reader, memory, given):
    """What the library's model is handed: [image; prompt] of each row alone, and what is said behind the prompt."""
    lm = reader.text_encoder
    for row, (length, prompt) in enumerate(zip(LENGTHS[:, 0].tolist(), given.prefix.tolist(), strict=True)):
        ids = given.input_ids[row : row + 1, :length]
        asked = lm.embed(ids[:, 0 if lm.reads_start else 1 : prompt])
        seen = memory.embeds[INDEX[row : row + 1]][:, memory.mask[INDEX[row]]]
        said = torch.cat([torch.tensor([[lm.start_id]]), ids[:, prompt:]], dim=1)
        yield row, torch.cat([seen, asked], dim=1), said


@pytest.mark.parametrize(
    "name", ["t5", "bart", *(n if n == "t5_v1_1" else pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)]
)
@pytest.mark.parametrize("projector", ["mlp", pytest.param("qformer", marks=pytest.mark.slow)])
@torch.no_grad()
def test_the_library_s_logits_and_its_words(name, projector):
    """Logits over [image; prompt] and what is said to 1e-5; greedy and beam tokens are those of ``generate``."""
    reader = build(name, projector)
    memory, model = reader.fusion.prepare(image()), library(reader, name)
    given = prompts(torch.tensor([4, 1, 1, 3, 2]))
    ours = reader.predict_words(fuse_causal(reader, memory, given))
    for row, embeds, said in of_library(reader, memory, given):
        begin = int(given.prefix[row]) - 1
        theirs = model(inputs_embeds=embeds, decoder_input_ids=said).logits[0]
        torch.testing.assert_close(ours[row, begin : begin + len(theirs)], theirs, rtol=1e-5, atol=1e-5)
    given = prompts()
    rules, found = GenerationConfig(SEP, max_length=6), {}
    for beams in (1, 3):
        search = Greedy() if beams == 1 else BeamSearch(beams)
        found[beams] = search(CachedDecoderState(DecoderInputs(reader, None, memory, given)), rules).tokens
        for row, embeds, said in of_library(reader, memory, given):
            model.generation_config.forced_eos_token_id = model.generation_config.forced_bos_token_id = None
            theirs = model.generate(
                inputs_embeds=embeds, decoder_input_ids=said, max_new_tokens=6, num_beams=beams, do_sample=False,
                pad_token_id=SEP, eos_token_id=SEP, early_stopping=False, length_penalty=1.0,
            )[0, 1:]  # fmt: skip
            theirs = torch.nn.functional.pad(theirs, (0, found[beams].shape[1] - len(theirs)), value=SEP)
            assert torch.equal(found[beams][row], theirs)
    assert name in OTHERS or len({tuple(row) for row in found[1].tolist()}) > 2


@pytest.mark.parametrize("name", ["t5", "bart", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)])
@pytest.mark.parametrize("projector", PROJECTORS)
@torch.no_grad()
def test_a_cache_changes_nothing_and_no_row_sees_another(projector, name):
    """Also where texts have said more than others before they go on, and where images have tokens of their own number."""
    reader = build(name, projector)
    seen = image(torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 0, 1]]))
    for prefix in (LENGTHS[:, 0], torch.ones(5, dtype=torch.long), torch.tensor([3, 2, 1, 4, 2])):
        check_reader(reader, seen, prompts(prefix))


def test_keys_are_kept_where_texts_are_even_and_each_word_is_decoded_once(monkeypatch):
    reader = build()
    memory, lengths = reader.fusion.prepare(image()), []
    decode = reader.text_encoder.decoder.forward
    monkeypatch.setattr(
        reader.text_encoder.decoder,
        "forward",
        lambda **given: lengths.append(given["inputs_embeds"].shape[1]) or decode(**given),
    )
    for prefix, expected in ((None, [1, 1, 1, 1]), (torch.ones(5, dtype=torch.long), [6, 7, 8, 9])):
        lengths.clear()
        steps = CachedDecoderState(DecoderInputs(reader, None, memory, prompts(prefix)))
        with torch.no_grad():
            Greedy()(steps, GenerationConfig(SEP, max_length=4, min_length=3))
        assert lengths == expected


@torch.no_grad()
@torch.no_grad()
def test_the_encoder_reads_nothing_behind_the_longest_prompt():
    """So that what a decoder says takes none of its positions (BART's are counted), and padding no time."""
    reader = build("bart")
    memory, read = reader.fusion.prepare(image()), []
    encode = reader.text_encoder.encode
    reader.text_encoder.encode = lambda embeds, mask: read.append(embeds.shape[1]) or encode(embeds, mask)
    fuse_causal(reader, memory, prompts(torch.tensor([2, 1, 1, 2, 1])))
    assert read == [TOKENS + 2]


@torch.no_grad()
def test_without_an_image_the_encoder_reads_the_prompt_alone():
    """By the library, of which no projector's need of a square of tokens is asked."""
    reader = build("t5", projector="pooled", words=WORDS)
    given = prompts(torch.tensor([4, 1, 1, 3, 2]))
    memory, model = reader.fusion.without_image(torch.zeros(1)), library(reader, "t5")
    states = fuse_causal(reader, memory, given._replace(image_index=torch.zeros(5, dtype=torch.long)))
    ours = reader.predict_words(states)
    for row, (first, length) in enumerate(zip(given.prefix.tolist(), LENGTHS[:, 0].tolist(), strict=True)):
        said = torch.cat([torch.tensor([reader.text_encoder.start_id]), given.input_ids[row, first:length]])[None]
        theirs = model(input_ids=given.input_ids[row : row + 1, :first], decoder_input_ids=said).logits[0]
        torch.testing.assert_close(ours[row, first - 1 : length], theirs, rtol=1e-5, atol=1e-5)


def test_who_sees_whom():
    """All tokens of a prompt and the image one another; what is said sees them and what was said before, not by one bit more."""
    reader = build()
    given = prompts(torch.full((5,), 3))._replace(attention_mask=torch.ones(5, LENGTH, dtype=torch.long))
    memory = reader.fusion.prepare(image())
    before = fuse_causal(reader, memory, given)
    for place in range(1, LENGTH):
        ids = given.input_ids.clone()
        ids[:, place] = (ids[:, place] + 7) % VOCABULARY
        after = fuse_causal(reader, memory, given._replace(input_ids=ids))
        first = 1 if place < 3 else place  # the first token, which T5's tokenizer does not have, is read by nobody
        assert torch.equal(before[:, :first], after[:, :first])
        changed = (before != after).any(dim=2).any(dim=0)
        assert changed[first:].all()
    embeds = image().embeds.clone()
    embeds[:, -1] += 1
    other = fuse_causal(reader, reader.fusion.prepare(Tokens(embeds, None, embeds.mean(1))), given)
    assert (before != other).any(dim=2).any(dim=0)[1:].all()


@torch.no_grad()
def test_pooled_vectors():
    """Of a text beside an image the mean of its tokens; of a causal text its last state; of a text alone its own mean."""
    reader, given = build("bart"), prompts()
    memory = reader.fusion.prepare(image(torch.zeros(3, TOKENS)))
    text = reader.encode_text(given.input_ids, given.attention_mask)
    fused, alone = reader.fuse(memory, text, INDEX), reader.fusion.encode_unimodal(text)
    torch.testing.assert_close(fused.pooled, alone.pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone.pooled[1], alone.embeds[1, :3].mean(0))
    theirs = library(reader, "bart").get_encoder()(input_ids=given.input_ids[1:2, :3]).last_hidden_state
    torch.testing.assert_close(alone.embeds[1:2, :3], theirs, rtol=1e-5, atol=1e-5)
    causal = torch.ones(5, LENGTH, LENGTH).tril().long() * given.attention_mask[:, None]
    fused = reader.fuse(memory, text._replace(mask=causal), INDEX)
    assert torch.equal(fused.pooled, fused.text[torch.arange(5), LENGTHS[:, 0] - 1])


@pytest.mark.parametrize(
    ("needs", "frozen"),
    [({"feats"}, {"projector", "decoder"}), ({"pooled", "feats"}, {"decoder"}), ({"text", "causal"}, set())],
)
def test_what_no_task_reads_is_frozen(needs, frozen):
    reader = build("t5_v1_1")
    reader.fusion.freeze_unused(frozenset(needs))
    parts = {"projector": reader.fusion.projector, "decoder": reader.text_encoder.decoder}
    assert {n for n, part in parts.items() if not any(p.requires_grad for p in part.parameters())} == frozen
    assert reader.text_encoder.head.weight.requires_grad == ("decoder" not in frozen)
    assert reader.text_encoder.word_embeddings.weight.requires_grad


def test_what_is_no_encoder_and_decoder_is_refused():
    build_it = toy_fusion("encoder_decoder")
    with pytest.raises(ConfigError, match=r"LanguageModel is no such pair; choose text_encoder=tiny_t5, tiny_bart"):
        assemble(toy_model().image_encoder, toy_language_model(), build_it)
    with pytest.raises(ConfigError, match=r"Prefix has a causal language model read on .* EncoderDecoderLM is not"):
        assemble(toy_model().image_encoder, build().text_encoder, toy_fusion("prefix"))
    with pytest.raises(ConfigError, match="EncoderDecoder has no language model to read with"):
        build_it(image_size=IMAGE, text_size=32).encode_unimodal(Tokens(torch.zeros(1, 2, 32), torch.ones(1, 2), None))


def test_other_fusions_stand_over_the_encoder_s_states():
    model = assemble(toy_model().image_encoder, build().text_encoder, toy_fusion("cross_attention"), embed_size=16)
    own = EncoderDecoderLM(VOCABULARY, config=config_of("t5"), text_format=WORDS)
    own = assemble(model.image_encoder, own, toy_fusion("cross_attention"), embed_size=16)
    assert not own.predicts_words
    assert not own.encodes_prompts
    assert not own.is_incremental


def test_prompts_are_whole_texts_and_answers_begin_apart():
    """A question keeps its end, a caption's prompt gets one, and their losses are those of the decoder's words alone."""
    torch.manual_seed(0)
    model = toy_model("encoder_decoder").eval()
    dims = toy_dims(model)
    assert dims.encodes_prompts
    batch = toy_batch(images=3)
    encoded = model.encode(batch, [])
    asking = GenerativeVQA(dims, label_smoothing=0.0)
    given, rows = asking._prompts(batch), batch["questions"]
    assert torch.equal(given.attention_mask, rows["attention_mask"])
    out, lm = asking(model, batch, encoded), model.text_encoder
    losses = []
    for row, answer in enumerate(rows["answer_scores"].argmax(dim=1).tolist()):
        count, ids = int(rows["attention_mask"][row].sum()), torch.tensor([*ANSWER_TOKENS[answer], SEP])
        seen = torch.cat(
            [encoded.memory.embeds[row : row + 1], lm.embed(rows["input_ids"][row : row + 1, :count])], dim=1
        )
        said = torch.cat([torch.tensor([CLS]), ids[:-1]])[None]
        read = lm.encode(seen, torch.ones(seen.shape[:2]))
        logits = lm.predict_words(lm.decode(lm.embed(said), read, torch.ones(seen.shape[:2])))[0]
        losses.append(torch.nn.functional.cross_entropy(logits, ids, reduction="sum"))
    torch.testing.assert_close(out.loss, torch.stack(losses).sum() / 3)
    writer = Captioning(dims, prompt="t7 t9").writer
    assert writer.prompt_ids == [CLS, 7, 9, SEP]
    assert Captioning(toy_dims(toy_model("prefix")), prompt="t7 t9").writer.prompt_ids == [CLS, 7, 9]
