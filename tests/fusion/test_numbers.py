"""What every fusion computes, to four decimals, on weights and tokens that a formula gives.

These numbers are what published and trained weights are worth: a change of one is a change of every stored checkpoint.
After a change that is meant, write the new ones by ``python -m tests.fusion.test_numbers``.
"""

import inspect
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class

from fusionkit.fusion.bert import PostNormBlock
from fusionkit.fusion.co_attention import CrossThenSelf
from fusionkit.fusion.input_projection import ClassToken
from fusionkit.fusion.pooling import DenseBoth, DenseImage, DenseText, LastWord
from fusionkit.types import Tokens
from tests.toys import choices, number_of, reads_on, scatter_weights, scattered, toy_fusion

IMAGE, TEXT = 24, 32
INDEX = torch.tensor([1, 0, 1, 2])
VARIANTS = {
    "bottleneck_once": ("bottleneck", {"cross_every": 0}),
    "bottleneck_always": ("bottleneck", {"image_layers": 0, "cross_every": 1}),
    "bridge_of_each": ("bridge", {"bridged": 2, "num_heads": 2}),
    "co_attention_lxmert": ("co_attention", {"block": CrossThenSelf, "pool": DenseText}),
    "gated_cross_attention_seldom": ("gated_cross_attention", {"cross_every": 2}),
    "merged_attention_flava": ("merged_attention", {"entry": ClassToken, "pool": DenseImage}),
    "merged_attention_uniter": ("merged_attention", {"block": PostNormBlock, "norm_eps": None, "pool": LastWord}),
    "merged_attention_first": ("merged_attention", {"pool": partial(DenseBoth, image="first")}),
}
# what a language model reads on is tested against transformers' own numbers, in test_prefix.py and test_interleaved.py
FUSIONS = [name for name in choices("fusion") if not reads_on(toy_fusion(name))]
NEEDS = ({"pooled"}, {"text"}, {"image"}, {"text", "image"}, {"pooled", "text", "image"}, {"feats"})
FILE = Path(__file__).with_name("numbers.json")


def kept(part):
    """What the file says."""
    return json.loads(FILE.read_text())[part]


def build(name, **options):
    """A fusion of conf/fusion, or one of the variants."""
    name, more = VARIANTS.get(name, (name, {}))
    fusion = toy_fusion(name)(image_size=IMAGE, text_size=TEXT, **more, **options)
    return scatter_weights(fusion).eval()


def tokens(rows, length, width, mask, seed):
    embeds = scattered(rows, length, width, seed=seed).requires_grad_()
    return Tokens(embeds, mask, embeds[:, 0])


def inputs():
    image = tokens(3, 5, IMAGE, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]), seed=100)
    return image, tokens(4, 4, TEXT, torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]), seed=200)


def numbers_of(name):
    """Of the outputs over padded texts and images, of the gradients, of a causal mask, of metrics, and of what is frozen."""
    fusion = build(name)
    image, text = inputs()
    fused = fusion(fusion.prepare(image), text, INDEX)
    found = {part: number_of(value) for part, value in fused._asdict().items() if value is not None}
    sum((value * scattered(*value.shape, seed=300)).sum() for value in fused if value is not None).backward()
    found |= {"to image": number_of(image.embeds.grad), "to text": number_of(text.embeds.grad)}
    found |= {name: number_of(value) for name, value in getattr(fusion, "metrics", dict)().items()}
    with torch.no_grad():
        if "causal" in fusion.provides:
            causal = text.mask[:, None] * torch.ones(4, 4).tril().long()
            found["causal"] = number_of(fusion(fusion.prepare(image), text._replace(mask=causal), INDEX).text)
        if "pair" in fusion.provides:
            pairs = torch.stack([INDEX, INDEX.flip(0)], dim=1)
            found["pair"] = number_of(fusion(fusion.prepare(image), text, pairs).pooled)
        if hasattr(fusion, "encode_unimodal"):
            found["alone"] = number_of(fusion.encode_unimodal(text).embeds)
        whole = image._replace(mask=None)
        found["unmasked"] = number_of(fusion(fusion.prepare(whole), text, INDEX)[0])
    if hasattr(fusion, "freeze_unused"):
        found["frozen"] = [frozen_of(name, needs) for needs in NEEDS]
    options = {"hidden_size": 16, "intermediate_size": 20}
    sized = build(name, **{key: options[key] for key in options if key in inspect.signature(type(fusion)).parameters})
    found["sized"] = [sum(p.numel() for p in sized.parameters()), sized.hidden_size, sized.pooled_size]
    return found


def frozen_of(name, needs):
    """Which parameters of three layers are frozen where only these parts are read."""
    fusion = build(name, **({} if "bridged" in VARIANTS.get(name, ("", {}))[1] else {"num_layers": 3}))
    fusion.freeze_unused(needs)
    return number_of(torch.tensor([p.numel() * (not p.requires_grad) for p in fusion.parameters()]))


def defaults_of(name):
    made = toy_fusion(name).func if name in FUSIONS else get_class(f"fusionkit.fusion.{name}")
    parameters = inspect.signature(made).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, int | float)}


PARTS = ("bert.PostNormBlock", "input_projection.TypedProjection", "input_projection.TypedImage",
    "gated_cross_attention.GatedCrossAttentionBlock",
    "layers.Attention", "layers.PreNormBlock", "mixed_cross_attention.SelfAttentionLayers", "pooling.DenseBoth")  # fmt: skip


@pytest.mark.parametrize("name", [*FUSIONS, *VARIANTS])
def test_numbers(name):
    found, known = numbers_of(name), kept("numbers")
    assert found.keys() == known[name].keys()
    for key, value in found.items():
        assert value == pytest.approx(known[name][key], rel=1e-4, abs=5e-4), key


@pytest.mark.parametrize("name", [*FUSIONS, *PARTS])
def test_defaults(name):
    assert defaults_of(name) == kept("defaults")[name]


if __name__ == "__main__":
    content = {
        "numbers": {name: numbers_of(name) for name in (*FUSIONS, *VARIANTS)},
        "defaults": {name: defaults_of(name) for name in (*FUSIONS, *PARTS)},
    }
    FILE.write_text(json.dumps(content, indent=1) + "\n")
