"""Every fusion with a published counterpart in transformers against that library's layers, randomly initialised, in fp32.

Fusions run whole, from their prepared images on, with texts that share images; the layers run on the pairs written out.
"""

import pytest
import torch
from torch import nn
from transformers import (
    Blip2QFormerConfig,
    BlipTextConfig,
    BridgeTowerConfig,
    IdeficsConfig,
    LxmertConfig,
    ViltConfig,
    VisualBertConfig,
)
from transformers.models.blip.modeling_blip_text import BlipTextLayer
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerLayer
from transformers.models.bridgetower.modeling_bridgetower import BridgeTowerBertCrossLayer
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer
from transformers.models.lxmert.modeling_lxmert import LxmertXLayer
from transformers.models.vilt.modeling_vilt import ViltLayer
from transformers.models.visual_bert.modeling_visual_bert import VisualBertLayer

from fusionkit.fusion.bert import BERT_LAYER, PostNormBlock
from fusionkit.fusion.bottleneck import Bottleneck
from fusionkit.fusion.co_attention import CoAttention, CrossThenSelf
from fusionkit.fusion.cross_attention import CrossAttention
from fusionkit.fusion.dual_stream_sequential import DualStreamSequential
from fusionkit.fusion.gated_cross_attention import GatedCrossAttention
from fusionkit.fusion.layers import PreNormBlock
from fusionkit.fusion.merged_attention import MergedAttention
from fusionkit.types import Tokens

WIDTH, HEADS, INNER, IMAGE, DEPTH = 32, 4, 48, 24, 2
INDEX = torch.tensor([1, 0, 1])
SIZES = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attn_implementation": "eager",
}
OPTIONS = {"num_layers": DEPTH, "num_heads": HEADS, "dropout": 0.0}
CROSS = {
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key": "crossattention.self.key",
    "cross_attention.value": "crossattention.self.value",
    "cross_attention.output": "crossattention.output.dense",
    "norm_cross": "crossattention.output.LayerNorm",
}


def lxmert(ours: str, theirs: str, norm: str) -> dict[str, str]:
    table = {f"{ours}.{name}": f"{theirs}.{name}" for name in ("query", "key", "value")}
    output = theirs.rpartition(".")[0] + ".output"
    return table | {f"{ours}.output": f"{output}.dense", norm: f"{output}.LayerNorm"}


LXMERT = lxmert("cross_attention", "visual_attention.att", "norm_cross")
for ours, theirs in (("text", "lang"), ("image", "visn")):
    LXMERT |= lxmert(f"{ours}.self_attention", f"{theirs}_self_att.self", f"{ours}.norm_self")
    LXMERT |= {f"{ours}.feed_forward.0": f"{theirs}_inter.dense", f"{ours}.feed_forward.2": f"{theirs}_output.dense"}
    LXMERT |= {f"{ours}.norm_feed_forward": f"{theirs}_output.LayerNorm"}
VILT = {f"attention.{name}": f"attention.attention.{name}" for name in ("query", "key", "value")} | {
    "attention.output": "attention.output.dense",
    "norm_attention": "layernorm_before",
    "norm_feed_forward": "layernorm_after",
    "feed_forward.0": "intermediate.dense",
    "feed_forward.2": "output.dense",
}
QFORMER = {ours: theirs.replace(".self.", ".attention.") for ours, theirs in (BERT_LAYER | CROSS).items()}
QFORMER |= {f"query_feed_forward.{at}": f"{name}_query.dense" for at, name in ((0, "intermediate"), (2, "output"))}
QFORMER |= {"norm_query_feed_forward": "output_query.LayerNorm"}
QUERIES_ALONE = {  # a layer that no text passes has one feed-forward, the queries'
    ours.removeprefix("query_").replace("norm_query_", "norm_"): theirs
    for ours, theirs in QFORMER.items()
    if "query" in theirs.split(".")[0] or "feed_forward" not in ours
}
IDEFICS = {
    "norm_cross": "input_layernorm",
    "norm_feed_forward": "post_attention_layernorm",
    "cross_attention.query": "cross_attn.q_proj",
    "cross_attention.key": "cross_attn.k_proj",
    "cross_attention.value": "cross_attn.v_proj",
    "cross_attention.output": "cross_attn.o_proj",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}


