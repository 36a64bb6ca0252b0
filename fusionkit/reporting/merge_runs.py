"""Evaluations of one checkpoint as one record, and the names of records."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fusionkit.cli.main import STORED
from fusionkit.config import home_of
from fusionkit.reporting.differences import differences, is_noise
from fusionkit.reporting.record import RunRecord


def join(records: Iterable[RunRecord]) -> list[RunRecord]:
    """One record of all evaluations of one checkpoint under the same settings; they may not say different things."""
    joined: list[RunRecord] = []
    for record in records:
        place = next((n for n, other in enumerate(joined) if _is_same(other, record)), None)
        if place is None:
            joined.append(record)
        else:
            joined[place] = _together(joined[place], record)
    return joined


def _is_same(one: RunRecord, other: RunRecord) -> bool:
    shared = one.metrics.keys() & other.metrics.keys()
    return (
        one.checkpoint is not None
        and one.checkpoint == other.checkpoint
        and all(one.metrics[name] == other.metrics[name] for name in shared)
        and all(is_noise(key) or key.partition(".")[0] not in STORED for key in differences([one, other]))
    )


def _together(one: RunRecord, other: RunRecord) -> RunRecord:
    return replace(
        one,
        paths=one.paths + other.paths,
        metrics={**one.metrics, **other.metrics},
        directions={**one.directions, **other.directions},
        intervals={**one.intervals, **other.intervals},
        history=one.history or other.history,
        samples={**one.samples, **other.samples},
        parameters=one.parameters or other.parameters,
        benchmarks={**one.benchmarks, **other.benchmarks},
    )


def named(records: Sequence[RunRecord]) -> list[RunRecord]:
    """With names that tell them apart: of their run, else of the checkpoint too, else of the folder."""
    places = [_home(record) for record in records]
    finer: tuple[Callable[[RunRecord], Path], ...] = (_home_and_checkpoint, lambda record: record.paths[0])
    for place_of in finer:
        pairs = zip(records, list(places), strict=True)
        places = [place_of(record) if places.count(place) > 1 else place for record, place in pairs]
    names = short_names(places)
    return [replace(record, name=name) for record, name in zip(records, names, strict=True)]


def short_names(places: Sequence[Path]) -> list[str]:
    """As much of the end of each path as no other has; a number alone is no name."""
    lengths = [1 + (len(place.parts) > 2 and place.name.isdigit()) for place in places]
    while True:
        names = ["/".join(place.parts[-length:]) for place, length in zip(places, lengths, strict=True)]
        longer = [length + (names.count(name) > 1) for name, length in zip(names, lengths, strict=True)]
        if longer == lengths or max(longer) > max(len(place.parts) for place in places):
            return names
        lengths = longer


def _home_and_checkpoint(record: RunRecord) -> Path:
    return _home(record) / record.checkpoint.stem if record.checkpoint else record.paths[0]


def _home(record: RunRecord) -> Path:
    """The folder of the run that is meant: that whose checkpoint an evaluation scores, or whose logs these are."""
    if record.checkpoint is not None:
        return home_of(record.checkpoint)
    folder = record.paths[0]
    while folder.name in ("wandb", "logs") or folder.name.startswith("offline-run-"):
        folder = folder.parent
    return folder
