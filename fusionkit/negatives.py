"""Which wrong partner a pair is contrasted with in image-text matching."""

from typing import Protocol

import torch
from torch import Tensor


class Negatives(Protocol):
    """Draws one wrong column for each row."""

    def __call__(self, similarity: Tensor, same_image: Tensor) -> tuple[Tensor, Tensor]:
        """similarity (R, C) and same_image (R, C) bool -> column (R,) int64 and whether the row has a valid one (R,) bool."""
        ...


class HardNegatives:
    """Draws column j of row i with probability softmax(similarity_ij) over the columns that show another image (ALBEF).

    Same-image columns are -inf *before* the softmax, so they are never drawn and no floor distorts the law; a row whose
    columns all show its own image is reported invalid. Vectorised: one multinomial draw, no host synchronisation.
    """

    def __call__(self, similarity: Tensor, same_image: Tensor) -> tuple[Tensor, Tensor]:
        is_valid = ~same_image.all(dim=1)
        if not similarity.numel():  # no text in the batch: nothing to draw from
            return torch.zeros_like(is_valid, dtype=torch.int64), torch.zeros_like(is_valid)
        logits = similarity.float().masked_fill(same_image, float("-inf"))
        logits = torch.where(is_valid[:, None], logits, torch.zeros_like(logits))  # any law will do: the row is dropped
        return torch.multinomial(logits.softmax(dim=1), 1).squeeze(1), is_valid


class RandomNegatives:
    """Draws uniformly over the columns that show another image."""

    def __call__(self, similarity: Tensor, same_image: Tensor) -> tuple[Tensor, Tensor]:
        return HardNegatives()(torch.zeros_like(similarity), same_image)
