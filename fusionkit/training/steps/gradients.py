"""What becomes of the gradients of a step: they are clipped, or left out where they are not finite."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fusionkit.training.module import TrainingModule


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
    elif algorithm == "value":
        nn.utils.clip_grad_value_(parameters, most)
    else:
        nn.utils.clip_grads_with_norm_(parameters, most, norm)


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
