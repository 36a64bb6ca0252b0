"""Intervals and exponents with known answers."""

import math

import pytest

from fusionkit.reporting.statistics import estimate, exponent, holm, welch


def test_the_interval_is_students():
    mean, margin = estimate([1.0, 2.0, 3.0])
    assert mean == 2
    assert margin == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)  # s = 1, two degrees of freedom


def test_the_interval_of_many_values_is_nearly_the_normal_one():
    values = [0.0, 2.0] * 50
    assert estimate(values).margin == pytest.approx(1.984 * math.sqrt(100 / 99) / 10, rel=1e-3)


def test_a_difference_of_means_is_tested_as_welch_did():
    found = welch([1.0, 2.0, 3.5], [4.0, 5.0, 7.0])
    assert found == pytest.approx((-3.166667, -6.385466, 0.052132, 0.052323), abs=1e-5)  # scipy.stats.ttest_ind
    assert welch([1.0], [2.0, 3.0]) is None
    assert welch([1.0, 1.0], [2.0, 2.0]) is None


def test_many_tests_need_more():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_a_single_value_has_no_interval():
    assert math.isnan(estimate([5.0]).margin)
    assert str(estimate([5.0])) == "5.0"
    assert str(estimate([4.0, 6.0])) == "5.0 ± 12.7"


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_of_a_power_law(power):
    sizes = [64, 128, 1024]
    assert exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)
