"""The tables of names cover the parameter lists of the published base configurations: names and shapes, without their weights."""

import re
from pathlib import Path

import pytest
import torch
import transformers

from fusionkit.checkpoints.base import convert
from fusionkit.checkpoints.build import compose_plan, empty_network
from fusionkit.checkpoints.source import Source
from tests.parity.imported import planned

CLASSES = {
    "bridgetower": "BridgeTowerForImageAndTextRetrieval",
    "clip": "CLIPModel",
    "flava": "FlavaForPreTraining",
    "lxmert": "LxmertForPreTraining",
    "vilt": "ViltForMaskedLM",
    "visualbert": "VisualBertForPreTraining",
}
LAYERS = {"transformer.blocks": 12, "uniter.encoder.layer": 12}
TIED = ("cls.predictions.decoder.weight", "feat_regress.weight")
SIZES = {  # of a fixture: those of the published base model
    "vilt": {64: 768, 192: 2304, 256: 3072, 128: 1536, 500: 30522, 12: 40, 17: 145, 16: 32, 50: 3129},
    "uniter": {64: 768, 256: 3072, 128: 1536, 192: 2304, 500: 28996, 48: 2048, 32: 512, 17: 1601, 37: 3129},
}


def covers(family: str, source: Source) -> None:
    plan = planned(family, {})(source)
    network = empty_network(compose_plan(plan, plan.tokenizer), plan.ids, plan.answers)
    expected = network.module.state_dict()
    converted = convert(source, plan, expected)
    assert {n: t.shape for n, t in converted.items()} == {n: t.shape for n, t in expected.items()}
    assert max(t.numel() for t in expected.values()) > 1e7


@pytest.mark.parametrize(("family", "name"), CLASSES.items())
def test_transformers_own_defaults(family, name):
    """The defaults of transformers' configurations are the base models; and so are ours, where a folder says nothing."""
    detector = (
        {"visual_embedding_dim": 2048} if family == "visualbert" else {}
    )  # transformers' default is no published one
    config = getattr(transformers, name).config_class(**detector)
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    state = {n: t for n, t in model.named_parameters() if not n.startswith("image_codebook")}
    covers(family, Source(Path(name), state, {"architectures": [name]}, ""))


@pytest.mark.reference
@pytest.mark.parametrize("name", ["vilt_tiny", "uniter_tiny"])
def test_original_releases(reference, name):
    """The fixture's names with as many layers as the base model has, and its sizes."""
    family = name.split("_")[0]
    tiny = torch.load(reference / "reference" / "fixtures" / f"{name}.pth", weights_only=True)
    state = {}
    for key, tensor in tiny.get("state_dict", tiny).items():
        if key in TIED:  # equal by value, which shapes have none of
            continue
        shape = [SIZES[family].get(size, size) for size in tensor.shape]
        found = re.match(rf"({'|'.join(LAYERS)})\.0\.", key)
        numbers = range(LAYERS[found[1]]) if found else [None]
        for number in numbers:
            label = key if number is None else key.replace(".0.", f".{number}.", 1)
            state[label] = torch.empty(shape, device="meta")
    covers(family, Source(Path(name), state, None, ""))
