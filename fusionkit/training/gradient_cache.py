"""Whether a training can read its batches in chunks (``gradient_cache``), and what is told of contrasts within micro-batches."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy

from fusionkit.errors import ConfigError
from fusionkit.fusion.base import SupportsInstructions
from fusionkit.model.chunks import PARTS
from fusionkit.model.model import VisionLanguageModel
from fusionkit.tasks.base import Task
from fusionkit.tasks.grounding import Grounding
from fusionkit.tasks.itc import ITC
from fusionkit.tasks.itm import ITM
from fusionkit.tasks.mlm import MLM
from fusionkit.tasks.vqa import VQA
from fusionkit.training.processes.batch_norms import of_own_rows

EXACT = (ITC, ITM, MLM, VQA, Grounding)
"""The tasks whose gradients were held against those of the whole batch; another class may call parts in ways of its own."""
KEY = "gradient_cache"


def check_gradient_cache(
    rows: Any, model: VisionLanguageModel, tasks: Mapping[str, Task[Any]], used: Iterable[str], distils: bool
) -> list[str]:
    """ConfigError where a batch cannot be read so many rows at a time; else sentences on what is not that of the whole batch."""
    if rows is None:
        return []
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ConfigError(
            f"{KEY} is {rows!r}; give the number of images, texts or pairs that are read at a time, from 1, or null"
        )
    used = list(used)
    for name in used:
        if type(tasks[name]) not in EXACT:
            known = ", ".join(kind.__name__ for kind in EXACT)
            raise ConfigError(
                f"{KEY}: task {name} ({type(tasks[name]).__name__}) has not been seen to have the gradient of the whole "
                f"batch; known: {known}; leave {name} out, or set {KEY} to null"
            )
    if isinstance(model.fusion, SupportsInstructions):
        raise ConfigError(
            f"{KEY}: fusion {type(model.fusion).__name__} reads images by what is asked of them, which is not done in chunks; "
            f"choose another fusion, or set {KEY} to null"
        )
    if distils:
        raise ConfigError(
            f"{KEY} does not go with teacher=checkpoint; use teacher=momentum or none, or set {KEY} to null"
        )
    norms = [name for name, part in model.named_children() if of_own_rows(part)]
    return [
        f"{KEY}: {name} has batch norms, which take the statistics of {rows} rows at a time and not of the batch: its gradient "
        "is near that of the whole batch, and not equal"
        for name in norms
    ]


def require_whole_weights(trainer: Trainer) -> None:
    """A part that is called again in the backward pass has to have its weights whole."""
    strategy = trainer.strategy
    is_whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy)
    if not is_whole:  # Lightning has DeepSpeed's for a kind of DDP's
        raise ConfigError(
            f"{KEY}: {type(strategy).__name__} splits weights, which parts that are computed again lack; use trainer=ddp, or set "
            f"{KEY} to null"
        )


def parts_read(tasks: Iterable[Task[Any]]) -> frozenset[str]:
    """The parts of ``Fused`` that some of the tasks reads; the others need not be kept for the pairs of a batch."""
    return PARTS & frozenset().union(*(task.needs for task in tasks))


def tell_of_micro_batches(
    accumulated: int, rows: Any, tasks: Mapping[str, Task[Any]], used: Iterable[str]
) -> list[str]:
    """The sentence on tasks that set images against each other, where a step gathers the gradients of several batches."""
    names = [name for name in used if tasks[name].partners(2, 1) is not None]
    if accumulated <= 1 or not names:
        return []
    return [
        f"trainer.accumulate_grad_batches={accumulated}: {' and '.join(names)} draw their negatives from one micro-batch, not "
        f"from the {accumulated} of a step; for those of all, make data.sources.NAME.batch_size {accumulated} times as "
        f"large with {KEY}={rows or 'N'} (images at a time) and accumulate_grad_batches=1"
    ]
