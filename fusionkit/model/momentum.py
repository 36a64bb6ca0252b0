"""Momentum distillation (ALBEF): a teacher that is the exponential moving average of the student."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusionkit.distributed import own_part
from fusionkit.internals import lerp_all
from fusionkit.types import Batch, Encoded

if TYPE_CHECKING:
    from fusionkit.model.model import VisionLanguageModel


@dataclass(frozen=True)
class Teacher:
    """What a task sees of the teacher: its model, its copy of the task's head, its view of the batch, its weight."""

    model: "VisionLanguageModel"
    head: nn.Module | None  # the moving average of the task's ``head``, where it has one
    encoded: Encoded
    alpha: float  # weight of the teacher's soft targets, 0..1

    @property
    def own_head(self) -> nn.Module:
        """The head, of a task that has one."""
        assert self.head is not None
        return self.head

    def mix(self, hard: Tensor, soft: Tensor) -> Tensor:
        """(1 - alpha) * hard + alpha * soft: of targets, or of the losses against them (ALBEF, eq. 6 and 7)."""
        return (1 - self.alpha) * hard + self.alpha * soft


class MomentumTeacher(nn.Module):
    """The moving average of the model and of the tasks' heads: theta_m <- momentum * theta_m + (1 - momentum) * theta.

    ``alpha`` weighs the soft targets and rises linearly from 0 over ``ramp_steps`` optimiser steps (0: no ramp), or over a
    fraction of the run where ``ramp_steps`` is below 1 (ALBEF: its first epoch).
    Buffers (batch-norm statistics) are copied. Built from the student, so that both start equal. What is frozen then never
    trains, and is the student's own here too: it takes no memory again, and what a checkpoint says of it is the student's.
    """

    def __init__(
        self,
        model: "VisionLanguageModel",
        tasks: Mapping[str, nn.Module],
        momentum: float = 0.995,
        alpha: float = 0.4,
        ramp_steps: float = 0,
    ) -> None:
        super().__init__()
        self.momentum, self.final_alpha, self.ramp_steps = momentum, alpha, ramp_steps
        frozen = {id(p): p for module in (model, *tasks.values()) for p in module.parameters() if not p.requires_grad}
        heads = {name: getattr(task, "head", None) for name, task in tasks.items()}
        self.model = copy.deepcopy(model, dict(frozen))
        self.heads = nn.ModuleDict(
            {name: copy.deepcopy(head, dict(frozen)) for name, head in heads.items() if head is not None}
        )
        self._shared = [name for name, p in self.named_parameters(remove_duplicate=False) if id(p) in frozen]
        self.register_load_state_dict_pre_hook(_keep_shared)  # type: ignore[no-untyped-call]
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "MomentumTeacher":
        """The teacher never trains; batch norms and dropout stay in evaluation."""
        return super().train(False)

    @torch.no_grad()
    def update(self, model: "VisionLanguageModel", tasks: Mapping[str, nn.Module]) -> None:
        """One step of the moving average; call it once per optimiser step."""
        self._average(self.model, model)
        for name, head in self.heads.items():
            self._average(head, tasks[name].head)  # type: ignore[arg-type]

    def _average(self, mean: nn.Module, student: nn.Module) -> None:
        pairs = list(zip(mean.parameters(), student.parameters(), strict=True))
        if moving := [pair for pair in pairs if pair[0] is not pair[1]]:
            lerp_all(
                [own_part(ours) for ours, _ in moving], [own_part(theirs) for _, theirs in moving], 1 - self.momentum
            )
        for ours, theirs in zip(mean.buffers(), student.buffers(), strict=True):
            ours.copy_(theirs)

    def alpha(self, step: int, total_steps: float = math.inf) -> float:
        """Weight of the soft targets at an optimiser step of a run of so many."""
        ramp = self.ramp_steps if self.ramp_steps >= 1 else self.ramp_steps * total_steps
        return self.final_alpha * min(1.0, step / ramp if ramp else 1.0)

    @torch.no_grad()
    def encode(self, batch: Batch, kinds: Sequence[str]) -> Encoded:
        """The teacher's view of a batch, made once for all tasks of its source."""
        return self.model.encode(batch, kinds)

    def view(self, task: str, encoded: Encoded, alpha: float) -> Teacher:
        """The teacher as one task sees it."""
        return Teacher(self.model, dict(self.heads.items()).get(task), encoded, alpha)


def _keep_shared(teacher: MomentumTeacher, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state is loaded: a frozen weight is the student's, whatever the state says of the teacher's."""
    own = dict(teacher.named_parameters(remove_duplicate=False))
    state |= {prefix + name: own[name] for name in teacher._shared if prefix + name in state}
