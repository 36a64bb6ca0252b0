"""Exact search equals sorting all products, in chunks of any size and with ties; groups equal those of all pairs."""

import numpy as np
import pytest
import torch

from fusionkit.inference.nearest import near_groups, nearest
from tests.toys import scattered


def unit(count: int, width: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.nn.functional.normalize(scattered(count, width, seed=seed), dim=1)


@pytest.mark.parametrize("rows", [1, 7, 64, 100, 101, 1000])
@pytest.mark.parametrize("top", [1, 10, 101, 500])
def test_the_nearest_are_those_of_brute_force(rows: int, top: int, tmp_path) -> None:
    vectors, queries = unit(101), unit(300, seed=5)
    np.save(tmp_path / "v.npy", vectors.numpy())
    found = nearest(np.load(tmp_path / "v.npy", mmap_mode="r"), queries, top, rows)
    scores = (queries.double() @ vectors.double().T).float()
    expected = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(found.items, expected.indices[:, :top])
    assert torch.equal(found.scores, expected.values[:, :top])


@pytest.mark.parametrize("rows", [1, 3, 8, 50])
def test_equal_vectors_come_in_their_order(rows: int) -> None:
    vectors = torch.cat([unit(1), -unit(1), torch.zeros(1, 16), -torch.zeros(1, 16), unit(1), unit(1)] * 4)
    found = nearest(vectors.numpy(), unit(1), 24, rows)
    best = [row for row in range(24) if row % 6 in (0, 4, 5)]
    none = [row for row in range(24) if row % 6 in (2, 3)]
    assert found.items[0].tolist() == [*best, *none, *range(1, 24, 6)]
    assert found.scores[0].tolist() == pytest.approx([1] * 12 + [0] * 8 + [-1] * 4)


def test_nothing_is_found_where_there_is_nothing() -> None:
    assert nearest(np.zeros((0, 4), np.float32), torch.ones(2, 4), 3).items.shape == (2, 0)
    assert nearest(np.ones((3, 4), np.float32), torch.ones(0, 4), 3).items.shape == (0, 3)


def all_pairs(vectors: torch.Tensor, threshold: float, contents: list[int]) -> list[list[int]]:
    """Components by walking from each row to all that are near."""
    near = (vectors.double() @ vectors.double().T) >= threshold - 1e-6
    near |= torch.tensor([[a == b for b in contents] for a in contents])
    left, groups = set(range(len(vectors))), []
    while left:
        group, todo = set(), [min(left)]
        while todo:
            row = todo.pop()
            if row not in group:
                group.add(row)
                todo += near[row].nonzero()[:, 0].tolist()
        left -= group
        groups.append(sorted(group))
    return [group for group in groups if len(group) > 1]


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 1.0])
def test_groups_are_those_of_all_pairs(rows: int, threshold: float) -> None:
    vectors = unit(150)
    vectors[140:145] = vectors[3]
    contents = [row % 149 for row in range(150)]  # the last has the bytes of the first
    expected = all_pairs(vectors, threshold, contents)
    assert expected
    assert near_groups(vectors.numpy(), threshold, contents, rows) == expected
    assert near_groups(vectors.numpy()[:0], threshold) == []


def test_all_that_is_equal_is_one_group() -> None:
    vectors = unit(1).repeat(500, 1)
    assert near_groups(vectors.numpy(), 0.9, rows=64) == [list(range(500))]
