"""Prediction records: plain dictionaries, one JSON line each. Imports neither torch nor numpy."""

import codecs
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from fusionkit.errors import DataError
from fusionkit.files.atomic import remove_leftovers, write_text
from fusionkit.files.plain import LINES, other_kind, parse, reason_of

RERANKED = "_reranked"  # how the name of a task's second predictions ends, which are then the ones that are scored
Record = dict[str, Any]
Records = list[Record]


def check_records(records: Iterable[Record], keys: Sequence[str], known: Container[Any]) -> None:
    """Each combination of ``keys`` may come once, and ``known`` must hold the first of them; else a DataError."""
    seen = set()
    for record in records:
        if missing := [key for key in keys if key not in record]:
            raise DataError(f"a prediction record lacks '{missing[0]}': it has {', '.join(record) or 'no keys'}")
        if record[keys[0]] not in known:
            raise DataError(
                f"prediction for the unknown {keys[0]} {record[keys[0]]!r}: score it against the split it was made from"
            )
        values = tuple(record[key] for key in keys)
        if values in seen:
            named = ", ".join(f"{key} {value!r}" for key, value in zip(keys, values, strict=True))
            raise DataError(f"two predictions for {named}: keep one record for each")
        seen.add(values)


def index_records(records: Sequence[Record], key: str, known: Container[Any]) -> dict[Any, Record]:
    """The records by their ``key``, checked as in ``check_records``."""
    check_records(records, (key,), known)
    return {record[key]: record for record in records}


def identity(record: Record) -> tuple[tuple[str, Any], ...]:
    """What makes a record unique: its ``*_id`` fields, and its ``position`` where it is about one token."""
    return tuple((key, record[key]) for key in sorted(record) if key.endswith("_id") or key == "position")


def merge_records(shards: Iterable[Iterable[Record]]) -> Records:
    """The records of all ranks, each once: a distributed sampler pads its shards with repeated samples."""
    merged: dict[Any, Record] = {}
    for shard in shards:
        for record in shard:
            merged.setdefault(identity(record), record)
    return list(merged.values())


def merge_metrics(parts: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """One flat map ``<label>/<metric>`` from the metrics of each label, e.g. of each source."""
    return {f"{label}/{name}": float(value) for label, metrics in parts.items() for name, value in metrics.items()}


def require_writable(folder: Path, key: str = "output_dir") -> None:
    """Make the folder that ``key`` names; raise DataError where nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"{key}={folder} cannot be written to ({error.strerror}); choose another {key}=FOLDER"
        ) from error
    remove_leftovers(folder)


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write one JSON line a record; NaN or infinity in one is a DataError."""
    try:
        text = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    except ValueError as error:
        raise DataError(
            f"predictions for {path.name} are not finite numbers: the model has diverged, lower its learning rate"
        ) from error
    write_text(path, text)


def read_records(path: Path) -> Records:
    """Read what ``write_records`` wrote; a line that is not a JSON object is a DataError."""
    if not path.is_file():
        raise DataError(f"no predictions at {path}: run the evaluation that writes them first")
    records = []
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")  # as text it could be cut at U+2028
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = parse(line)
        except (ValueError, RecursionError) as error:
            told = other_kind(path, LINES) if number == 1 else None
            told = told or f"{path} line {number} is not JSON ({reason_of(error)}): expected one record a line"
            raise DataError(told) from error
        if not isinstance(record, dict):
            raise DataError(f"{path} line {number} is not a JSON object: expected one record a line")
        records.append(record)
    return records


def write_metrics(path: Path, metrics: Mapping[str, float]) -> None:
    """Write the flat metrics map as sorted, indented JSON."""
    write_text(path, json.dumps(dict(metrics), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")
