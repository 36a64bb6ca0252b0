"""The rule table, layer-wise decay, and the groups they make."""

import pytest
import timm
import torch
from torch import nn
from transformers import BertConfig, BertModel

from fusionkit.errors import ConfigError
from fusionkit.training.optim import build_optimizer, layer_scales


def toy() -> nn.ModuleDict:
    model = nn.ModuleDict({"image_encoder": nn.Linear(2, 3), "head": nn.Linear(3, 2), "norm": nn.LayerNorm(3)})
    model.register_parameter("temperature", nn.Parameter(torch.tensor(0.07)))
    return model


def table(model: nn.Module, **options) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) by parameter name, of those that are optimised."""
    optimizer = build_optimizer(model.named_parameters(), lr=1.0, weight_decay=0.1, **options)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_biases_norms_and_the_temperature_do_not_decay():
    decays = {name: decay for name, (_, decay) in table(toy()).items()}
    assert {name for name, decay in decays.items() if decay == 0.1} == {"image_encoder.weight", "head.weight"}
    assert set(decays.values()) == {0.0, 0.1}
    assert len(decays) == 7


def test_the_first_rule_that_matches_decides():
    rules = [["head.bias", 5, 0.3], ["head", 2, None], ["encoder|bias", 0.5, 0.2]]
    found = table(toy(), rules=rules)
    assert found["head.bias"] == (5, 0.3)
    assert found["head.weight"] == (2, 0.1)
    assert found["image_encoder.weight"] == found["norm.bias"] == (0.5, 0.2)
    assert found["norm.weight"] == (1, 0)


def test_frozen_parameters_and_those_with_scale_zero_are_left_out():
    model = toy()
    model["norm"].requires_grad_(False)
    assert set(table(model, rules=[["encoder", 0, None]])) == {"head.weight", "head.bias", "temperature"}
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        table(model, rules=[["", 0, None]])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (["heed", 1, None], r"optimizer.rules\[1\]: 'heed' matches none of the parameters, .*head.bias"),
        (["head", 1], r"optimizer.rules\[1\]: expected \[regex, lr scale"),
        (["(", 1, None], r"optimizer.rules\[1\]: '\(' is no regular expression"),
        (["head", "fast", None], r"optimizer.rules\[1\]: expected \[regex"),
        (["head", -1, None], r"optimizer.rules\[1\]: the lr scale -1.0 is negative"),
    ],
)
def test_a_wrong_rule_is_named(rule, message):
    with pytest.raises(ConfigError, match=message):
        table(toy(), rules=[["norm", 1, None], rule])


def test_layer_decay_counts_the_blocks_of_timm_and_transformers():
    vit = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=0, embed_dim=12)
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8))
    names = [f"model.image_encoder.backbone.{name}" for name, _ in vit.named_parameters()]
    names += [f"model.text_encoder.{name}" for name, _ in bert.named_parameters()] + ["model.fusion.layers.0.weight"]
    scales = {name.removeprefix("model."): scale for name, scale in layer_scales(names, 0.5).items()}
    assert scales["image_encoder.backbone.blocks.2.mlp.fc1.weight"] == 0.5
    assert scales["image_encoder.backbone.blocks.0.mlp.fc1.weight"] == 0.5**3
    assert (
        scales["image_encoder.backbone.patch_embed.proj.weight"] == scales["image_encoder.backbone.cls_token"] == 0.5**4
    )
    assert scales["image_encoder.backbone.norm.weight"] == 1
    assert scales["text_encoder.encoder.layer.1.output.dense.weight"] == 0.5
    assert scales["text_encoder.embeddings.word_embeddings.weight"] == 0.5**3
    assert not any(name.startswith("fusion") for name in scales)


def test_layer_decay_counts_through_the_stages_of_a_swin():
    names = [
        f"image_encoder.layers.{place}.weight" for place in ("0.blocks.0", "0.blocks.1", "1.downsample", "1.blocks.0")
    ]
    assert list(layer_scales(names, 0.5).values()) == [0.5**4, 0.5**3, 0.5**2, 0.5]


def test_layer_decay_multiplies_the_rule():
    model = nn.ModuleDict({"text_encoder": nn.ModuleDict({"layer": nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])})})
    found = table(model, rules=[["layer", 2, None]], layer_decay=0.5)
    assert found["text_encoder.layer.0.weight"][0] == 0.5
    assert found["text_encoder.layer.1.weight"][0] == 1.0