def randomise(layer: nn.Module) -> nn.Module:
    """Every parameter drawn, norms and biases too: one that is left out or swapped then shows."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    return layer.eval()


def load(ours: nn.Module, theirs: nn.Module, table: dict[str, str], bare: dict[str, str] | None = None) -> None:
    """Copy by table (modules; ``bare``: parameters), leaving nothing of either side over."""
    state = {}
    for name, tensor in theirs.state_dict().items():
        module, _, leaf = name.rpartition(".")
        here = [f"{our}.{leaf}" for our, their in table.items() if their == module]
        here += [our for our, their in (bare or {}).items() if their == name]
        assert here or "rotary" in name, f"{name} has no place"
        state |= dict.fromkeys(here, tensor)
    ours.load_state_dict(state, strict=True)


def inputs() -> tuple[Tokens, Tokens]:
    """Two images of five tokens and three texts of six, some of each masked."""
    torch.manual_seed(0)
    image_mask, text_mask = torch.ones(2, 5, dtype=torch.long), torch.ones(3, 6, dtype=torch.long)
    image_mask[0, 3:] = 0
    text_mask[1, 4:] = 0
    image, text = torch.randn(2, 5, IMAGE), torch.randn(3, 6, WIDTH)
    return Tokens(image, image_mask, image[:, 0]), Tokens(text, text_mask, text[:, 0])


def scores(mask: torch.Tensor) -> torch.Tensor:
    """A mask (T, N), or (T, L, N), as transformers' layers want it: added to the attention scores."""
    wide = mask[:, None, None] if mask.dim() == 2 else mask[:, None]
    return (1.0 - wide.float()) * torch.finfo(torch.float32).min


def close(ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor) -> None:
    real = mask.bool()
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-5, atol=1e-5)
    assert theirs[real].std() > 0.1


def layers(make, count: int = DEPTH) -> list[nn.Module]:
    return [randomise(make(number)) for number in range(count)]


def fuse(fusion, image, text):
    return fusion.eval()(fusion.prepare(image), text, INDEX)


def embedded(fusion, image, text):
    """The two streams as they enter the first layer, pair by pair, with the score masks."""
    if isinstance(fusion, DualStreamSequential):
        states = fusion.project_text(text.embeds) + fusion.type_embeddings[0]
        seen = (fusion.project_image(image.embeds) + fusion.type_embeddings[1])[INDEX]
    else:
        states, seen = fusion.entry.text(text.embeds), fusion.entry.image(image).embeds[INDEX]
    return states, scores(text.mask), seen, scores(image.mask[INDEX])


@pytest.fixture
def bridgetower():
    config = BridgeTowerConfig(text_config=SIZES | {"layer_norm_eps": 1e-5}).text_config
    config._attn_implementation = "eager"
    return lambda count: layers(lambda number: BridgeTowerBertCrossLayer(config, number), count)


@torch.no_grad()
def test_co_attention_is_meters(bridgetower):
    image, text = inputs()
    fusion = CoAttention(IMAGE, WIDTH, intermediate_size=INNER, **OPTIONS)
    theirs = [bridgetower(2) for _ in range(DEPTH)]
    for layer, (text_layer, image_layer) in zip(fusion.layers, theirs, strict=True):
        load(layer.text, text_layer, BERT_LAYER | CROSS)
        load(layer.image, image_layer, BERT_LAYER | CROSS)
    states, text_scores, seen, image_scores = embedded(fusion, image, text)
    for text_layer, image_layer in theirs:
        after = text_layer(states, seen, text_scores, image_scores)[0]
        states, seen = after, image_layer(seen, states, image_scores, text_scores)[0]
    fused = fuse(fusion, image, text)
    close(fused.text, states, text.mask)
    close(fused.image, seen, image.mask[INDEX])


@torch.no_grad()
def test_dual_stream_sequential_is_meters_layers_in_turn(bridgetower):
    image, text = inputs()
    fusion = DualStreamSequential(IMAGE, WIDTH, intermediate_size=INNER, **OPTIONS)
    theirs = [bridgetower(2) for _ in range(DEPTH)]
    for layer, (text_layer, image_layer) in zip(fusion.layers, theirs, strict=True):
        load(layer.text, text_layer, BERT_LAYER | CROSS)
        load(layer.image, image_layer, BERT_LAYER | CROSS)
    states, text_scores, seen, image_scores = embedded(fusion, image, text)
    for text_layer, image_layer in theirs:
        seen = image_layer(seen, states, image_scores, text_scores)[0]
        states = text_layer(states, seen, text_scores, image_scores)[0]
    fused = fuse(fusion, image, text)
    close(fused.text, states, text.mask)
    close(fused.image, seen, image.mask[INDEX])


@torch.no_grad()
def test_co_attention_with_cross_attention_first_is_lxmerts():
    image, text = inputs()
    fusion = CoAttention(IMAGE, WIDTH, intermediate_size=INNER, eps=1e-12, block=CrossThenSelf, **OPTIONS)
    theirs = layers(lambda _: LxmertXLayer(LxmertConfig(**SIZES)))
    for layer, their in zip(fusion.layers, theirs, strict=True):
        load(layer, their, LXMERT)
    states, text_scores, seen, image_scores = embedded(fusion, image, text)
    for layer in theirs:
        states, seen = layer(states, text_scores, seen, image_scores)
    fused = fuse(fusion, image, text)
    close(fused.text, states, text.mask)
    close(fused.image, seen, image.mask[INDEX])


