"""Muon for the matrices inside the layers, AdamW for everything else, as one optimiser."""

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from fusionkit.assembly.precision import cpu_is_fast_at_bf16
from fusionkit.errors import ConfigError
from fusionkit.internals import newton_schulz_in_fp32, newton_schulz_of_whole_matrices
from fusionkit.training.optim import parameter_groups

SMALL = 2**14  # numbers of a matrix whose products are no work


def build_muon(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float = 0.05,
    matrices: str = r"\b(layers?|blocks)\.\d+\.",
    matrix_scale: float = 2.0,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-8,
    rules: Sequence[Sequence[str | float | None]] = (),
    layer_decay: float | None = None,
    fused: bool = True,
) -> "Combined":
    """Muon (Jordan 2024) for two-dimensional parameters whose name ``matrices`` finds, AdamW for the others.

    Muon moves a matrix by its orthogonalised momentum, so that rare directions learn as fast as common ones; its steps are
    scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982) times ``matrix_scale``, so both share ``lr``,
    ``weight_decay``, ``rules`` and ``layer_decay`` (see ``parameter_groups``). Embeddings, heads, norms, biases and
    convolutions are AdamW's, as published.
    Raises ConfigError where ``matrices`` finds none.
    """
    named = list(named_parameters)
    chosen = {parameter for name, parameter in named if parameter.ndim == 2 and re.search(matrices, name)}
    groups = parameter_groups(named, lr, weight_decay, rules, layer_decay)
    inside, outside = (_only(groups, chosen, is_chosen) for is_chosen in (True, False))
    for group in inside:
        group["lr"] *= matrix_scale
        group["lr_scale"] *= matrix_scale
    if not inside:
        raise ConfigError(f"optimizer.matrices: '{matrices}' finds no trainable matrix; use optimizer=adamw")
    muon = Muon(inside, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
    if not outside:
        return Combined(muon)
    return Combined(muon, torch.optim.AdamW(outside, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=fused))


def _only(groups: Sequence[dict[str, Any]], chosen: set[nn.Parameter], is_chosen: bool) -> list[dict[str, Any]]:
    """The groups with the chosen parameters alone, or with the others alone; empty ones are left out."""
    parts = [{**group, "params": [p for p in group["params"] if (p in chosen) == is_chosen]} for group in groups]
    return [part for part in parts if part["params"]]


class Muon(torch.optim.Muon):
    """torch's, which orthogonalises in bf16, but in fp32 where matrices are large and the processor is slow at bf16.

    There a step of two layers of 384 took 25 seconds.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        matrices = [p for group in self.param_groups for p in group["params"]]
        is_work = any(p.device.type == "cpu" and p.numel() > SMALL for p in matrices)
        in_format = newton_schulz_in_fp32() if is_work and not cpu_is_fast_at_bf16() else nullcontext()
        with in_format, newton_schulz_of_whole_matrices():
            return super().step(closure)  # type: ignore[no-untyped-call]


class Combined(torch.optim.Optimizer):
    """Several optimisers that a trainer, a schedule and a checkpoint see as one; the groups are theirs."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What ``state_dict`` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]  # a part makes new ones
