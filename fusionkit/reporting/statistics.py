"""Means with their intervals, and exponents of growth."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

# 0.975 quantiles of Student's t by degrees of freedom, 1 to 20; beyond, the normal law's is close enough
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)


class Estimate(NamedTuple):
    """A mean and half the width of its 95% interval; nan for a single value."""

    mean: float
    margin: float

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if math.isnan(self.margin) else f" ± {self.margin:.1f}")


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and t * s / sqrt(n): the values are taken as independent and normal, such as the scores of several seeds."""
    if len(values) < 2:
        return Estimate(fmean(values), math.nan)
    quantile = STUDENT[len(values) - 2] if len(values) - 2 < len(STUDENT) else 1.96
    return Estimate(fmean(values), quantile * stdev(values) / math.sqrt(len(values)))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The p of cost = c * size ** p, by least squares in logarithms, to two places."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    middle = fmean(x)
    slope = sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)
    return round(slope, 2) + 0.0  # no -0.0
