"""How far a checkpoint says that a run is, between two optimiser steps and two epochs (Lightning's own counts)."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from lightning import Trainer


def pending_batches(trainer: Trainer) -> int:
    """How many micro-batches have been trained on since the last optimiser step; an epoch's last batch always makes one."""
    done = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
    return done % trainer.accumulate_grad_batches if done < trainer.num_training_batches else 0


def count_back(checkpoint: MutableMapping[str, Any], batches: int) -> None:
    """Change the counts of a checkpoint to those of a run that has just made the step before so many batches.

    Lightning takes one batch fewer completed than processed for a place right behind a step, and counts that step itself.
    """
    loop = checkpoint["loops"]["fit_loop"]
    for counts in (loop["epoch_loop.batch_progress"][which] for which in ("total", "current")):
        done = counts["processed"] - batches
        counts |= {"ready": done, "started": done, "processed": done, "completed": done - 1}
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    if state := data_state(checkpoint):
        state["batches"] -= batches


def data_state(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The state of the data module in a checkpoint; empty where it had none."""
    found = (state for state in checkpoint.values() if isinstance(state, dict) and {"batches", "order"} <= state.keys())
    return next(found, {})


def stretch_epoch(checkpoint: MutableMapping[str, Any], before: int, now: int, accumulated: int) -> None:
    """Change the place within an epoch of ``before`` batches to that within one of ``now``: at least the same part of it is left.

    It is one where an optimiser step begins, of ``accumulated`` batches each; before the first of them the epoch begins anew.
    """
    loop = checkpoint["loops"]["fit_loop"]
    counts, epochs = loop["epoch_loop.batch_progress"]["current"], loop["epoch_progress"]
    done = counts["processed"]
    if not done:
        return
    place = now if done >= before else done * now // before // accumulated * accumulated
    if place:
        counts |= {name: count + place - done for name, count in counts.items()}
        return
    counts |= dict.fromkeys(counts, 0)
    for progress in (epochs["total"], epochs["current"]):
        progress |= dict.fromkeys(("ready", "started", "processed"), progress["completed"])


def end_epoch(checkpoint: MutableMapping[str, Any]) -> None:
    """Change the counts of a checkpoint that was saved at an epoch's end, without a validation, to the next one's beginning.

    Of a run with a number of steps Lightning takes them for a place within that epoch, whose batches then have other numbers.
    """
    loop = checkpoint["loops"]["fit_loop"]
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    now = epochs["current"]
    if now["ready"] == now["started"] == now["processed"] == now["completed"] + 1 and batches["is_last_batch"]:
        for counts in (epochs["total"], now):
            counts["completed"] = counts["processed"]
        batches |= {"current": dict.fromkeys(batches["current"], 0), "is_last_batch": False}
