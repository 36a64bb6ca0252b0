"""What every balancer makes of five steps of three losses, to four decimals, and the limits of its numbers."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from torch import nn

from fusionkit.balance.base import Step
from fusionkit.errors import ConfigError
from tests.toys import number_of, scatter_weights, scattered

NAMES = ("a/itc", "a/itm", "b/mlm")
WEIGHTS = dict(zip(NAMES, (1.0, 0.5, 2.0), strict=True))
BALANCERS = {  # by class: options
    "base.Fixed": {"gradients_every_n_steps": 2},
    "gradnorm.GradNorm": {"every_n_steps": 2, "gradients_every_n_steps": 3},
    "pcgrad.PCGrad": {},
    "schedule.Schedule": {"points": {"a": {"itm": [[0, 0], [4, 1]]}, "b": {"mlm": [[1, 2], [3, 1]]}}},
    "uncertainty.Uncertainty": {},
    "dwa.DWA": {"window": 2},
}
DEFAULTS = {
    "base.Fixed": {"gradients_every_n_steps": 0},
    "gradnorm.GradNorm": {"alpha": 1.5, "lr": 0.025, "every_n_steps": 1, "gradients_every_n_steps": 0},
    "pcgrad.PCGrad": {},
    "schedule.Schedule": {"gradients_every_n_steps": 0},
    "uncertainty.Uncertainty": {"gradients_every_n_steps": 0},
    "dwa.DWA": {"temperature": 2.0, "window": 100, "gradients_every_n_steps": 0},
}


FILE = Path(__file__).with_name("steps.json")  # written by python -m tests.balance.test_steps


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.tasks = nn.Linear(4, 3), nn.Linear(3, 3)
        self.tasks.weight.data.mul_(-1)

    def losses(self, seed):
        out = self.tasks(self.model(scattered(2, 4, seed=seed)).tanh())
        return dict(zip(NAMES, (out - torch.tensor([2.0, -1.0, 0.5])).square().mean(dim=0), strict=True))


def numbers_of(name):
    """Of each micro-batch the loss, a number of the gradients, one of what is logged, and how much that is."""
    network = scatter_weights(Network())
    balancer = get_class(f"fusionkit.balance.{name}")(**BALANCERS[name])
    balancer.start(NAMES)
    found = []
    for number in range(5):
        for micro in range(2):
            step = Step(number, 5.0, micro == 0, dict(network.named_parameters()))
            balanced = balancer(network.losses(number), WEIGHTS, step)
            network.zero_grad()
            balanced.loss.backward()
            logged = torch.tensor([float(value) for _, value in sorted(balanced.metrics.items())])
            grads = torch.cat([p.grad.flatten() for p in network.parameters()])
            found.append([round(balanced.loss.item(), 4), number_of(grads), number_of(logged), len(logged)])
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= 0.05 * parameter.grad
    return found


@pytest.mark.parametrize("name", BALANCERS)
def test_steps(name):
    for found, known in zip(numbers_of(name), json.loads(FILE.read_text())[name], strict=True):
        assert found == pytest.approx(known, rel=2e-4, abs=1e-3)


@pytest.mark.parametrize("name", BALANCERS)
def test_defaults(name):
    parameters = inspect.signature(get_class(f"fusionkit.balance.{name}")).parameters.values()
    assert {p.name: p.default for p in parameters if isinstance(p.default, int | float)} == DEFAULTS[name]


def test_factors_that_were_given_do_not_move_on_and_who_reads_gradients():
    balancer = get_class("fusionkit.balance.gradnorm.GradNorm")()
    balancer.start(NAMES)
    given = balancer.factors(torch.ones(3), Step(0, 2.0, True, {}))
    balancer.next_factors += 1
    assert balancer.factors(torch.ones(3), Step(1, 2.0, True, {})).tolist() == [2.0] * 3
    assert given.tolist() == [1.0] * 3
    assert {name: get_class(f"fusionkit.balance.{name}")().reads_gradients for name in BALANCERS} == {
        name: name in ("gradnorm.GradNorm", "pcgrad.PCGrad") for name in BALANCERS
    }


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("base.Fixed", {"gradients_every_n_steps": 0}, {"gradients_every_n_steps": -1}),
        ("gradnorm.GradNorm", {"lr": 1e-9, "every_n_steps": 1}, {"lr": 0}),
        ("gradnorm.GradNorm", {}, {"every_n_steps": 0}),
        ("dwa.DWA", {"temperature": 1e-9, "window": 1}, {"temperature": 0}),
        ("dwa.DWA", {}, {"window": 0}),
    ],
)
def test_limits(name, good, bad):
    made = get_class(f"fusionkit.balance.{name}")
    assert made(**good)
    with pytest.raises(ConfigError, match="balance"):
        made(**bad)


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: numbers_of(name) for name in BALANCERS}, indent=1) + "\n")
