"""What the order of training samples hangs on is the same on all ranks; where a run that goes on has another, it is told."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from fusionkit.data.sampler import Begin
from fusionkit.data.source import Source
from fusionkit.data.tables.samples import Samples
from fusionkit.distributed import gather_objects
from fusionkit.errors import DataError

SIZE, PROCESSES = "global batch size", "number of processes"
TOLD = {  # of what has another value and leaves the order of samples as it is
    SIZE: "the run goes on with the samples that are due, but its steps are others: means over other numbers of samples, "
    "and the schedule of the rates counts steps",
    PROCESSES: "samples come as they would have, but what each process draws for itself (dropout, masked words) and statistics "
    "of batch norms over its own rows are others",
}


def require_same_on_ranks(sources: Mapping[str, Source], training: Mapping[str, Samples]) -> None:
    """Raise DataError where a rank has found other images than the others, as where a disk of its own lacks a shard."""
    own = {
        name: [len(samples), *(int(samples.counts(kind).sum()) for kind in sources[name].kinds)]
        for name, samples in training.items()
    }
    first, *others = gather_objects([own])
    for rank, other in enumerate(others, start=1):
        if name := next((name for name in own if other[name] != first[name]), None):
            raise DataError(
                f"source {name}: rank 0 found {first[name][0]:,} training images with {sum(first[name][1:]):,} texts, rank "
                f"{rank} {other[name][0]:,} with {sum(other[name][1:]):,}; give all ranks the same files"
            )


def warn_of_other_order(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say what a run that goes on has other than it had, of what the order of its samples is a function of."""
    for name, value in now.items():
        if (was := before.get(name, value)) != value:
            told = TOLD.get(name, "samples now come in another order")
            rank_zero_warn(f"the checkpoint was trained with {name} {was}, not {value}: {told}")


def begin_of(source: str, size: int, resumed: Mapping[str, Any]) -> Begin:
    """Where a source's batches of ``size`` samples, of all ranks together, begin.

    ``resumed``  the data module's state in the checkpoint that the run goes on from
    """
    begin = Begin(*resumed.get("begin", {}).get(source, ()))
    before = resumed.get("order", {}).get(SIZE, {}).get(source, size)
    return begin if before == size else begin.after(resumed["batches"], before)
