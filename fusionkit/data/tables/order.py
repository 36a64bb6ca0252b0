"""What the order of training samples hangs on is the same on all ranks, and told where a run that goes on has another."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from fusionkit.data.source import Source
from fusionkit.data.tables.samples import Samples
from fusionkit.distributed import gather_objects
from fusionkit.errors import DataError


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
            rank_zero_warn(
                f"the checkpoint was trained with {name} {was}, not {value}: samples now come in another order"
            )
