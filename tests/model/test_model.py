"""The three verbs, and that an image is encoded and projected once."""

import pytest
import torch

from fusionkit.assembly.checks import check_temperature, lacking
from fusionkit.encoders.image import TimmEncoder
from fusionkit.encoders.text import HFTextEncoder
from fusionkit.errors import ConfigError
from fusionkit.fusion.bert import BERT_LAYER
from fusionkit.fusion.cross_attention import CrossAttention
from fusionkit.fusion.merged_attention import MergedAttention
from fusionkit.model.model import assemble
from tests.toys import VOCABULARY, choices, toy_batch, toy_dims, toy_model, toy_task


@pytest.mark.parametrize("texts_per_image", [1, 5])
def test_all_objectives_share_one_image_encoding(texts_per_image, monkeypatch):
    model = toy_model()
    calls = {"image": 0, "prepare": 0}

    def counting(name, function):
        def call(*args):
            calls[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(model.image_encoder, "forward", counting("image", model.image_encoder.forward))
    monkeypatch.setattr(model.fusion, "prepare", counting("prepare", model.fusion.prepare))
    names = set(choices("task")) - {"likelihood"}  # which reads a blank image too
    tasks = {name: toy_task(name, toy_dims(model)) for name in sorted(names)}
    tasks = {name: task for name, task in tasks.items() if not lacking(task.needs, model.fusion.provides)}
    batch = toy_batch(images=4, texts_per_image=texts_per_image)
    encoded = model.encode(batch, sorted({t.reads for t in tasks.values() if t.encodes}))
    sum(task(model, batch, encoded).loss for task in tasks.values()).backward()
    assert {"itc", "itm", "mlm", "vqa", "grounding"} <= set(tasks)
    assert calls == {"image": 1, "prepare": 1}


def test_unused_parts_are_frozen():
    model = toy_model()
    model.freeze_unused(frozenset({"pooled"}))
    assert not model.temperature.requires_grad
    assert not model.image_projection.weight.requires_grad
    assert all(p.requires_grad for p in model.fusion.parameters())
    model.freeze_unused(frozenset({"feats"}))
    assert not any(p.requires_grad for p in model.fusion.parameters())


def text_encoder(**options):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 3}
    return HFTextEncoder(VOCABULARY, config={"model_type": "bert", **sizes}, **options)


def image_encoder():
    return TimmEncoder("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=4)


def test_fusion_starts_from_the_text_encoders_upper_layers():
    text = text_encoder(num_layers=1, give_upper_layers=True)
    upper = text.upper_layers
    model = assemble(
        image_encoder(), text, lambda **s: CrossAttention(**s, num_layers=2, num_heads=4, intermediate_size=64)
    )
    assert len(text.backbone.encoder.layer) == 1
    for layer, source in zip(model.fusion.layers, upper, strict=True):
        for ours, theirs in BERT_LAYER.items():
            assert torch.equal(layer.get_submodule(ours).weight, source.get_submodule(theirs).weight)


@pytest.mark.parametrize(
    ("fusion", "options", "message"),
    [
        (MergedAttention, {}, "cannot start from text layers"),
        (CrossAttention, {}, "fusion.num_layers=2"),
        (CrossAttention, {"num_layers": 2, "num_heads": 2}, "fusion.num_heads=4"),
    ],
)
def test_upper_layers_that_do_not_fit_are_refused(fusion, options, message):
    text = text_encoder(num_layers=1, give_upper_layers=True)
    with pytest.raises(ConfigError, match=message):
        assemble(image_encoder(), text, lambda **s: fusion(**s, **{"num_layers": 3, "num_heads": 4} | options))


@pytest.mark.parametrize(
    "bounds", [(0.5, 0.01), (0.0, 0.5), (-1, 0.5), (0.01, float("inf")), (float("nan"), 0.5), (0.01,), ("a", 1)]
)
def test_a_range_of_temperatures_that_cannot_be_is_refused(bounds):
    with pytest.raises(
        ConfigError, match=r"model.temperature_range is \[.*; give two numbers above 0, the lower one first"
    ):
        toy_model(temperature_range=bounds)


@pytest.mark.parametrize("start", [0.005, 0.6, float("nan")])
def test_a_training_does_not_start_at_a_temperature_outside_its_range(start):
    model = toy_model(temperature=start, temperature_range=(0.01, 0.5))  # a checkpoint's own value follows
    with pytest.raises(ConfigError, match=r"model.temperature is .*, outside of model.temperature_range \[0.01, 0.5\]"):
        check_temperature(model)


@pytest.mark.parametrize("start", [0.01, 0.07, 0.5])
def test_a_temperature_within_its_range_is_fine(start):
    check_temperature(toy_model(temperature=start, temperature_range=(0.01, 0.5)))


def test_a_temperature_may_be_fixed_by_its_range():
    check_temperature(toy_model(temperature=0.07, temperature_range=(0.07, 0.07)))
