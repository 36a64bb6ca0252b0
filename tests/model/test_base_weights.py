"""Frozen weights in 8 and 4 bits under adapters: what they are rounded to, that they train, and what is refused."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusionkit.errors import ConfigError
from fusionkit.model.adapters import Adapters, Rule, adapted_layers, merge
from fusionkit.model.base_weights import RoundedLinear, count_parameters
from fusionkit.training.stages import Stage, Stages
from tests.toys import toy_language_model, toy_model

KINDS = pytest.mark.parametrize("kind", ["int8", "nf4"])
LOSS = {"int8": 0.0045, "nf4": 0.152}  # of the largest number in a scale's reach: half of the widest step, and fp16
TEXT = {"text": Rule(r"^text_encoder\.(?!head)", rank=3, alpha=6.0)}


def linear(rows=40, columns=96, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(rows, columns).requires_grad_(False)


def frozen_model(kind=None, rules=None, **options):
    torch.manual_seed(0)
    model = toy_model("prefix").eval()
    model.text_encoder.requires_grad_(False)
    model.text_encoder.is_frozen = True
    torch.manual_seed(1)
    Adapters(rules or TEXT, base_weights=kind, **options)(model)
    return model


@KINDS
def test_a_weight_is_rounded_by_less_than_half_a_step(kind):
    plain = linear()
    rounded = RoundedLinear(plain, kind)
    if kind == "int8":
        reach = plain.weight.abs().amax(dim=1, keepdim=True).expand_as(plain.weight)
    else:
        blocks = plain.weight.flatten().view(-1, 64)
        reach = blocks.abs().amax(dim=1, keepdim=True).expand_as(blocks).reshape(plain.weight.shape)
    assert ((rounded.matrix() - plain.weight).abs() / reach).max() < LOSS[kind]
    assert (rounded.matrix() - plain.weight).abs().max() > 0
    assert rounded.weight.numel() * rounded.weight.element_size() == plain.weight.numel() // (
        1 if kind == "int8" else 2
    )
    assert rounded.scales.numel() == (96 if kind == "int8" else 96 * 40 // 64)


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_comes_out_and_its_gradient_are_those_of_the_rounded_weight(kind, dtype):
    rounded = RoundedLinear(linear(), kind)
    x = torch.randn(2, 5, 40, dtype=dtype, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    out, expected = rounded(x), F.linear(other, rounded.matrix().to(dtype), rounded.bias.to(dtype))
    assert torch.equal(out, expected)
    weights = torch.linspace(-1, 1, 96).to(dtype)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    assert rounded.weight.grad is None


@KINDS
def test_in_mixed_precision_they_are_multiplied_in_it(kind):
    rounded, x = RoundedLinear(linear(), kind), torch.randn(3, 40)
    with torch.autocast("cpu", torch.bfloat16):
        assert rounded(x).dtype == torch.bfloat16
    assert rounded(x).dtype == torch.float32


@KINDS
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_a_state_is_that_of_the_plain_layer_and_gives_the_very_codes_again(kind, scale):
    plain = linear()
    plain.weight.data *= scale
    plain.weight.data[3] = 0.0  # and whole blocks of nothing
    plain.weight.data[4, 0] = plain.weight.data[4].abs().max() * -2
    rounded = RoundedLinear(plain, kind)
    state = rounded.state_dict()
    assert {name: (tuple(t.shape), t.dtype) for name, t in state.items()} == {
        name: (tuple(t.shape), t.dtype) for name, t in plain.state_dict().items()
    }
    other = RoundedLinear(linear(seed=9), kind)
    assert not torch.equal(other.weight, rounded.weight)
    other.load_state_dict({**state, "bias": state["bias"] + 1})
    assert torch.equal(other.weight, rounded.weight)
    assert torch.equal(other.scales, rounded.scales)
    assert torch.equal(other.matrix(), rounded.matrix())
    assert torch.equal(other.bias, rounded.bias + 1)


@KINDS
def test_a_state_without_the_weight_is_refused(kind):
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight"'):
        RoundedLinear(linear(), kind).load_state_dict({"bias": torch.zeros(96)})
    bare = nn.Linear(4, 64, bias=False).requires_grad_(False)
    RoundedLinear(bare, kind).load_state_dict(bare.state_dict())


@KINDS
def test_scales_are_whole_in_a_run_of_bf16(kind):
    rounded = RoundedLinear(linear(), kind)
    before = rounded.matrix()
    rounded.to(torch.bfloat16)
    assert rounded.bias.dtype == torch.bfloat16
    assert torch.equal(rounded.matrix(), before)


@KINDS
def test_adapters_learn_beside_them_and_they_stay(kind):
    model = frozen_model(kind)
    layers = adapted_layers(model)
    assert layers
    assert all(isinstance(layer.get_base_layer(), RoundedLinear) for layer in layers.values())
    before = {name: tensor.clone() for name, tensor in model.text_encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.text_encoder.parameters() if p.requires_grad], lr=0.5)
    ids = torch.arange(1, 11).view(2, 5)
    for _ in range(2):
        model.text_encoder.is_read_on = False
        model.text_encoder(ids, torch.ones_like(ids)).pooled.square().sum().backward()
        optimizer.step()
    moved = {name for name, tensor in model.text_encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(".lora_" in name for name in moved)


@KINDS
def test_merged_they_are_plain_weights_with_the_adapters_in_them(kind):
    model = frozen_model(kind)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            parameter.data += 0.1
    ids = torch.arange(1, 11).view(2, 5)
    model.text_encoder.is_read_on = False
    before = model.text_encoder(ids, torch.ones_like(ids)).embeds
    names = list(toy_model("prefix").state_dict())
    assert merge(model)
    assert list(model.state_dict()) == names
    assert not any(isinstance(part, RoundedLinear) for part in model.modules())
    torch.testing.assert_close(model.text_encoder(ids, torch.ones_like(ids)).embeds, before, rtol=1e-4, atol=1e-4)


def test_numbers_are_counted_as_those_of_the_weight():
    plain, model = frozen_model(), frozen_model("nf4")
    assert sum(count_parameters([model]).values()) == sum(count_parameters([plain]).values())
    assert sum(count_parameters([plain]).values()) == sum(p.numel() for p in plain.parameters())


def test_without_numbers_nothing_is_rounded():
    with torch.device("meta"):
        model = frozen_model("nf4")
    assert not any(isinstance(part, RoundedLinear) for part in model.modules())


def test_a_copy_that_has_the_same_parameters_reads_what_they_are_given():
    """As a momentum teacher has them."""
    layer = RoundedLinear(linear(), "nf4")
    teacher = copy.deepcopy(layer, {id(p): p for p in layer.parameters()})
    layer.load_state_dict(linear(seed=5).state_dict())
    assert torch.equal(teacher.matrix(), layer.matrix())
    teacher.load_state_dict(dict(layer.named_parameters()))
    assert torch.equal(teacher.matrix(), layer.matrix())
    assert not torch.equal(layer.matrix(), RoundedLinear(linear(), "nf4").matrix())


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (
            "int4",
            {},
            r"adapters.base_weights is 'int4'; give null or one of them: did you mean 'int8'\? known: int8, nf4",
        ),
        (True, {}, "adapters.base_weights is 'True'; give null"),
        ("nf4", {"decomposed": True}, "adapters.base_weights=nf4 goes with adapters=lora: DoRA reads"),
        (
            "int8",
            {"rules": {"all": Rule(r"^fusion\.", rank=2)}},
            "rounds fusion.*, which trains; freeze it: fusion.frozen=true",
        ),
    ],
)
def test_what_cannot_be_rounded_is_one_sentence(kind, options, words):
    with pytest.raises(ConfigError, match=words):
        frozen_model(kind, **options)


def test_layers_of_gpt2_are_refused():
    model = nn.ModuleDict({"text_encoder": toy_language_model(config={"model_type": "gpt2"}, frozen=True)})
    words = r"base_weights=int8: text_encoder\..* is a Conv1D, whose weight cannot be rounded"
    with pytest.raises(ConfigError, match=words):
        Adapters(TEXT, base_weights="int8")(model)


def test_a_stage_that_would_train_them_is_refused():
    model = frozen_model("nf4")
    named = list(model.named_parameters())
    words = r"stages.late.trains finds text_encoder.*weight, which is kept in few bits and cannot train; name other parts, or"
    with pytest.raises(ConfigError, match=words):
        Stages({"first": Stage(3, ["lora_"]), "late": Stage(None, ["lora_", "text_encoder"])}, named)
    assert len(Stages({"first": Stage(3, ["lora_"]), "late": Stage(None, ["^fusion"])}, named)) == 2
    assert Stages({}, named).parameters.keys() == {name for name, p in named if p.requires_grad}


def test_without_bitsandbytes_the_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    words = (
        r"adapters.base_weights needs the package bitsandbytes: run .*\[quantised\]'; or set adapters.base_weights=null"
    )
    with pytest.raises(ConfigError, match=words):
        frozen_model("nf4")


@pytest.mark.gpu
@KINDS
def test_on_a_gpu_they_are_what_they_are_on_the_processor(kind):
    rounded = RoundedLinear(linear(), kind)
    there = copy.deepcopy(rounded).cuda()
    assert torch.equal(there.matrix().cpu(), rounded.matrix())
    again = RoundedLinear(linear().cuda(), kind)
    torch.testing.assert_close(again.matrix().cpu(), rounded.matrix(), rtol=0, atol=1e-3)
    x = torch.randn(3, 40, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    there(x).sum().backward()
    assert x.grad.isfinite().all()
