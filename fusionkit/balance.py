"""How the losses of a step become the one number that is optimised. Imports torch only.

A balancer is an ``nn.Module`` with ``forward(losses, weights) -> total``, both by objective ("source/task"). It may
hold parameters (they are optimised with the rest) and buffers (they are saved in checkpoints).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Fixed(nn.Module):
    """The weighted sum: doubling a weight doubles the objective's gradient, whatever the other weights are."""

    def forward(self, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """Scalar losses and their weights by objective -> the scalar to optimise."""
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
