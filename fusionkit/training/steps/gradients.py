"""What becomes of the gradients of a step: they are clipped, or left out where they are not finite."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fusionkit.checkpoints.match import whole

if TYPE_CHECKING:
    from fusionkit.training.module import TrainingModule


def total_norm(parameters: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all gradients, of those that a strategy has split too; every rank calls it."""
    norms = [
        whole(nn.utils.get_total_norm([p.grad for p in some if p.grad is not None])) for some in _alike(parameters)
    ]
    return norms[0] if len(norms) == 1 else nn.utils.get_total_norm(norms)


def _alike(parameters: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """Those that a strategy has split, and those that are whole: no operation takes both at once."""
    found = [[p for p in parameters if isinstance(p, DTensor) == is_split] for is_split in (False, True)]
    return [some for some in found if some] or [parameters]


def clip(
    module: "TrainingModule",
    optimizer: Any,
    parameters: Sequence[Tensor],
    norm: Tensor,
    most: float | None,
    algorithm: str | None,
) -> None:
    """Clip the gradients of the parameters, whose norm is known.

    Lightning refuses to clip under a fused optimiser in mixed precision, though bf16 scales no gradient.
    """
    if not most:
        return
    if module.trainer.precision == "16-mixed":  # its scaler must unscale first
        module.clip_gradients(optimizer, most, algorithm)
        return
    for some in _alike(parameters):
        if algorithm == "value":
            nn.utils.clip_grad_value_(some, most)
        else:
            nn.utils.clip_grads_with_norm_(some, most, norm)


def leave_out(module: "TrainingModule", optimizer: torch.optim.Optimizer, losses: Sequence[float]) -> None:
    """Have a step that is not finite change nothing, and say so."""
    scaler = getattr(module.trainer.precision_plugin, "scaler", None)
    if scaler is None:  # what has no gradient an optimiser leaves alone, moments and decay included
        optimizer.zero_grad(set_to_none=True)
    elif all(map(math.isfinite, losses)) and scaler.get_scale() > 1:
        return  # the scale was too large for fp16: the scaler leaves the step out and lowers it, as it is meant to
    told = module.finite.leave_out(module.global_step)
    if module.trainer.is_global_zero:
        print(f"warning: {told}", flush=True)
    module.step_metrics = module.named_losses(losses) | module.state_of_training()
