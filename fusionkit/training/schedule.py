"""How the learning rate moves, by optimiser step: each factory takes (optimizer, total_steps) and returns a LambdaLR.

``warmup_steps`` is a number of steps, or a fraction of the run where it is a float below 1. During the W warm-up steps
the rate of step s is base * (s + 1) / W (open_clip, ``scheduler.py``), so that the first step already learns.
"""

import math
import time
from collections.abc import Callable

from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fusionkit.distributed import from_rank_zero
from fusionkit.errors import ConfigError


def warmup_cosine(
    optimizer: Optimizer,
    total_steps: float,
    warmup_steps: float = 0.05,
    min_lr_ratio: float = 0.0,
    max_minutes: float | None = None,
) -> LambdaLR:
    """After the warm-up base * (f + (1 - f) (1 + cos(pi (s - W) / (S - W))) / 2), f = min_lr_ratio, S = total_steps.

    With ``max_minutes`` the schedule also ends with the time: s is the larger of step and S * elapsed / max_minutes, so
    that a slow machine ends at the floor too. Such a run is not bit-reproducible. Checkpoints keep the time spent.
    """
    total, warm = _lengths(total_steps, warmup_steps)

    def factor(step: float) -> float:
        progress = min(1.0, max(0.0, (step - warm) / max(1, total - warm)))
        return _warm(step, warm, min_lr_ratio + (1 - min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2)

    return LambdaLR(optimizer, factor if max_minutes is None else TimedFactor(factor, total, 60 * max_minutes))


def warmup_linear(
    optimizer: Optimizer, total_steps: float, warmup_steps: float = 0.1, min_lr_ratio: float = 0.0
) -> LambdaLR:
    """After the warm-up a straight line from base to min_lr_ratio * base (UNITER, ViLT, METER, X-VLM)."""
    total, warm = _lengths(total_steps, warmup_steps)

    def factor(step: float) -> float:
        left = max(0.0, (total - step) / max(1, total - warm))
        return _warm(step, warm, min_lr_ratio + (1 - min_lr_ratio) * left)

    return LambdaLR(optimizer, factor)


def counted_linear(optimizer: Optimizer, total_steps: float, warmup_steps: float = 0.1, first: int = 0) -> LambdaLR:
    """transformers' ``get_linear_schedule_with_warmup``: min(n / W, (S - n) / (S - W)) of base in the step with number n.

    ``first`` is the number of the first step: 0 (transformers, ViLT, METER, X-VLM), which then learns nothing, or 1 (UNITER).
    """
    total, warm = _lengths(total_steps, warmup_steps)

    def factor(step: float) -> float:
        number = step + first
        return number / warm if number < warm else max(0.0, (total - number) / max(1, total - warm))

    return LambdaLR(optimizer, factor)


def epoch_cosine(
    optimizer: Optimizer,
    total_steps: float,
    epochs: int,
    min_lr_ratio: float = 0.0,
    warmup_steps: int = 0,
    warmup_lr_ratio: float = 1.0,
    warmup_every: int = 100,
) -> LambdaLR:
    """ALBEF's, whose rate stands still within an epoch e of E: base * (f + (1 - f) (1 + cos(pi e / E)) / 2) (``Pretrain.py``).

    In the first epoch it rises from warmup_lr_ratio * base by equal steps, one every ``warmup_every`` optimiser steps, told
    after the step; it ends with the epoch even if it is not done.
    """
    epoch_of = _epochs(total_steps, epochs)

    def factor(step: float) -> float:
        epoch, stair = epoch_of(step), max(0, int(step) - 1) // warmup_every
        if epoch == 0 and stair * warmup_every < warmup_steps:
            return warmup_lr_ratio + (1 - warmup_lr_ratio) * stair * warmup_every / warmup_steps
        return min_lr_ratio + (1 - min_lr_ratio) * (1 + math.cos(math.pi * epoch / epochs)) / 2

    return LambdaLR(optimizer, factor)


def epoch_decay(
    optimizer: Optimizer,
    total_steps: float,
    epochs: int,
    decay: float = 0.9,
    min_lr_ratio: float = 0.0,
    warmup_steps: int = 0,
    warmup_lr_ratio: float = 0.0,
) -> LambdaLR:
    """BLIP's pre-training: base * max(f, decay ** e) in epoch e, in the first one min(1, w + (1 - w) s / W) (``pretrain.py``)."""
    epoch_of = _epochs(total_steps, epochs)

    def factor(step: float) -> float:
        if (epoch := epoch_of(step)) == 0 and warmup_steps:
            return min(1.0, warmup_lr_ratio + (1 - warmup_lr_ratio) * step / warmup_steps)
        return max(min_lr_ratio, decay**epoch)

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, total_steps: float, warmup_steps: float = 0) -> LambdaLR:
    """After the warm-up, the base rate."""
    warm = _lengths(total_steps, warmup_steps)[1]
    return LambdaLR(optimizer, lambda step: _warm(step, warm, 1.0))


class TimedFactor:
    """A factor of the step that also advances with the clock, the same on all ranks."""

    # A LambdaLR saves the __dict__ of such an object in checkpoints: only ``spent`` may live there, since a clock means
    # nothing in another process, and a resumed run may have another length.
    __slots__ = ("__dict__", "_budget", "_clock", "_factor", "_seen", "_step", "_total")

    def __init__(
        self, factor: Callable[[float], float], total: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._factor, self._total, self._budget, self._clock = factor, total, seconds, clock
        self._seen, self._step = clock(), -1
        self.spent = 0.0  # seconds

    def __call__(self, step: int) -> float:
        if step != self._step:  # once a step: all parameter groups must see the same time
            now = self._clock()
            self.spent = from_rank_zero(self.spent + now - self._seen)
            self._seen, self._step = now, step
        return self._factor(max(step, self._total * min(1.0, self.spent / self._budget)))


def _epochs(total_steps: float, epochs: int) -> Callable[[float], int]:
    """Which of so many epochs of equal length a step is in, from 0."""
    total = _lengths(total_steps, 0)[0]
    if epochs < 1:
        raise ConfigError(f"scheduler.epochs is {epochs}, but has to be at least 1; give the run trainer.max_epochs")
    return lambda step: min(epochs - 1, int(step * epochs / total))


def _warm(step: float, warm: int, after: float) -> float:
    return min(1.0, (step + 1) / warm) if step < warm else after


def _lengths(total_steps: float, warmup_steps: float) -> tuple[int, int]:
    if math.isinf(total_steps):
        raise ConfigError("scheduler: the run has no last step to end at; set trainer.max_steps or trainer.max_epochs")
    total = int(total_steps)
    if isinstance(warmup_steps, float) and not warmup_steps.is_integer():
        if not 0 <= warmup_steps < 1:
            raise ConfigError(
                f"scheduler.warmup_steps: expected a number of steps or a fraction below 1, got {warmup_steps}"
            )
        return total, round(warmup_steps * total)
    if not 0 <= warmup_steps <= total:
        rank_zero_warn(
            f"scheduler.warmup_steps is {warmup_steps:g} in a run of {total} steps: the full rate is not reached"
        )
    return total, int(warmup_steps)
