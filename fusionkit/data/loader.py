"""A DataLoader whose errors about data files reach the user as the one sentence they are."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader, Dataset, Sampler

from fusionkit.distributed import world_size
from fusionkit.errors import ConfigError, DataError
from fusionkit.signals import begin_worker

MOST = 8  # workers that "auto" gives a loader


class Loader(DataLoader[Any]):
    """Batches, made by `num_workers` processes that live as long as the loader.

    A worker's exception arrives with its stack trace pasted into the message. So the data sets *return* a DataError in
    place of a batch, and it is raised here, in the process that asked.
    """

    def __init__(
        self,
        data: Dataset[Any],
        batches: Sampler[Any] | Sequence[list[int]],
        collate: Any,
        num_workers: int,
        *,
        persistent: bool,
    ) -> None:
        if num_workers:
            # a worker is a fork of a process that may have run the tokenizer's threads already
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.waited = 0.0  # seconds in which batches were asked for and not there yet
        super().__init__(
            data,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=persistent and num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_begin_worker,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # the base class names its own iterator type
        # not before the first batch is asked for: Lightning makes the iterator before it restores where a run stood
        batches = super().__iter__()
        while True:
            asked = time.monotonic()
            try:
                batch = raise_error(next(batches))
            except StopIteration:
                return
            finally:
                self.waited += time.monotonic() - asked
            yield batch
            del batch  # else its memory is kept while the next one is made


def _begin_worker(number: int) -> None:
    begin_worker()
    if os.environ.get("PL_SEED_WORKERS") == "1":  # what Lightning would do, were there no function of ours
        pl_worker_init_function(number)


def raise_error(batch: Any) -> Any:
    """The batch, unless it is an error."""
    if isinstance(batch, DataError):
        raise batch
    return batch


def check_workers(num_workers: Any) -> None:
    """Raise ConfigError unless this is a number of processes, or "auto"."""
    if num_workers != "auto" and (type(num_workers) is not int or num_workers < 0):
        raise ConfigError(
            f"data.num_workers is {num_workers!r}, but has to be at least 0 (batches are made by the training process), or auto"
        )


def workers_of(num_workers: int | str, loaders: int) -> int:
    """How many processes a loader has; "auto": as many as leave each rank a core of its own, shared by so many loaders.

    Batches are the same whatever the number: they are a function of seed and position.
    """
    if not isinstance(num_workers, str):
        return num_workers
    cores = min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, cores_granted()
    )
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or world_size())
    return min(MOST, max(0, cores // ranks - 1) // max(1, loaders))


def cores_granted(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many cores a container may use at once, which can be fewer than it sees; a great many where nothing says so."""
    try:
        most, period = quota.read_text().split()
        return max(1, int(most) // int(period))
    except (OSError, ValueError):  # none, "max 100000", or not Linux
        return 2**20