@pytest.mark.parametrize(
    ("block", "make", "table"),
    [
        (PreNormBlock, lambda _: ViltLayer(ViltConfig(**SIZES | {"intermediate_size": 4 * WIDTH})), VILT),
        (PostNormBlock, lambda _: VisualBertLayer(VisualBertConfig(**SIZES | {"intermediate_size": 4 * WIDTH})), None),
    ],
    ids=["vilt", "visual_bert"],
)
@torch.no_grad()
def test_merged_attention_is_vilts_and_visual_berts(block, make, table):
    image, text = inputs()
    eps = 1e-12
    fusion = MergedAttention(IMAGE, WIDTH, block=lambda *sizes: block(*sizes, eps=eps), **OPTIONS)
    theirs = layers(make)
    for ours, their in zip(fusion.blocks, theirs, strict=True):
        load(ours, their, table or BERT_LAYER)
    states = torch.cat([fusion.entry.text(text.embeds), fusion.prepare(image).embeds[INDEX]], 1)
    mask = torch.cat([text.mask, image.mask[INDEX]], dim=1)
    for layer in theirs:
        states = layer(states, scores(mask))[0]
    fused = fuse(fusion, image, text)
    close(torch.cat([fused.text, fused.image], dim=1), fusion.norm(states), mask)


@pytest.mark.parametrize("is_causal", [False, True])
@torch.no_grad()
def test_cross_attention_is_blips(is_causal):
    image, text = inputs()
    image = image._replace(mask=None)  # transformers 5.23 loses the image mask on its way into BLIP's cross-attention
    fusion = CrossAttention(IMAGE, WIDTH, intermediate_size=INNER, **OPTIONS)
    config = BlipTextConfig(**SIZES, encoder_hidden_size=IMAGE, is_decoder=True, layer_norm_eps=1e-12)
    theirs = layers(lambda number: BlipTextLayer(config, number))
    for ours, their in zip(fusion.layers, theirs, strict=True):
        load(ours, their, BERT_LAYER | CROSS)
    both = text.mask[:, None] * text.mask[:, :, None]
    mask = both.tril() if is_causal else text.mask
    states = text.embeds
    for layer in theirs:
        states = layer(
            states,
            encoder_hidden_states=image.embeds[INDEX],
            attention_mask=scores(mask),
        )
    close(fuse(fusion, image, text._replace(mask=mask)).text, states, text.mask)


@torch.no_grad()
def test_bottleneck_is_blip2s_q_former():
    image, text = inputs()
    options = {"num_queries": 3, "image_layers": 2, "cross_every": 2, "intermediate_size": INNER}
    fusion = Bottleneck(IMAGE, WIDTH, **options, **OPTIONS)
    nn.init.normal_(fusion.queries)
    config = Blip2QFormerConfig(**SIZES, encoder_hidden_size=IMAGE, cross_attention_frequency=2)
    config.use_qformer_text_input = False
    alone = layers(lambda _: Blip2QFormerLayer(config, 0))
    config.use_qformer_text_input = True
    joint = layers(lambda number: Blip2QFormerLayer(config, number))
    for ours, their in zip(fusion.image_layers, alone, strict=True):
        load(ours, their, QUERIES_ALONE)
    for ours, their in zip(fusion.layers, joint, strict=True):
        load(ours, their, QFORMER)
    seen, image_scores = image.embeds[INDEX], scores(image.mask[INDEX])
    states = fusion.norm_queries(fusion.queries).expand(3, -1, -1)
    for layer in alone:
        states = layer(states, scores(torch.ones(3, 3)), seen, image_scores, query_length=3)
    states = torch.cat([states, text.embeds], dim=1)
    mask = torch.cat([torch.ones(3, 3, dtype=torch.long), text.mask], dim=1)
    for layer in joint:
        states = layer(states, scores(mask), seen, image_scores, query_length=3)
    fused = fuse(fusion, image, text)
    close(fused.text, states[:, 3:], text.mask)
    torch.testing.assert_close(fused.pooled[:, WIDTH:], states[:, :3].mean(1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_gated_cross_attention_is_idefics_block_before_each_bert_layer():
    image, text = inputs()
    fusion = GatedCrossAttention(IMAGE, WIDTH, intermediate_size=INNER, **OPTIONS)
    config = IdeficsConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=INNER, vision_config={"embed_dim": IMAGE},
        attn_implementation="eager", alpha_type="float",
    )  # fmt: skip
    gated = layers(lambda number: IdeficsGatedCrossAttentionLayer(config, number))
    plain = layers(lambda _: VisualBertLayer(VisualBertConfig(**SIZES)))
    gates = {"cross_gate": "alpha_cross_attn", "feed_forward_gate": "alpha_dense"}
    for block, layer, their_block, their_layer in zip(fusion.cross_layers, fusion.layers, gated, plain, strict=True):
        nn.init.constant_(their_block.alpha_cross_attn, 0.7)
        nn.init.constant_(their_block.alpha_dense, -0.4)
        load(block, their_block, IDEFICS, gates)
        load(layer, their_layer, BERT_LAYER)
    states = text.embeds
    for block, layer in zip(gated, plain, strict=True):
        states = block(
            states,
            image_hidden_states=image.embeds[INDEX],
            image_attention_mask=scores(image.mask[INDEX]),
            cross_attention_gate=torch.ones(3, 6),
        )
        states = layer(states, scores(text.mask))[0]
    close(fuse(fusion, image, text).text, states, text.mask)
