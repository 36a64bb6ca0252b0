"""What every balancer promises. Each check takes a function that builds it, and raises AssertionError in a sentence."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fusionkit.balance import Balancer, Step
from fusionkit.balance.base import Balanced
from fusionkit.contracts.toys import require

NAMES = ("coco/itc", "coco/itm", "vqa/vqa")
Build = Callable[[], Balancer]


def begin(build: Build) -> tuple[Balancer, nn.Parameter]:
    """A balancer of three objectives over one shared parameter (2,)."""
    balancer = build()
    balancer.start(NAMES)
    return balancer, nn.Parameter(torch.tensor([0.4, 2.0]))


def losses_of(point: Tensor) -> dict[str, Tensor]:
    """Squared distances from three points, no two of one size."""
    ends = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, 3.0]])
    return {name: (point - end).square().sum() for name, end in zip(NAMES, ends, strict=True)}


def balance(balancer: Balancer, point: nn.Parameter, number: int, weights: Mapping[str, float]) -> Balanced:
    """One step of a run of 10."""
    balanced: Balanced = balancer(losses_of(point), weights, Step(number, 10.0, True, {"model.point": point}))
    return balanced


def the_loss_is_finite_and_the_weights_are_logged(build: Build) -> None:
    """At each of several steps: one finite number that trains, and ``train/<objective>_weight`` of each objective."""
    balancer, point = begin(build)
    for number in range(4):
        balanced = balance(balancer, point, number, dict.fromkeys(NAMES, 1.0))
        require(balanced.loss.shape == () and balanced.loss.isfinite(), f"the loss of step {number} is {balanced.loss}")
        missing = [name for name in NAMES if f"train/{name}_weight" not in balanced.metrics]
        require(not missing, f"metrics lack train/{missing[0] if missing else ''}_weight")
        balanced.loss.backward()
        require(
            point.grad is not None and bool(point.grad.isfinite().all()),
            f"the gradient of step {number} is {point.grad}",
        )


def the_users_weights_multiply(build: Build) -> None:
    """An objective of weight 0 changes nothing of the gradient; one of twice the weight has twice its part in the loss."""
    balancer, point = begin(build)
    other = copy.deepcopy(balancer)
    once = balance(balancer, point, 0, dict.fromkeys(NAMES, 1.0)).metrics
    twice = balance(other, point, 0, dict.fromkeys(NAMES, 2.0)).metrics
    for name in NAMES:
        one, two = float(once[f"train/{name}_weight"]), float(twice[f"train/{name}_weight"])
        require(
            abs(two - 2 * one) <= 1e-4 * abs(two), f"twice the weight of {name} is {two:.4g}, but once is {one:.4g}"
        )


def its_state_is_complete(build: Build) -> None:
    """One that is restored from ``state_dict`` goes on as if it had not been stopped."""
    balancer, point = begin(build)
    weights = {name: 1.0 + place for place, name in enumerate(NAMES)}
    for number in range(3):
        balance(balancer, point, number, weights)
    restored, _ = begin(build)
    restored.load_state_dict(balancer.state_dict())
    torch.manual_seed(0)
    ours = balance(balancer, point, 3, weights).loss
    torch.manual_seed(0)
    theirs = balance(restored, point, 3, weights).loss
    require(torch.equal(ours, theirs), f"after three steps the loss is {ours.item():.6g}, restored {theirs.item():.6g}")


CHECKS = (the_loss_is_finite_and_the_weights_are_logged, the_users_weights_multiply, its_state_is_complete)
