"""Weights in 8 bits: which layers, by how much they are rounded, what files hold of them, and what is refused."""

import copy
import sys

import pytest
import torch
from torch import nn

from fusionkit.assembly.digests import weights_digest
from fusionkit.errors import ConfigError
from fusionkit.model.adapters import Adapters, Rule
from fusionkit.model.int8 import is_int8, linear_layers, plain_state, restore_int8, split_int8, to_int8
from fusionkit.model.momentum import MomentumTeacher
from fusionkit.model.parts import PARTS
from tests.toys import toy_batch, toy_dims, toy_model, toy_task

FUSIONS = pytest.mark.parametrize("fusion", ["cross_attention", "merged_attention", "prefix"])


def whole(fusion="cross_attention", *tasks):
    torch.manual_seed(0)
    model = toy_model(fusion)
    parts = {name: toy_task(name, toy_dims(model)) for name in tasks}
    return nn.ModuleDict({"model": model, "tasks": nn.ModuleDict(parts)}).eval()


def outputs(module):
    torch.manual_seed(1)
    batch = toy_batch(3, 2)
    encoded = module["model"].encode(batch, ["captions"])
    return module["model"].fuse(encoded.memory, encoded.text["captions"], batch["captions"]["image_index"]).text


@FUSIONS
def test_the_model_says_nearly_what_it_said(fusion):
    plain = whole(fusion)
    module = copy.deepcopy(plain)
    found = to_int8(module, True)
    before, after = outputs(plain), outputs(module)
    assert 0 < (after - before).abs().max() < 0.03 * before.abs().max()
    rounded = {name for name, tensor in module.named_parameters() if is_int8(tensor)}
    assert rounded == {f"{name}.weight" for name in found.layers}
    assert all(
        torch.equal(tensor, module.state_dict()[name])
        for name, tensor in plain.state_dict().items()
        if name not in rounded
    )


def test_a_teacher_that_shares_what_is_frozen_changes_nothing():
    plain = whole()
    plain["model"].text_encoder.requires_grad_(False)
    beside = copy.deepcopy(plain)
    beside["teacher"] = MomentumTeacher(beside["model"], beside["tasks"])
    before = copy.deepcopy(beside["teacher"].state_dict())
    assert to_int8(beside, True) == to_int8(plain, True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in beside["teacher"].state_dict().items())


def test_each_number_is_rounded_by_half_a_step_of_its_row():
    plain = whole()
    module = copy.deepcopy(plain)
    to_int8(module, "fusion")
    weights = dict(plain.named_parameters())
    for name, (codes, scales) in split_int8(plain_state(module.state_dict()))[1].items():
        step = weights[name].detach().abs().amax(dim=1, keepdim=True) / 127.5
        torch.testing.assert_close(scales[:, None], step)
        # the largest is a step of its own below the end where it is positive
        assert ((codes.float() * scales[:, None] - weights[name]).abs() / step).max() < 0.502


@pytest.mark.parametrize("part", PARTS)
def test_parts_are_chosen_by_name(part):
    module = whole("cross_attention", "vqa_decoder", "itm")
    found = to_int8(module, [part])
    place = "tasks." if part == "task" else f"model.{part}."
    assert found.layers
    assert all(name.startswith(place) for name in found.layers)
    assert not any(is_int8(tensor) for name, tensor in module.named_parameters() if not name.startswith(place))


def test_none_are_chosen_unless_they_are():
    module = whole()
    for chosen in (False, None, []):
        assert to_int8(module, chosen) is None
    assert not any(map(is_int8, module.parameters()))


def test_what_is_tied_or_read_past_the_layer_stays():
    module = nn.ModuleDict({"model": nn.ModuleDict({"fusion": nn.ModuleDict()}), "tasks": nn.ModuleDict()})
    fusion = module["model"]["fusion"]
    fusion["words"], fusion["tied"], fusion["plain"] = nn.Embedding(8, 6), nn.Linear(6, 8), nn.Linear(6, 8)
    fusion["tied"].weight = fusion["words"].weight
    fusion["attention"] = nn.MultiheadAttention(6, 2)
    fusion["lent"] = fusion["plain"]  # one layer in two places
    module["model"]["image_projection"] = nn.Linear(6, 6)
    assert list(linear_layers(module, PARTS)) == ["model.fusion.plain"]
    to_int8(module, True)
    assert is_int8(fusion["lent"].weight)
    fusion["attention"](*[torch.randn(2, 3, 6)] * 3)


