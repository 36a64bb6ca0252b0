"""A cache changes nothing but the time, and no token sees a later one, through encoder, fusion and head."""

import pytest
import torch

from fusionkit.encoders.text import HFTextEncoder
from fusionkit.fusion.base import Fusion
from fusionkit.fusion.layers import Attention
from fusionkit.model.model import VisionLanguageModel
from fusionkit.tasks.decoding import (
    CachedDecoderState,
    DecoderInputs,
    Prompts,
    RecomputedDecoderState,
    decoder_state_of,
    fuse_causal,
    prefix_mask,
)
from fusionkit.tasks.generation import BeamSearch, GenerationConfig, Greedy
from fusionkit.tasks.mlm import MaskedLMHead
from fusionkit.types import Tokens
from tests.toys import CLS, PAD, SEP, VOCABULARY, WIDTH, choices, reads_on, toy_fusion, toy_model

RULES = GenerationConfig(SEP, max_length=8, min_length=3, banned=(CLS, PAD))
IMAGES = 3


def causal_fusions() -> list[str]:
    """The fusions that offer causality; there have to be the three that keep keys and values."""
    names = [name for name in choices("fusion") if "causal" in toy_fusion(name)(image_size=8, text_size=8).provides]
    assert {"cross_attention", "gated_cross_attention", "merged_attention"} <= set(names)
    return names


CAUSAL = causal_fusions()
CACHING = [name for name in CAUSAL if hasattr(toy_fusion(name)(image_size=8, text_size=8), "extend")]


def text_encoder(kind):
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = {"model_type": kind, "max_position_embeddings": 40, "pad_token_id": PAD, **sizes}
    return HFTextEncoder(VOCABULARY, config=config, pool="mean" if kind in ("gpt2", "llama") else "cls")


def shared(fusion, kind="bert", ragged=True):
    torch.manual_seed(0)
    model = toy_model(fusion)
    own = model.text_encoder if reads_on(toy_fusion(fusion)) else text_encoder(kind)
    model = VisionLanguageModel(model.image_encoder, own, model.fusion, embed_size=16).eval()
    if model.encodes_prompts:
        for parameter in model.text_encoder.decoder.parameters():
            parameter.data.mul_(4)
        for part in model.fusion.projector.modules():
            if isinstance(part, Attention):  # of queries, that images differ more than these
                part.output.weight.data.mul_(30)
    else:
        model.text_encoder.word_embeddings.weight.data.mul_(30)  # scores that depend on what came before
    input_ids = torch.randint(5, VOCABULARY, (5, 6))
    input_ids[:, 0] = CLS
    mask = torch.ones_like(input_ids)
    if ragged:
        mask = (torch.arange(6) < torch.tensor([[6], [3], [1], [4], [3]])).long()
    image = model.encode_image(torch.randn(IMAGES, 3, 32, 32))
    prefix = mask.sum(dim=1) if ragged else torch.ones(5, dtype=torch.long)
    prompts = Prompts(input_ids * mask, mask, torch.tensor([2, 0, 0, 1, 2]), prefix)
    head = MaskedLMHead(model.fusion.hidden_size, WIDTH, VOCABULARY).eval()
    return DecoderInputs(model, head, model.fusion.prepare(image), prompts)


@pytest.mark.parametrize("search", [Greedy(), BeamSearch(3)], ids=["greedy", "beam"])
@pytest.mark.parametrize(
    ("fusion", "kind"),
    [*((name, "bert") for name in CACHING), *(("cross_attention", kind) for kind in ("roberta", "gpt2", "llama"))],
)
@torch.inference_mode()
def test_a_cache_gives_the_same_tokens(fusion, kind, search):
    parts = shared(fusion, kind)
    assert parts.model.is_incremental
    cached, anew = (search(steps(parts), RULES) for steps in (CachedDecoderState, RecomputedDecoderState))
    assert torch.equal(cached.tokens, anew.tokens)
    torch.testing.assert_close(cached.scores, anew.scores, rtol=1e-5, atol=1e-4)
    assert len({tuple(row) for row in anew.tokens.tolist()}) > 2  # else nothing depends on the prompt


