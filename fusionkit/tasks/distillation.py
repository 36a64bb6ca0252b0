"""Momentum distillation: a loss partly against what the teacher says of the same input (ALBEF)."""

from collections.abc import Callable

import torch
from torch import Tensor

from fusionkit.losses import soft_cross_entropy
from fusionkit.model.momentum import Teacher
from fusionkit.types import at_least_fp32


def distil(
    loss: Tensor,
    logits: Tensor,
    teacher: Teacher | None,
    read: Callable[[Teacher], Tensor],
    cross_entropy: Callable[[Tensor, Tensor], Tensor] = soft_cross_entropy,
) -> Tensor:
    """(1 - alpha) * loss + alpha * cross entropy of the logits (R, C) against the teacher's distribution; else the loss.

    ``read`` gives the teacher's logits (R, C). It is not asked where its weight is 0.
    """
    if teacher is None or teacher.alpha == 0:
        return loss
    with torch.no_grad():
        soft = at_least_fp32(read(teacher)).softmax(dim=-1)
    return teacher.mix(loss, cross_entropy(logits, soft))
