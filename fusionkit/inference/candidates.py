"""The arithmetic of two-stage retrieval: the nearest of every query, the pairs to score again, and the list that results."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 1024  # queries sorted at a time, so that a large matrix is never held a second time


class TopK(NamedTuple):
    """The best items of every query, best first."""

    items: Tensor  # (Q, M) int64
    scores: Tensor  # (Q, M)

    def first(self, depth: int) -> "TopK":
        """The ``depth`` best of each."""
        return TopK(self.items[:, :depth], self.scores[:, :depth])


def best(scores: Tensor, depth: int) -> TopK:
    """The ``depth`` best columns of each row of scores (Q, N); equal ones in the order of the columns."""
    parts = [rows.sort(dim=1, descending=True, stable=True) for rows in scores.split(ROWS)]
    return TopK(
        torch.cat([part.indices[:, :depth] for part in parts]), torch.cat([part.values[:, :depth] for part in parts])
    )


def on_top(first: TopK, scores: Tensor) -> TopK:
    """The first k items of each query (Q, M) by new scores (Q, k) float64, and below them the others in their old order.

    The others' old scores are shifted, query by query, to begin 1 below its lowest new one.
    """
    k = scores.shape[1]
    new, order = scores.sort(dim=1, descending=True, stable=True)
    rest = first.scores[:, k:].double()
    items = torch.cat([first.items[:, :k].gather(1, order), first.items[:, k:]], dim=1)
    return TopK(items, torch.cat([new, rest - rest[:, :1] + new[:, -1:] - 1], dim=1))


@dataclass(frozen=True)
class Candidates:
    """The pairs that two rankings of T captions and I images want scored again, each once, those of an image together."""

    by_text: Tensor  # (T, k) pairs of each caption with its nearest images
    by_image: Tensor  # (I, k') pairs of each image with its nearest captions
    pairs: Tensor  # (P,) all of them, ascending; a pair is the number image * T + caption
    texts: int  # T

    @classmethod
    def of(cls, text_to_image: TopK, image_to_text: TopK, k: int) -> "Candidates":
        texts = len(text_to_image.items)
        by_text = text_to_image.items[:, :k] * texts + torch.arange(texts)[:, None]
        by_image = torch.arange(len(image_to_text.items))[:, None] * texts + image_to_text.items[:, :k]
        return cls(by_text, by_image, torch.cat([by_text.flatten(), by_image.flatten()]).unique(), texts)

    @property
    def image_rows(self) -> Tensor:
        """The image of each pair (P,), ascending."""
        return self.pairs // self.texts

    @property
    def text_rows(self) -> Tensor:
        """The caption of each pair (P,)."""
        return self.pairs % self.texts

    def spread(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the pairs (P,) as scores of each caption's images (T, k) and of each image's captions (I, k')."""
        by_text, by_image = (scores[torch.searchsorted(self.pairs, pairs)] for pairs in (self.by_text, self.by_image))
        return by_text, by_image


def blocks(image_rows: Tensor, pairs: int, images: int) -> list[slice]:
    """Cut ascending image rows (P,) into blocks of at most ``images`` whole images with at most ``pairs`` pairs in all.

    An image with more pairs is a block of its own.
    """
    ends = image_rows.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
    edges, held = [0], 0
    for before, end in zip([0, *ends], ends, strict=False):
        if held and (end - edges[-1] > pairs or held == images):
            edges.append(before)
            held = 0
        held += 1
    return [slice(start, stop) for start, stop in zip(edges, [*edges[1:], len(image_rows)], strict=True)]
