"""An image before the texts of a causal language model: the library's own numbers, by whichever of three ways it is read."""

from functools import partial

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fusionkit.encoders.language import LanguageModel
from fusionkit.encoders.text import HFTextEncoder
from fusionkit.errors import ConfigError
from fusionkit.fusion.prefix import Prefix
from fusionkit.fusion.projectors import MLP
from fusionkit.model.model import Reader, assemble
from fusionkit.tasks.decoding import CachedDecoderState, DecoderInputs, Prompts, fuse_causal
from fusionkit.tasks.generation import GenerationConfig, Greedy
from fusionkit.types import TextFormat, Tokens
from tests.encoders.test_language import FAMILIES
from tests.fusion.readers import IMAGE, INDEX, LENGTH, LENGTHS, TOKENS, check_reader, image, prompts
from tests.toys import CLS, PAD, SEP, VOCABULARY, choices, toy_fusion, toy_language_model, toy_model

OTHERS = [kind for kind in FAMILIES if kind != "llama"]
PREFIXES = [name for name in choices("fusion") if getattr(toy_fusion(name), "func", None) is Prefix]
WORDS = TextFormat(CLS, SEP, PAD, None, 1)
assert len(PREFIXES) == 6


def build(kind="llama", sees="earlier", fusion=None, cache_mb=32.0, checkpointing=False):
    """A reader of scattered weights, so that each token matters, over a family of the language model's tests."""
    torch.manual_seed(0)
    config = {"model_type": kind, **FAMILIES[kind]}
    text_encoder = LanguageModel(VOCABULARY, config=config, text_format=WORDS, checkpointing=checkpointing)
    make = toy_fusion(fusion) if fusion else partial(Prefix, projector=MLP)
    prefix = make(image_size=IMAGE, text_size=text_encoder.hidden_size, sees=sees, cache_mb=cache_mb)
    prefix.join(text_encoder)
    reader = Reader(text_encoder, prefix).eval()
    for parameter in reader.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    reader.text_encoder.word_embeddings.weight.data.mul_(3)
    return reader


def library(reader):
    """The library's own model of the same weights."""
    config = AutoConfig.for_model(
        **{**reader.text_encoder.config.to_dict(), "tie_word_embeddings": reader.text_encoder.head is None}
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.get_decoder().load_state_dict(reader.text_encoder.backbone.state_dict(), strict=True)
    if reader.text_encoder.head is not None:
        model.get_output_embeddings().load_state_dict(reader.text_encoder.head.state_dict())
    return model


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("fusion", [None, *(pytest.param(name, marks=pytest.mark.slow) for name in PREFIXES)])
@torch.no_grad()
def test_a_prefix_gives_the_library_s_numbers_and_its_words(kind, fusion):
    """Logits over [image; text] to 1e-5; greedy tokens are those of ``generate`` on the same, padded on the left."""
    reader = build(kind, fusion=fusion)
    memory, given, model = reader.fusion.prepare(image()), prompts(), library(reader)
    count = memory.embeds.shape[1]
    ours = reader.predict_words(fuse_causal(reader, memory, given))
    seen, words = memory.embeds[INDEX], reader.text_encoder.word_embeddings(given.input_ids)
    mask = torch.cat([torch.ones(5, count, dtype=torch.long), given.attention_mask], dim=1)
    theirs = model(inputs_embeds=torch.cat([seen, words], dim=1), attention_mask=mask).logits[:, count:]
    real = given.attention_mask.bool()
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-5, atol=1e-5)

    rules = GenerationConfig(SEP, max_length=6)
    found = Greedy()(CachedDecoderState(DecoderInputs(reader, None, memory, given)), rules).tokens
    left, left_mask = torch.zeros(5, count + LENGTH, seen.shape[2]), torch.zeros(5, count + LENGTH, dtype=torch.long)
    for row, length in enumerate(LENGTHS[:, 0].tolist()):
        left[row, -count - length :] = torch.cat([seen[row], words[row, :length]])
        left_mask[row, -count - length :] = 1
    said = model.generate(
        inputs_embeds=left,
        attention_mask=left_mask,
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=SEP,
        eos_token_id=SEP,
    )
    said = torch.nn.functional.pad(said, (0, found.shape[1] - said.shape[1]), value=SEP)
    assert torch.equal(found, said)
    assert len({tuple(row) for row in found.tolist()}) > 1


@pytest.mark.parametrize(
    ("fusion", "kind"),  # what a language model reads is embeddings, whatever projector they are from
    [
        *((fusion, "llama") for fusion in PREFIXES),
        *(pytest.param("prefix", kind, marks=pytest.mark.slow) for kind in OTHERS),
    ],
)
@pytest.mark.parametrize("sees", ["earlier", "image", "text"])
@torch.no_grad()
def test_a_cache_changes_nothing_and_no_row_sees_another(fusion, kind, sees):
    reader = build(kind, sees, fusion)
    for prefix in (None, LENGTHS[:, 0]):
        check_reader(reader, image(), prompts(prefix))


