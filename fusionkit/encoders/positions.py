"""Position embeddings for another image size."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit.errors import ConfigError


def resize_positions(table: Tensor, grid: tuple[int, int], num_prefix_tokens: int = 1) -> Tensor:
    """Learnt positions (1, P + N, D) of a square grid of N -> (1, P + rows * columns, D) of a grid (rows, columns).

    Bicubic without corner alignment or antialiasing, as ALBEF, BLIP, METER and X-VLM resize theirs (timm antialiases). The
    first P tokens ([CLS], distillation) have no place and stay. Raises ConfigError where N is no square.
    """
    prefix, places = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:]
    side = math.isqrt(places.shape[1])
    if side * side != places.shape[1]:
        raise ConfigError(
            f"position embeddings: {places.shape[1]} places after {num_prefix_tokens} prefix tokens are no square grid; "
            "check num_prefix_tokens"
        )
    if (side, side) == tuple(grid):
        return table
    square = places.unflatten(1, (side, side)).permute(0, 3, 1, 2).float()  # (1, D, side, side)
    resized = F.interpolate(square, size=tuple(grid), mode="bicubic", align_corners=False)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
