"""Logistic regression against an independent solver, and the search for its strength against the whole grid."""

import numpy as np
import pytest
import torch

from fusionkit.inference.logistic import choose_strength, fit, objective


def drawn(apart: float, count: int = 60, size: int = 5, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % classes
    centres = apart * torch.eye(size, dtype=torch.float64)[:classes]
    return centres[targets] + torch.randn(count, size, generator=draw, dtype=torch.float64), targets


def by_hand(at: np.ndarray, x: np.ndarray, y: np.ndarray, strength: float) -> tuple[float, np.ndarray]:
    """The objective and its gradient, written anew in numpy."""
    weight, bias = at[: 3 * x.shape[1]].reshape(3, -1), at[3 * x.shape[1] :]
    logits = x @ weight.T + bias
    logits = logits - logits.max(axis=1, keepdims=True)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(chances[np.arange(len(y)), y]).sum() + strength / 2 * (weight**2).sum()
    slope = chances - np.eye(3)[y]
    return loss / len(y), np.concatenate([(slope.T @ x + strength * weight).ravel(), slope.sum(axis=0)]) / len(y)


@pytest.mark.parametrize("apart", [1.0, 30.0])  # classes that overlap, and that a plane tells apart
@pytest.mark.parametrize("strength", [1e-2, 1.0, 1e3])
def test_the_fit_is_the_optimum(apart: float, strength: float) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    features, targets = drawn(apart)
    made = fit(features, targets, 3, strength)
    x, y = features.numpy(), targets.numpy()
    found = np.concatenate([made.weight.numpy().ravel(), made.bias.numpy()])
    value, gradient = by_hand(found, x, y, strength)
    assert objective(made.weight, made.bias, features, targets, strength).item() == pytest.approx(value, rel=1e-12)
    assert np.abs(gradient).max() < 1e-7
    assert made.gradient == pytest.approx(np.abs(gradient).max(), abs=1e-12)
    options = {"gtol": 1e-10, "maxiter": 5000}
    other = optimize.minimize(by_hand, np.zeros(18), (x, y, strength), jac=True, method="BFGS", options=options)
    assert value == pytest.approx(other.fun, abs=1e-10)
    assert np.abs(found[:15] - other.x[:15]).max() < 1e-4
    right = (made.probabilities(features).argmax(dim=1) == targets).double().mean().item()
    assert (right == 1.0) is (apart > 1)


def test_a_fit_is_the_same_to_the_last_bit() -> None:
    features, targets = drawn(1.0)
    first, second = (fit(features, targets, 3, 0.1) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


@pytest.mark.parametrize("peak", [-48, -47, -7, 0, 3, 17, 48])
def test_the_search_finds_a_single_peak_of_the_grid_in_few_fits(peak: int) -> None:
    asked: list[float] = []

    def accuracy(strength: float) -> float:
        asked.append(strength)
        return -abs(np.log10(strength) * 8 - peak)

    assert choose_strength(accuracy) == pytest.approx(10 ** (peak / 8))
    assert asked[:7] == pytest.approx([1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])
    assert len(asked) == len(set(asked)) <= 15
    assert min(asked) >= 1e-6
    assert max(asked) <= 1e6


def test_of_strengths_that_are_as_good_the_strongest_is_taken() -> None:
    assert choose_strength(lambda strength: 0.5) == pytest.approx(1e6)
    assert choose_strength(lambda strength: float(strength < 2)) == pytest.approx(10 ** (2 / 8))