def test_bytes_are_those_of_all_weights():
    module = whole()
    before = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    found = to_int8(module, True)
    layers = [module.get_submodule(name) for name in found.layers]
    less = sum(3 * layer.weight.numel() - 4 * layer.out_features for layer in layers)
    assert (found.before, found.after) == (before, before - less)
    assert str(found).startswith(
        f"int8: the weights of {len(layers)} linear layers; all weights 0.11 MB where they were 0.27 MB "
    )
    assert str(found).endswith(f"({found.after / before:.0%})")


def test_a_file_has_plain_tensors_and_gives_the_very_weights_again():
    module = whole()
    found = to_int8(module, True)
    state = plain_state(module.state_dict())
    assert all(type(tensor) in (torch.Tensor, nn.Parameter) for tensor in state.values())
    assert sum(tensor.dtype == torch.int8 for tensor in state.values()) == len(found.layers)
    tensors, pairs = split_int8(state)
    other = whole()
    assert tensors.keys() == other.state_dict().keys()
    assert all(tensor.is_floating_point() for name, tensor in tensors.items() if name in pairs)
    other.load_state_dict(tensors)
    torch.testing.assert_close(outputs(other), outputs(module), rtol=1e-4, atol=1e-4)
    assert restore_int8(other, pairs).layers == found.layers
    assert torch.equal(outputs(other), outputs(module))
    again = plain_state(other.state_dict())
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())


def test_what_is_no_pair_is_left_as_it_is():
    codes, scale = torch.ones(3, 2, dtype=torch.int8), torch.ones(3)
    for state in (
        {"a": codes},
        {"a": codes, "a_scale": torch.ones(2)},
        {"a": codes, "a_scale": torch.ones(3, 1)},
        {"a": codes, "a_scale": scale.half()},
        {"a": codes.float(), "a_scale": scale},
        {"a": codes.flatten(), "a_scale": torch.ones(6)},
    ):
        tensors, pairs = split_int8(state)
        assert tensors == state
        assert pairs == {}
    assert restore_int8(whole(), {}) is None
    words = {"model.text_encoder.backbone.embeddings.word_embeddings.weight": (codes, scale)}
    assert restore_int8(whole(), words) is None  # no linear layer's


def test_other_codes_and_scales_are_other_weights():
    module = whole()
    names = [weights_digest(module)]
    to_int8(module, "fusion")
    layer = next(part for part in module.modules() if isinstance(part, nn.Linear) and is_int8(part.weight))
    names.append(weights_digest(module))
    layer.weight.qdata[0, 0] += 1
    names.append(weights_digest(module))
    layer.weight.scale[0] *= 2
    names.append(weights_digest(module))
    assert len(set(names)) == 4


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("text", "int8 is 'text'; give true, false or parts: known: fusion, image_encoder, task, text_encoder"),
        (["fusion", "heads"], "int8 is 'heads'; give true, false or parts"),
        (8, "int8 is '8'; give true"),
        ("task", "int8: task has no linear layer to round; leave int8 out, or choose other parts"),
    ],
)
def test_a_choice_that_cannot_be_is_one_sentence(chosen, words):
    with pytest.raises(ConfigError, match=words):
        to_int8(whole(), chosen)


def test_what_is_rounded_or_has_adapters_is_refused():
    module = whole()
    to_int8(module, "fusion")
    with pytest.raises(ConfigError, match="int8: the checkpoint has weights of 8 bits already; leave int8 out"):
        to_int8(module, "text_encoder")
    module = whole()
    Adapters({"all": Rule("query", rank=2)})(module["model"])
    with pytest.raises(ConfigError, match=r"int8: the checkpoint has adapters, .* by `fusionkit export`"):
        to_int8(module, True)


def test_without_torchao_the_sentence_says_how_to_install_it(monkeypatch):
    pairs = {"model.fusion.layers.0.feed_forward.0.weight": (torch.ones(1, 1, dtype=torch.int8), torch.ones(1))}
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ConfigError, match=r"package torchao: run .*; or take the checkpoint that its weights are of"):
        restore_int8(whole(), pairs)
    with pytest.raises(ConfigError, match=r"int8 needs the package torchao: run .*\[quantised\]'; or leave int8 out"):
        to_int8(whole(), True)