@torch.inference_mode()
def test_a_cache_encodes_each_token_once(monkeypatch):
    parts, lengths = shared("cross_attention", ragged=False), []
    forward = parts.model.text_encoder.backbone.embeddings.forward
    monkeypatch.setattr(
        parts.model.text_encoder.backbone.embeddings,
        "forward",
        lambda **given: lengths.append(given["input_ids"].shape[1]) or forward(**given),
    )
    Greedy()(decoder_state_of(parts), GenerationConfig(SEP, max_length=5, min_length=4))
    assert lengths == [6, 1, 1, 1, 1]


class WholeTextOnly(torch.nn.Module):
    """A causal fusion without ``extend``."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion, self.provides = fusion, fusion.provides
        self.hidden_size, self.pooled_size, self.prepare = fusion.hidden_size, fusion.pooled_size, fusion.prepare

    def forward(self, memory, text, image_index):
        return self.fusion(memory, text, image_index)


@torch.inference_mode()
def test_a_fusion_without_extend_is_recomputed():
    parts = shared("cross_attention")
    expected = Greedy()(decoder_state_of(parts), RULES).tokens
    parts.model.fusion = WholeTextOnly(parts.model.fusion)
    steps = decoder_state_of(parts)
    assert isinstance(steps, RecomputedDecoderState)
    assert torch.equal(Greedy()(steps, RULES).tokens, expected)


@pytest.mark.parametrize("fusion", CAUSAL)
@torch.inference_mode()
def test_a_later_token_changes_no_logit(fusion):
    parts = shared(fusion, ragged=False)
    word_embeddings = parts.model.text_encoder.word_embeddings.weight
    before = parts.head(fuse_causal(parts.model, parts.memory, parts.prompts), word_embeddings)
    for token in range(1, 6):
        ids = parts.prompts.input_ids.clone()
        ids[:, token] = 5 + (ids[:, token] - 4) % (VOCABULARY - 5)
        text = parts.prompts._replace(input_ids=ids)
        after = parts.head(fuse_causal(parts.model, parts.memory, text), word_embeddings)
        assert torch.equal(before[:, :token], after[:, :token])
        assert not torch.equal(before[:, token], after[:, token])


def test_which_fusions_keep_keys_and_values():
    assert {"cross_attention", "gated_cross_attention", "merged_attention"} <= set(CACHING) < set(CAUSAL)
    for name in CAUSAL:
        assert shared(name).model.is_incremental == (name in CACHING)


@pytest.mark.parametrize("fusion", CACHING)
@torch.inference_mode()
def test_a_text_in_pieces_is_the_whole_text(fusion):
    """``extend`` of a fusion alone, with a prefix that sees itself and padding within."""
    parts = shared(fusion)
    fused = parts.model.fusion
    embeds, index = torch.randn(5, 6, WIDTH), parts.prompts.image_index
    seen = torch.tensor([[1, 1, 1, 1, 1, 1]] * 4 + [[1, 1, 0, 1, 1, 1]])
    mask = prefix_mask(seen, torch.tensor([3, 1, 2, 3, 2]))
    whole = fused(parts.memory, Tokens(embeds, mask, embeds[:, 0]), index).text
    past, pieces = None, []
    for start, end in ((0, 3), (3, 5), (5, 6)):
        piece = Tokens(embeds[:, start:end], mask[:, start:end, :end], embeds[:, start])
        states, past = fused.extend(parts.memory, piece, index, past)
        pieces.append(states)
    real = seen.bool()
    torch.testing.assert_close(torch.cat(pieces, dim=1)[real], whole[real], rtol=1e-5, atol=1e-5)


def test_prefix_mask():
    mask = prefix_mask(torch.tensor([[1, 1, 1, 0]]), torch.tensor([2]))
    assert mask.tolist() == [[[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]]
    assert torch.equal(prefix_mask(torch.ones(1, 4)), prefix_mask(torch.ones(1, 4), torch.tensor([1])))