@pytest.mark.parametrize("way", ["packed", "recomputed"])
@pytest.mark.parametrize("sees", ["earlier", "image"])
def test_packed_and_recomputed_texts_have_the_same_numbers_and_gradients(sees, way):
    """24 texts of one image need several packed rows; masked image tokens are not counted as positions."""
    index = torch.cat([torch.tensor([2, 0, 2]), torch.zeros(21, dtype=torch.long)])
    ids = torch.randint(5, VOCABULARY, (24, LENGTH), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(LENGTH) < 1 + torch.arange(24)[:, None] % LENGTH).long()
    given = Prompts(ids, mask, index, torch.ones(24, dtype=torch.long))
    seen = image(torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 1]]))
    found = []
    for options in ({}, {"cache_mb": 0.0} if way == "packed" else {"checkpointing": True}):
        reader = build(sees=sees, **options).train()
        memory = reader.fusion.prepare(seen)
        assert (memory.past is None) == bool(options)
        states = fuse_causal(reader, memory, given)
        (states * mask[..., None]).square().sum().backward()
        found.append((states[mask.bool()], {name: parameter.grad for name, parameter in reader.named_parameters()}))
    (states, gradients), (others, their_gradients) = found
    torch.testing.assert_close(states, others, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, their_gradients[name], rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@torch.no_grad()
def test_who_sees_whom():
    """What changes where the last image token does, and where the last word of a question does."""
    changed = image().embeds.clone()
    changed[:, -1] += 1
    other = Tokens(changed, None, image().pooled)
    question = torch.full((5,), 3)
    for sees, first_is_told, prefix_is_told in (
        ("earlier", False, False),
        ("image", True, False),
        ("text", True, True),
    ):
        reader = build(sees=sees, cache_mb=0.0)
        states = [
            reader.text_encoder.read(
                *reader.fusion._with_image(reader.fusion.prepare(each), reader.encode_text(*text), INDEX)
            )
            for each in (image(), other)
            for text in [(prompts().input_ids, prompts().attention_mask)]
        ]
        assert torch.equal(states[0][:, 0], states[1][:, 0]) != first_is_told
        given = prompts(question)._replace(attention_mask=torch.ones(5, LENGTH, dtype=torch.long))
        words = given.input_ids.clone()
        words[:, 2] = (words[:, 2] + 7) % VOCABULARY
        memory = reader.fusion.prepare(image())
        before, after = (
            fuse_causal(reader, memory, given._replace(input_ids=each)) for each in (given.input_ids, words)
        )
        assert torch.equal(before[:, 0], after[:, 0]) != prefix_is_told
        later = given.input_ids.clone()
        later[:, 4] = (later[:, 4] + 7) % VOCABULARY
        assert torch.equal(before[:, :4], fuse_causal(reader, memory, given._replace(input_ids=later))[:, :4])


@torch.no_grad()
def test_an_image_of_no_tokens_but_masked_ones_leaves_the_text_as_it_is_alone():
    reader, given = build(), prompts()
    memory = reader.fusion.prepare(image(torch.zeros(3, TOKENS)))
    text = reader.encode_text(given.input_ids, given.attention_mask)
    fused, alone = reader.fuse(memory, text, INDEX), reader.fusion.encode_unimodal(text)
    torch.testing.assert_close(fused.pooled, alone.pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone.pooled, alone.embeds[torch.arange(5), LENGTHS[:, 0] - 1])


def test_a_fusion_says_how_long_the_image_s_vectors_are():
    reader = build()
    assert reader.fusion.metrics() == {}
    memory = reader.fusion.prepare(image())
    text = reader.encode_text(prompts().input_ids, prompts().attention_mask)
    reader.fuse(memory, text, INDEX)
    expected = memory.embeds.norm(dim=-1).mean() / text.embeds.norm(dim=-1).mean()
    torch.testing.assert_close(reader.fusion.metrics()["norm_ratio"], expected)


@pytest.mark.parametrize(
    ("needs", "frozen"),
    [({"feats"}, {"projector", "head"}), ({"pooled", "feats"}, {"head"}), ({"text", "causal"}, set())],
)
def test_what_no_task_reads_is_frozen(needs, frozen):
    reader = build("phi")
    reader.fusion.freeze_unused(frozenset(needs))
    still = {
        name
        for name, part in (("projector", reader.fusion.projector), ("head", reader.text_encoder.head))
        if not next(part.parameters()).requires_grad
    }
    assert still == frozen
    assert reader.text_encoder.word_embeddings.weight.requires_grad


def test_what_cannot_read_on_is_refused():
    bert = {
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    with pytest.raises(
        ConfigError,
        match=r"Prefix has a causal language model read on .* HFTextEncoder is not; choose text_encoder=tiny_llama",
    ):
        assemble(toy_model().image_encoder, HFTextEncoder(VOCABULARY, config=bert), toy_fusion("prefix"))
    with pytest.raises(ConfigError, match=r"fusion\.sees is 'all'"):
        Prefix(IMAGE, 32, MLP, sees="all")
    with pytest.raises(ConfigError, match="Prefix has no language model to read on with"):
        Prefix(IMAGE, 32, MLP).prepare(image())


def test_other_fusions_stand_over_the_language_model_s_states():
    """As over any text encoder: the model reads the texts alone, and a task has a head of its own."""
    model = toy_model("cross_attention")
    own = assemble(model.image_encoder, toy_language_model(), toy_fusion("cross_attention"), embed_size=16)
    assert not own.predicts_words
    assert own.is_incremental
    ids, mask = prompts().input_ids, prompts().attention_mask
    assert not torch.equal(own.encode_text(ids, mask).embeds, own.text_encoder.word_embeddings(ids))
