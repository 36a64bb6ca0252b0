"""Texts that hold several images, each at its place: which token sees which (Flamingo, Idefics)."""

from typing import NamedTuple

import torch
from torch import Tensor


class PlacedImages(NamedTuple):
    """The images of T texts, up to K each, in the order of their places."""

    rows: Tensor  # (T, K) int64, the row of each among the prepared images
    real: Tensor  # (T, K) bool, False where a text has fewer
    first: Tensor  # (T, K) int64, the number of the first token, padding counted, that sees it

    @classmethod
    def of(cls, image_index: Tensor) -> "PlacedImages":
        """From (T, K, 2): rows of images, -1 for none, and the tokens that see them first."""
        rows, first = image_index.unbind(dim=2)
        return cls(rows.clamp(min=0), rows >= 0, first)

    def before(self, start: int, length: int) -> Tensor:
        """(T, L, K) bool: which images stand before each of ``length`` tokens from number ``start`` on."""
        tokens = torch.arange(start, start + length, device=self.first.device)
        return (self.first[:, None] <= tokens[:, None]) & self.real[:, None]

    def latest(self, start: int, length: int) -> Tensor:
        """(T, L, K) bool: of these the last one, if there is any."""
        before = self.before(start, length)
        return before & (before.cumsum(dim=2) == before.sum(dim=2, keepdim=True))


def is_placed(image_index: Tensor) -> bool:
    """Whether an ``image_index`` says where the images of a text stand, (T, K, 2), and not just which one it has, (T,)."""
    return image_index.dim() == 3
