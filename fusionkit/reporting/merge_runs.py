"""Evaluations of one checkpoint, and a run and its W&B copy, as one record; the names of records."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fusionkit.cli.main import STORED
from fusionkit.config import home_of
from fusionkit.reporting.config_differences import differences, is_noise
from fusionkit.reporting.record import RunRecord

LOGS = ("logs", "wandb")  # where a run of ours has W&B's folders


def join(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Merge evaluations of one checkpoint under the same settings that agree on shared metrics.

    W&B's files in the folder of a run are merged with that run, and fill in what its own files lack.
    """
    records = list(records)
    order = {path: place for place, record in enumerate(records) for path in record.paths}
    joined: list[RunRecord] = []
    for record in sorted(records, key=is_wandb_copy):  # the runs' own files first
        same = _holds if is_wandb_copy(record) else _is_same
        place = next((n for n, other in enumerate(joined) if same(other, record)), None)
        if place is None:
            joined.append(record)
        else:
            joined[place] = _together(joined[place], record)
    return sorted(joined, key=lambda record: min(order[path] for path in record.paths))


def is_wandb_copy(record: RunRecord) -> bool:
    """Return whether the record was read from W&B's files of a run."""
    return _folder_of(record.paths[0]) != record.paths[0]


def _holds(run: RunRecord, copy: RunRecord) -> bool:
    return _folder_of(copy.paths[0]) in run.paths


def _is_same(one: RunRecord, other: RunRecord) -> bool:
    shared = one.metrics.keys() & other.metrics.keys()
    return (
        one.checkpoint is not None
        and one.checkpoint == other.checkpoint
        and all(one.metrics[name] == other.metrics[name] for name in shared)
        and all(is_noise(key) or key.partition(".")[0] not in (*STORED, "int8") for key in differences([one, other]))
    )


def _together(one: RunRecord, other: RunRecord) -> RunRecord:
    metrics = {**one.metrics, **other.metrics}
    return replace(
        one,
        paths=one.paths + other.paths,
        config=one.config or other.config,
        metrics=one.metrics or metrics if is_wandb_copy(other) else metrics,  # W&B's may be of the validation
        directions={**one.directions, **other.directions},
        intervals={**one.intervals, **other.intervals},
        history=one.history or other.history,
        samples={**one.samples, **other.samples},
        parameters=one.parameters or other.parameters,
        benchmarks={**one.benchmarks, **other.benchmarks},
    )


def named(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Name each record by its run, and where a run has several by checkpoint or folder too; no name is used twice."""
    homes = [home_of_run(record) for record in records]
    names = dict(zip(dict.fromkeys(homes), short_names(list(dict.fromkeys(homes))), strict=True))
    found = []
    for record, home in zip(records, homes, strict=True):
        siblings = [other for other, place in zip(records, homes, strict=True) if place == home]
        found.append("/".join([names[home], *_own_part(record, siblings, home)]))
    if len(set(found)) < len(found):
        found = short_names([record.paths[0] for record in records])
    return [replace(record, name=name) for record, name in zip(records, found, strict=True)]


def _own_part(record: RunRecord, siblings: Sequence[RunRecord], home: Path) -> list[str]:
    """Return what is added to the name of the run: nothing for its only record or the training itself."""
    if len(siblings) == 1 or record.paths[0] == home:
        return []
    stems = [sibling.checkpoint.stem for sibling in siblings if sibling.checkpoint is not None]
    if record.checkpoint is not None and stems.count(record.checkpoint.stem) == 1:
        return [record.checkpoint.stem]
    paths = [sibling.paths[0] for sibling in siblings]
    return [short_names(paths)[paths.index(record.paths[0])]]


def short_names(places: Sequence[Path]) -> list[str]:
    """Return as much of the end of each path as no other has; a number alone is no name."""
    lengths = [1 + (len(place.parts) > 2 and place.name.isdigit()) for place in places]
    while True:
        names = ["/".join(place.parts[-length:]) for place, length in zip(places, lengths, strict=True)]
        longer = [length + (names.count(name) > 1) for name, length in zip(names, lengths, strict=True)]
        if longer == lengths or max(longer) > max(len(place.parts) for place in places):
            return names
        lengths = longer


def home_of_run(record: RunRecord) -> Path:
    """Return the folder of the run whose checkpoint was scored, or whose logs these are.

    W&B's files outside of a run's folder stand for a folder of the logged name beside them.
    """
    path = record.paths[0]
    if record.checkpoint is not None:
        return home_of(record.checkpoint)
    return path.parent / record.name if is_wandb_copy(record) and path.parent.parts[-2:] != LOGS else _folder_of(path)


def _folder_of(path: Path) -> Path:
    """Return the folder of a run, given it or its ``logs/wandb/offline-run-*``."""
    while path.name in ("wandb", "logs") or path.name.startswith("offline-run-"):
        path = path.parent
    return path
