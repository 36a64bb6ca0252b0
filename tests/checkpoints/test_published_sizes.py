"""The key tables cover the published base models: every name and shape, with the defaults of conf/import.

The lists are built without memory from timm's and transformers' models of the same names, and hold no numbers.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf
from torch import Tensor
from transformers import BertConfig, BertLMHeadModel, BlipConfig, BlipForImageTextRetrieval

from fusionkit.checkpoints.base import convert
from fusionkit.checkpoints.build import compose_plan, empty_network
from fusionkit.checkpoints.source import Source
from tests.toys import CONF

Shapes = dict[str, tuple[int, ...]]


def shapes_of(module: torch.nn.Module, prefix: str, but: tuple[str, ...] = ()) -> Shapes:
    return {prefix + n: tuple(t.shape) for n, t in module.state_dict().items() if not n.startswith(but or ("-",))}


def bert(prefix: str, layers: int = 12, text_layers: int = 0, words: int = 30522, is_headless: bool = False) -> Shapes:
    """A BERT whose layers from ``text_layers`` on attend to an image of the same width, under its published names."""
    config = BertConfig(vocab_size=words, num_hidden_layers=layers, is_decoder=True, add_cross_attention=True)
    with torch.device("meta"):
        found = shapes_of(BertLMHeadModel(config), "")
    for layer in range(text_layers):
        found = {n: s for n, s in found.items() if not n.startswith(f"bert.encoder.layer.{layer}.crossattention")}
    found |= {"cls.predictions.decoder.weight": (words, 768), "cls.predictions.decoder.bias": (words,)}
    if is_headless:
        found = {n.removeprefix("bert."): s for n, s in found.items() if not n.startswith("cls.")}
    return {prefix + name: shape for name, shape in found.items()}


def vit(prefix: str, image_size: int) -> Shapes:
    with torch.device("meta"):
        return shapes_of(timm.create_model("vit_base_patch16_224", img_size=image_size, num_classes=0), prefix)


def linear(name: str, out: int, width: int = 768) -> Shapes:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def projections(m: str = "") -> Shapes:
    return linear(f"vision_proj{m}", 256) | linear(f"text_proj{m}", 256)


def queues(size: int) -> Shapes:
    return {"image_queue": (256, size), "text_queue": (256, size), "queue_ptr": (1,), "temp": ()}


def albef() -> Shapes:
    towers = [
        vit(f"visual_encoder{m}.", 256) | bert(f"text_encoder{m}.", text_layers=6) | projections(m) for m in ("", "_m")
    ]
    return towers[0] | towers[1] | linear("itm_head", 2) | queues(65536)


def albef_vqa() -> Shapes:
    towers = [
        vit(f"visual_encoder{m}.", 384)
        | bert(f"text_encoder{m}.", text_layers=6, is_headless=True)
        | bert(f"text_decoder{m}.", layers=6)
        for m in ("", "_m")
    ]
    return towers[0] | towers[1]


def without_types(shapes: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if "token_type_embeddings" not in name}


def blip() -> Shapes:
    towers = [
        vit(f"visual_encoder{m}.", 224) | bert(f"text_encoder{m}.", words=30524, is_headless=True) | projections(m)
        for m in ("", "_m")
    ]
    decoder = bert("text_decoder.", words=30524)
    return without_types(towers[0] | towers[1] | decoder) | linear("itm_head", 2) | queues(57600)


def blip_of_transformers() -> Shapes:
    with torch.device("meta"):
        return shapes_of(BlipForImageTextRetrieval(BlipConfig()), "")


def perceptron(name: str, out: int) -> Shapes:
    norm = {f"{name}.1.weight": (1536,), f"{name}.1.bias": (1536,)}
    return linear(f"{name}.0", 1536) | norm | linear(f"{name}.3", out, 1536)


def xvlm() -> Shapes:
    """timm puts the merging of patches at the beginning of a stage, the release at the end of the one before."""
    with torch.device("meta"):
        tower = timm.create_model("swin_base_patch4_window7_224", num_classes=0)
        found = shapes_of(tower, "vision_encoder.")
    merging = {name: found.pop(name) for name in list(found) if ".downsample." in name}
    for stage in range(3):
        later, name = f"layers.{stage + 1}.", f"layers.{stage}."
        found |= {n.replace(later, name): shape for n, shape in merging.items() if later in n}
    text = bert("text_encoder.", text_layers=6)
    wide = {n: (768, 1024) for n in text if "crossattention.self" in n and n.endswith(("key.weight", "value.weight"))}
    return (
        found | text | wide | linear("vision_proj", 256, 1024) | linear("text_proj", 256)
        | perceptron("itm_head", 2) | perceptron("bbox_head", 4) | {"temp": ()}
    )  # fmt: skip


CASES = {
    "albef": (albef, {}, None),
    "albef_vqa": (albef_vqa, {"image_size": 384}, None),
    "blip": (blip, {}, None),
    "blip_of_transformers": (blip_of_transformers, {}, BlipConfig),
    "xvlm": (xvlm, {}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_the_published_model_has_its_place(name: str) -> None:
    build, options, config = CASES[name]
    state: dict[str, Tensor] = {n: torch.zeros(()).expand(shape) for n, shape in build().items()}
    source = Source(Path(name), state, None if config is None else config().to_dict(), "")
    defaults = OmegaConf.load(CONF / f"import/{name.partition('_')[0]}.yaml")
    plain: Any = OmegaConf.to_container(OmegaConf.merge(defaults, options))
    plan = partial(get_object(plain["_target_"]), **{k: v for k, v in plain.items() if not k.startswith("_")})(source)
    expected = empty_network(compose_plan(plan, plan.tokenizer), plan.ids).module.state_dict()
    found = convert(source, plan, expected)
    assert found.keys() == expected.keys()
    numbers = sum(tensor.numel() for part, tensor in found.items() if part.startswith("model."))
    assert 180e6 < numbers < 260e6  # a base model
