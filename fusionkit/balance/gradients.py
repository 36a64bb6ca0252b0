"""Gradients of single objectives, and a scalar that has a gradient of one's choice.

``torch.autograd.grad`` does not touch ``.grad``, so DDP's reducer does not see these passes; what is optimised in the end
goes through an ordinary backward pass (``with_gradient``), which it does see. So accumulation and DDP need no special case.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.distributed import mean_over_ranks


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """This rank's gradient of a scalar for each parameter, zeros where it does not depend on it; keeps the graph."""
    if not loss.requires_grad:  # all that this objective would train is frozen
        return [torch.zeros_like(parameter) for parameter in parameters]
    # a training step runs under autocast, but the operations of a backward pass have their types from the forward pass
    with torch.autocast(loss.device.type, enabled=False):
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def gradient_matrix(losses: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Gradients (K, N) of losses (K,), flat over all parameters, averaged over the ranks; no parameters: zeros (K, 1)."""
    if not parameters:
        return losses.detach().new_zeros(len(losses), 1)
    matrix = losses.detach().new_empty(len(losses), sum(parameter.numel() for parameter in parameters))
    for row, loss in zip(matrix, losses.unbind(), strict=True):
        flatten_into(row, gradients(loss, parameters))
    return mean_over_ranks(matrix)


def flatten_into(row: Tensor, parts: Sequence[Tensor]) -> None:
    """Write the values of all parts, one after the other, into row (N,): no second copy of a large gradient is made."""
    for place, part in zip(row.split([part.numel() for part in parts]), parts, strict=True):
        place.copy_(part.flatten())


def inner_products(matrix: Tensor) -> Tensor:
    """Inner products (K, K) of the rows, in the precision they have: a training step runs under autocast."""
    with torch.autocast(matrix.device.type, enabled=False):
        return matrix @ matrix.T


def combination(coefficients: Tensor, matrix: Tensor) -> Tensor:
    """The sum (N,) of the rows (K, N), each times its coefficient (K,), in the precision they have."""
    with torch.autocast(matrix.device.type, enabled=False):
        return coefficients.to(matrix) @ matrix


def relations(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Norms (K,) and cosines (K, K) from the inner products (K, K) of gradients; the cosine with a zero gradient is 0."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    scale = norms[:, None] * norms[None, :]
    return norms, torch.where(scale > 0, gram / scale.clamp(min=torch.finfo(gram.dtype).tiny), torch.zeros_like(gram))


def is_on_cadence(number: int, is_first: bool, every: int) -> bool:
    """Whether something is due that happens once in ``every`` optimiser steps, at the first micro-batch; 0 is never."""
    return every > 0 and is_first and number % every == 0


def with_gradient(value: Tensor, parameters: Sequence[nn.Parameter], chosen: Sequence[Tensor]) -> Tensor:
    """A scalar of this value whose backward pass gives each parameter the chosen gradient."""
    watched: Tensor = _WithGradient.apply(value.detach(), list(chosen), *parameters)
    return watched


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, chosen: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.chosen = chosen
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(scales[0] * gradient for gradient in ctx.chosen))
