"""Multinomial logistic regression with an L2 penalty, and the search for its strength, as CLIP's linear probe has them.

Radford et al. 2021 (https://arxiv.org/abs/2103.00020), appendix A.3: L-BFGS with at most 1,000 iterations; the strength between
1e-6 and 1e6 by a binary search down to 8 steps a decade. There scikit-learn fits; this is its objective.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ITERATIONS = 1000
PER_DECADE = 8
DECADES = 6
COARSE = 2 * PER_DECADE  # 1e-6, 1e-4, ... 1e6


@dataclass(frozen=True)
class Logistic:
    """A fitted classifier: weight (C, D), bias (C,), fp64, and the largest entry of the objective's gradient where it stopped."""

    weight: Tensor
    bias: Tensor
    gradient: float

    def probabilities(self, features: Tensor) -> Tensor:
        """Features (N, D) -> (N, C)."""
        return (features @ self.weight.T + self.bias).softmax(dim=1)


def objective(weight: Tensor, bias: Tensor, features: Tensor, targets: Tensor, strength: float) -> Tensor:
    """(sum of -log p(target) + strength / 2 * |weight|^2) / N; the bias is free, as in scikit-learn (C = 1 / strength)."""
    loss = F.cross_entropy(features @ weight.T + bias, targets)
    return loss + strength / (2 * len(features)) * weight.square().sum()


def fit(features: Tensor, targets: Tensor, classes: int, strength: float) -> Logistic:
    """The minimum of ``objective`` over features (N, D) and targets (N,) below ``classes``, from zeros, in fp64 on the CPU.

    The same minimum is looked for in coordinates in which it lies less narrowly: features less their mean, which the free bias
    takes up, along the axes of their covariance, each scaled by about the curvature that the objective has there.
    """
    features = features.double()
    mean = features.mean(dim=0)
    variances, axes = torch.linalg.eigh((features - mean).T @ (features - mean) / len(features))
    scale = (variances.clamp(min=0) / classes + strength / len(features)).sqrt()  # (D,)
    turned = (features - mean) @ axes / scale
    scaled = torch.zeros(classes, len(mean), dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [scaled, shift],
        max_iter=ITERATIONS,
        max_eval=2 * ITERATIONS,
        tolerance_grad=1e-10,
        tolerance_change=0.0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = F.cross_entropy(turned @ scaled.T + shift, targets)
        value: Tensor = loss + strength / (2 * len(features)) * (scaled / scale).square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        search.step(closure)
        weight = ((scaled / scale) @ axes.T).detach().requires_grad_()
        bias = (shift - weight @ mean).detach().requires_grad_()
        slopes = torch.autograd.grad(objective(weight, bias, features, targets, strength), (weight, bias))
    largest = max(slope.abs().max().item() for slope in slopes)
    return Logistic(weight.detach(), bias.detach(), largest)


def choose_strength(accuracy: Callable[[float], float]) -> float:
    """The strength at the peak of ``accuracy``, of equal ones the strongest: halves the interval around the best so far."""
    end, found = DECADES * PER_DECADE, dict[int, float]()
    places, step = list(range(-end, end + 1, COARSE)), COARSE
    while True:
        found |= {at: accuracy(10 ** (at / PER_DECADE)) for at in places if at not in found and abs(at) <= end}
        peak = max(found, key=lambda at: (found[at], at))
        if step == 1:
            return float(10 ** (peak / PER_DECADE))
        step //= 2
        places = [peak - step, peak + step]
