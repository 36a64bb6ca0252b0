"""Exact search among many vectors in memory that is bounded: the nearest of each query, and groups of near ones."""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionkit.inference.candidates import TopK

Vectors = NDArray[np.float32]
ROWS, QUERIES = 8192, 256  # vectors and queries compared at a time: 16 MB of products
PAIRS = 1024  # vectors on either side of a block of pairs
ROUNDING = 1e-6  # by which the cosine of two equal vectors may be below 1
MANTISSA, PLACE = 2**31 - 1, 2**32


def nearest(vectors: Vectors, queries: Tensor, top: int, rows: int = ROWS) -> TopK:
    """The ``top`` vectors of (N, E) with the largest products with each query (Q, E), best first; equal ones in their order.

    All N are compared, ``rows`` at a time. A product is summed in float64 and rounded to float32: it is the same
    wherever a vector stands, whatever it is compared beside. ``vectors`` may be mapped from a file.
    """
    top = min(top, len(vectors))
    blocks = queries.double().split(QUERIES)
    best = [torch.zeros(len(block), 0, dtype=torch.int64) for block in blocks]
    for start in range(0, len(vectors), rows):
        part = torch.from_numpy(vectors[start : start + rows].astype(np.float64))
        for number, block in enumerate(blocks):
            keys = torch.cat([best[number], _keys((block @ part.T).float(), start)], dim=1)
            best[number] = keys.topk(min(top, keys.shape[1]), dim=1).values
    found = torch.cat(best) if best else torch.zeros(0, top, dtype=torch.int64)
    return TopK(PLACE - 1 - found % PLACE, _scores(found))


def _keys(scores: Tensor, first: int) -> Tensor:
    """Whole numbers (Q, R) in the order of scores (Q, R), equal ones in that of their rows from ``first`` on; all differ."""
    bits = (scores + 0.0).view(torch.int32)  # a zero has one sign
    ranks = torch.where(bits < 0, bits ^ MANTISSA, bits).long()
    return ranks * PLACE + (PLACE - 1 - torch.arange(first, first + scores.shape[1]))


def _scores(keys: Tensor) -> Tensor:
    """The scores of keys, float32."""
    ranks = keys.div(PLACE, rounding_mode="floor").int()
    return torch.where(ranks < 0, ranks ^ MANTISSA, ranks).view(torch.float32)


def near_groups(
    vectors: Vectors, threshold: float, contents: Sequence[Hashable] = (), rows: int = PAIRS
) -> list[list[int]]:
    """Groups of two or more rows, in the order of their first: each row is joined with those of a cosine from ``threshold`` on.

    So the ends of a chain may be further apart. Rows of one content are joined whatever their vectors say.
    """
    groups = np.arange(len(vectors))
    firsts = {content: row for row, content in reversed(list(enumerate(contents)))}
    if firsts:
        _join(groups, np.arange(len(vectors)), np.array([firsts[content] for content in contents]))
    for start in range(0, len(vectors), rows):
        part = torch.from_numpy(np.array(vectors[start : start + rows], dtype=np.float32))
        for other in range(start, len(vectors), rows):
            others = torch.from_numpy(np.array(vectors[other : other + rows], dtype=np.float32))
            one, two = ((part @ others.T) >= threshold - ROUNDING).nonzero(as_tuple=True)
            _join(groups, one.numpy() + start, two.numpy() + other)
    order = np.argsort(groups, kind="stable")
    edges = np.flatnonzero(np.diff(groups[order], prepend=-1))
    return [part.tolist() for part in np.split(order, edges[1:]) if len(part) > 1]


def _join(groups: NDArray[np.int64], one: NDArray[np.int64], two: NDArray[np.int64]) -> None:
    """Join the groups of pairs of rows; a group is called by its first row."""
    while len(one):
        first, last = np.minimum(groups[one], groups[two]), np.maximum(groups[one], groups[two])
        apart = first < last
        one, two, first, last = one[apart], two[apart], first[apart], last[apart]
        np.minimum.at(groups, last, first)
        while (groups[groups] != groups).any():
            groups[:] = groups[groups]
