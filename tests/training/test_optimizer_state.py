"""The state of an optimiser belongs to parameters by name, its options to the command line."""

from functools import partial

import pytest
import torch
from torch import nn

from fusionkit.errors import ConfigError, DataError
from fusionkit.training.muon import build_muon
from fusionkit.training.optim import build_optimizer
from fusionkit.training.optimizer_state import fitted_schedule, fitted_state, is_fitting, parameter_names

KINDS = {"adamw": build_optimizer, "muon": partial(build_muon, matrices="^a")}


def network(*names: str) -> nn.ModuleDict:
    """Layers of one shape, so that a state given to the wrong one would not be seen by its shape."""
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(3, 3) for name in names or ("a", "b")})


def stepped(net, build, **options):
    """An optimiser after one step, with gradients that tell parameters apart."""
    optimizer = build(list(net.named_parameters()), lr=0.1, **options)
    for number, parameter in enumerate(net.parameters(), 1):
        parameter.grad = torch.full_like(parameter, float(number))
    optimizer.step()
    return optimizer


def moments(optimizer, net) -> dict[str, dict[str, torch.Tensor]]:
    states = {p: state for part in getattr(optimizer, "parts", [optimizer]) for p, state in part.state.items()}
    return {name: states[parameter] for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_follows_its_parameter_into_other_groups(kind):
    net, build = network(), KINDS[kind]
    before = stepped(net, build)
    names = parameter_names(before, net.named_parameters())
    after = build(list(net.named_parameters()), lr=0.5, weight_decay=0.0, rules=[["b", 2, None]])
    assert parameter_names(after, net.named_parameters()) != names
    after.load_state_dict(fitted_state(before.state_dict(), names, after, net.named_parameters(), "x.ckpt"))
    for name, state in moments(before, net).items():
        for key, value in state.items():
            assert torch.equal(moments(after, net)[name][key], value), (name, key)
    assert {group["weight_decay"] for group in after.param_groups} == {0.0}
    assert max(group["lr"] for group in after.param_groups) == 1.0


def test_a_parameter_without_a_state_has_none_after():
    net = network()
    before = build_optimizer(net.named_parameters(), lr=0.1)
    names = parameter_names(before, net.named_parameters())
    assert fitted_state(before.state_dict(), names, before, net.named_parameters(), "x")["state"] == {}


@pytest.mark.parametrize(("layers", "told"), [(["a"], "was trained, and is not any more"), (["a", "b", "c"], "now is")])
def test_other_trainable_parameters_are_refused_by_name(layers, told):
    first = network()
    before = stepped(first, build_optimizer)
    names = parameter_names(before, first.named_parameters())
    net = network(*layers)
    after = build_optimizer(net.named_parameters(), lr=0.1)
    name = "b.weight" if len(layers) == 1 else "c.weight"
    with pytest.raises(ConfigError, match=rf"^{name} .*{told}.*checkpoint=x.ckpt"):
        fitted_state(before.state_dict(), names, after, net.named_parameters(), "x.ckpt")


def test_a_parameter_that_another_part_moves_is_refused_by_name():
    net = network()
    before = stepped(net, KINDS["muon"])
    names = parameter_names(before, net.named_parameters())
    after = build_muon(list(net.named_parameters()), lr=0.1, matrices="weight")
    with pytest.raises(
        ConfigError, match=r"optimizer: b.weight was moved by another rule in x; give optimizer.matrices"
    ):
        fitted_state(before.state_dict(), names, after, net.named_parameters(), "x")


def test_a_checkpoint_without_names_goes_on_in_the_same_groups_alone():
    net = network()
    before = stepped(net, build_optimizer)
    same = build_optimizer(net.named_parameters(), lr=0.5)
    same.load_state_dict(fitted_state(before.state_dict(), None, same, net.named_parameters(), "x"))
    assert torch.equal(moments(same, net)["b.bias"]["exp_avg"], moments(before, net)["b.bias"]["exp_avg"])
    assert same.param_groups[0]["lr"] == 0.5
    one = build_optimizer(net.named_parameters(), lr=0.5, weight_decay=0.0)
    with pytest.raises(ConfigError, match=r"optimizer: x was written by an earlier fusionkit"):
        fitted_state(before.state_dict(), None, one, net.named_parameters(), "x")


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_a_damaged_state_is_refused(key):
    net = network()
    before = stepped(net, build_optimizer)
    names = parameter_names(before, net.named_parameters())
    state = before.state_dict()
    with pytest.raises(DataError, match=r"checkpoint x: the optimiser's state is not whole"):
        fitted_state(state, names[:-1], before, net.named_parameters(), "x")
    for value in (torch.zeros(7), 5, None):
        state["state"][3][key] = value
        with pytest.raises(DataError, match=rf"checkpoint x: the optimiser's {key} of b.bias has another shape"):
            fitted_state(state, names, before, net.named_parameters(), "x")


def test_what_a_strategy_names_or_a_schedule_keeps_is_left_as_it_is():
    numbered, named = ({"state": {}, "param_groups": [{"params": [key]}]} for key in (0, "model.weight"))
    factors, own = {"lr_lambdas": [None]}, {"total_steps": 9}
    assert is_fitting([numbered], [factors])
    assert is_fitting([{"parts": [numbered, numbered]}], [])
    assert not is_fitting([{"parts": [numbered, named]}], [factors])
    assert not is_fitting([numbered], [own])


def test_a_schedule_has_the_base_rates_of_the_new_groups_and_the_time_that_it_has_spent():
    stored = {"last_epoch": 4, "_step_count": 5, "base_lrs": [1.0], "lr_lambdas": [{"spent": 9.0}]}
    assert fitted_schedule([stored], [0.5, 0.25], 7) == {
        "last_epoch": 4,
        "_step_count": 5,
        "base_lrs": [0.5, 0.25],
        "lr_lambdas": [{"spent": 9.0}] * 2,
    }
    new = fitted_schedule([], [0.5], 7)
    assert (new["last_epoch"], new["_step_count"], new["lr_lambdas"]) == (7, 8, [None])
