"""Values come back from a column as the very values they were, of the very types."""

import math

import numpy as np
import pytest

from fusionkit.data.tables.column import ABSENT, Column, column, count_distinct, joined
from fusionkit.files.unicode import BadText


def same(one, two) -> bool:
    """Equal, and of one type throughout."""
    if type(one) is not type(two):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    return one == two or (isinstance(one, float) and math.isnan(one) and math.isnan(two))


VALUES = [
    [1, 2, -(2**63)],
    [1, 2**63],
    ["a", "ü", ""],
    [1, "1", "a/1"],
    [1, "\x001"],
    [0.5, float("nan"), float("inf"), -0.0],
    [True, False],
    [1, True, 0.5],
    [["yes", "no"], [], ["ü"]],
    [(1.0, 2.0, 3.0, 4.0), (0.0, 0.0, 1.0, 1.0)],
    [[1, 2, 3, 4]],
    [[1, 2.0, 3, 4]],
    [(1, 2), [1, 2]],
    [None, "a"],
    [None],
    [[], []],
    [{"a": [1, (2, 3)], "b": None}, {1: "x", (2,): "y"}, {"\0": 1}],
    [b"\xff\0", b""],
    ["half \ud83d", "whole"],
    [],
]


@pytest.mark.parametrize("values", VALUES, ids=repr)
def test_values_come_back_as_they_were(values):
    made = column(values)
    assert len(made) == len(values)
    assert same(made.values(), values)
    gaps = [each for value in values for each in (ABSENT, value)]
    assert same(column(gaps).values()[1::2], values)
    assert all(value is ABSENT for value in column(gaps).values()[::2])
    assert same(column(gaps).values(1, 3), gaps[1:4])
    assert same(made.take(np.arange(len(values))[::-1]).values(), values[::-1])


def test_numbers_of_numpy_become_pythons():
    values = column([np.float32(0.5), np.array([1, 2]), np.int64(3)]).values()
    assert same(values, [0.5, [1, 2], 3])


def test_what_is_no_value_is_told():
    with pytest.raises(BadText, match=r"a fact is a set, but has to be a text, a number, or a list or mapping of such"):
        column([{1, 2}])


@pytest.mark.parametrize("first", [values for values in VALUES if bytes not in map(type, values)], ids=repr)
def test_columns_of_any_two_kinds_are_joined(first):
    for second in (["x", "y"], [7], [(0.5, 1.5)], []):
        both = joined([column(first), 2, column(second)]).values()
        assert same(both[: len(first)], first)
        assert both[len(first) : len(first) + 2] == [ABSENT, ABSENT]
        assert same(both[len(first) + 2 :], second)
    assert isinstance(joined([3]), Column)


def test_a_number_and_a_text_of_the_same_digits_are_one_id():
    assert count_distinct(column([1, "1", 2])) == 2
    assert count_distinct(column([1, "a", 2])) == 3
    assert count_distinct(column([7, 8, 7])) == 2
    assert count_distinct(column([1, 2**63])) is None
