"""Intervals and exponents with known answers."""

import math

import pytest

from fusionkit.reporting.statistics import estimate, exponent


def test_the_interval_is_students():
    mean, margin = estimate([1.0, 2.0, 3.0])
    assert mean == 2
    assert margin == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)  # s = 1, two degrees of freedom


def test_the_interval_of_many_values_is_the_normal_one():
    values = [0.0, 2.0] * 50
    assert estimate(values).margin == pytest.approx(1.96 * math.sqrt(100 / 99) / 10)


def test_a_single_value_has_no_interval():
    assert math.isnan(estimate([5.0]).margin)
    assert str(estimate([5.0])) == "5.0"
    assert str(estimate([4.0, 6.0])) == "5.0 ± 12.7"


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_of_a_power_law(power):
    sizes = [64, 128, 1024]
    assert exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)
