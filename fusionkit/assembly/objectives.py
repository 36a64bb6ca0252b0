"""The objectives of a run: which tasks train on which source, and the texts that they read."""

from collections.abc import Iterable, Mapping
from typing import Any

from fusionkit.errors import ConfigError, suggest
from fusionkit.tasks.base import Task


def active_objectives(
    objectives: Mapping[str, Mapping[str, float]], tasks: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """The objectives of positive weight; ConfigError for an unknown task, a negative weight, and if none is left."""
    active: dict[str, dict[str, float]] = {}
    for source, row in objectives.items():
        for task, weight in row.items():
            if task not in tasks:
                raise ConfigError(f"objectives.{source}.{task}: no such task is configured; {suggest(task, tasks)}")
            if not float(weight) >= 0:
                raise ConfigError(
                    f"objectives.{source}.{task}: the weight {weight} is not a number of at least 0 (0 switches it off)"
                )
            if weight > 0:
                active.setdefault(source, {})[task] = float(weight)
    if not active:
        raise ConfigError("objectives: there is nothing to train; give a source and a task a weight above 0")
    return active


def text_kinds(tasks: Iterable[Task[Any]]) -> list[str]:
    """The text kinds whose plain texts these tasks read encoded."""
    return sorted({task.reads for task in tasks if task.encodes})
