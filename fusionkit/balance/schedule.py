"""Weights that change along the run by a given curve."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor

from fusionkit.balance.base import Balancer, Step
from fusionkit.errors import ConfigError, suggest

Points = Sequence[tuple[float, float]]


class Schedule(Balancer):
    """The factor of an objective is linear between given points and constant before the first and after the last.

    ``points`` {source: {task: [[at, factor], ...]}}; an objective without points keeps the factor 1.
    ``unit``   "step" (optimiser steps) or "progress" (fraction 0..1 of the run's steps; a time limit does not count).
    """

    def __init__(
        self,
        points: Mapping[str, Mapping[str, Sequence[Sequence[float]]]] | None = None,
        unit: str = "step",
        gradients_every_n_steps: int = 0,
    ) -> None:
        super().__init__(gradients_every_n_steps)
        if unit not in ("step", "progress"):
            raise ConfigError(f"balance.unit is '{unit}'; {suggest(unit, ('step', 'progress'))}")
        self.unit = unit
        self.points: dict[str, Points] = {
            f"{source}/{task}": _checked(f"balance.points.{source}.{task}", curve)
            for source, row in (points or {}).items()
            for task, curve in row.items()
        }

    def start(self, objectives: Sequence[str]) -> None:
        super().start(objectives)
        for name in self.points:
            if name not in objectives:
                raise ConfigError(
                    f"balance.points.{name.replace('/', '.')}: no such objective; "
                    f"{suggest(name.replace('/', '.'), [known.replace('/', '.') for known in objectives])}"
                )

    def factors(self, losses: Tensor, step: Step) -> Tensor:
        place = self._place(step)
        return losses.new_tensor(
            [interpolate(self.points[name], place) if name in self.points else 1.0 for name in self.objectives]
        )

    def _place(self, step: Step) -> float:
        if self.unit == "step":
            return step.number
        if math.isinf(step.total):
            raise ConfigError(
                "balance.unit=progress: the run has no last step; set trainer.max_steps, or use balance.unit=step"
            )
        return step.number / step.total


def interpolate(points: Points, place: float) -> float:
    """The value at ``place`` of the line through (at, value) points in rising order, flat beyond the ends."""
    if place <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if place <= right:
            return low + (high - low) * (place - left) / (right - left)
    return points[-1][1]


def _checked(key: str, curve: Sequence[Sequence[float]]) -> Points:
    try:
        points = [(float(at), float(factor)) for at, factor in curve]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: expected [[at, factor], ...], got {curve}; e.g. [[0, 0], [1000, 1]]") from error
    if not points or any(left >= right for (left, _), (right, _) in pairwise(points)):
        raise ConfigError(f"{key}: the points must rise, and there must be one at least, got {curve}")
    if not all(factor >= 0 for _, factor in points):
        raise ConfigError(f"{key}: a factor is a number from 0 up, got {curve}")
    return points
