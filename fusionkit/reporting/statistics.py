"""Means with their intervals, tests between means, corrections for many of them, and exponents of growth."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev, variance
from typing import NamedTuple

import numpy as np

from fusionkit.scoring.bootstrap import Difference
from fusionkit.scoring.sample_scores import Floats

LEVEL = 0.05
ANGLES = np.linspace(0, math.pi / 2, 20_001)


class Estimate(NamedTuple):
    """A mean and half the width of its 95% interval; nan for a single value."""

    mean: float
    margin: float

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if math.isnan(self.margin) else f" ± {self.margin:.1f}")


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and t * s / sqrt(n), for independent normal values such as the scores of several seeds."""
    if len(values) < 2:
        return Estimate(fmean(values), math.nan)
    return Estimate(fmean(values), student_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values)))


def student_p(t: float, freedom: float) -> float:
    """Return the two-sided p-value of Student's t."""
    return float(1 - np.interp(math.atan(abs(t) / math.sqrt(freedom)), ANGLES, _student(freedom)))


def student_quantile(freedom: float) -> float:
    """Return the t beyond which ``LEVEL`` of the distribution lies, both sides together."""
    return math.sqrt(freedom) * math.tan(np.interp(1 - LEVEL, _student(freedom), ANGLES))


def _student(freedom: float) -> Floats:
    """Return the distribution function of |t| at t = sqrt(freedom) tan(``ANGLES``), of density cos(angle) ** (freedom - 1)."""
    density = np.cos(ANGLES) ** (freedom - 1)
    mass = np.concatenate([[0.0], (density[1:] + density[:-1]).cumsum()])
    shares: Floats = mass / mass[-1]
    return shares


def welch(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """Test the difference of two means, such as over seeds, where the variances may differ (Welch 1947).

    None where either has a single value, or nothing varies.
    """
    if min(len(first), len(second)) < 2:
        return None
    parts = [variance(values) / len(values) for values in (first, second)]
    if not sum(parts):
        return None
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    value, margin = fmean(first) - fmean(second), student_quantile(freedom) * error
    return Difference(value, value - margin, value + margin, student_p(value / error, freedom))


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the exact sign test: ties are left out by who counts (Dixon and Mood 1946)."""
    count, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(count, k) for k in range(fewer + 1))
    return min(1.0, float(2 * tail / (1 << count)))  # of whole numbers, so that none is too large


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of several tests, in their order (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Fit the p of cost = c * size ** p by least squares in logarithms, to two decimals."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    middle = fmean(x)
    slope = sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)
    return round(slope, 2) + 0.0  # no -0.0
