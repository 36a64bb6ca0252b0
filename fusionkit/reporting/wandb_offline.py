"""Reader of W&B's files on disk: configuration, summary, history and tables of ``wandb/offline-run-*``.

W&B itself reads such a file in its compiled service alone (its Python reader went with wandb 0.31), so the few lines of
framing are here; the records are decoded by wandb's own protocol classes.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionkit.config import flatten
from fusionkit.errors import DataError
from fusionkit.files.names import is_inside
from fusionkit.files.plain import read_json, reason_of

MAGIC = b":W&B\xe1\xbe\x00"
BLOCK = 32768  # bytes; the log's format is LevelDB's (leveldb/doc/log_format.md)
HEAD = struct.Struct("<IHB")  # of a piece: checksum, length, and which of a record's pieces it is
KINDS = WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
LABEL = "label_"  # what the keys begin with that dashboards group by (training.loggers)


@dataclass
class Table:
    """A table that was logged; a cell that holds an image says "Image"."""

    columns: list[str]
    rows: list[list[Any]]


@dataclass
class OfflineRun:
    """All that a run logged until it ended or was killed."""

    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)  # nested, as it was before the logger made it flat
    labels: dict[str, str] = field(default_factory=dict)  # what the dashboards group by: fusion, tasks, sources
    summary: dict[str, Any] = field(default_factory=dict)  # flat; the best of a score is "<score>.max"
    history: list[dict[str, Any]] = field(default_factory=list)  # by step, flat, "_step" is W&B's count of log calls
    tables: dict[str, Table] = field(default_factory=dict)  # the last one of each name


def read_offline(path: Path) -> OfflineRun:
    """Read the run in a folder ``offline-run-*`` or its ``.wandb`` file, of a killed run all complete records.

    DataError where there is no such file, it is of another kind, or damaged before its end.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    log = _log_file(Path(path))
    run, config, summary = OfflineRun(), dict[str, Any](), dict[str, Any]()
    try:
        for content in _records(log):
            record = Record.FromString(content)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run.name, run.group, run.job_type = record.run.display_name, record.run.run_group, record.run.job_type
                run.tags = list(record.run.tags)
                _update(config, record.run.config.update)
            elif kind == "config":
                _update(config, record.config.update)
            elif kind == "summary":
                _update(summary, record.summary.update)
            elif kind == "history":
                row: dict[str, Any] = {}
                _update(row, record.history.item)
                run.history.append({key: value for key, value in row.items() if not _is_media(value)})
    except DataError:
        raise
    except Exception as error:  # protobuf's own, and values that are no JSON
        raise DataError(f"{log} holds a record that is none of W&B's ({reason_of(error)}); leave it out") from error
    config.pop("_wandb", None)
    summary.pop("_wandb", None)
    run.config = _nested(config)
    labels = [key for key in run.config if key.startswith(LABEL)]
    run.labels = {key.removeprefix(LABEL): run.config.pop(key) for key in labels}
    run.summary = flatten({key: value for key, value in summary.items() if not _is_media(value)})
    run.tables = _tables(log.parent / "files", summary)
    return run


def _log_file(path: Path) -> Path:
    found = [path] if path.is_file() else sorted(path.glob("*.wandb"))
    if not found:
        raise DataError(f"{path} holds no W&B run; name a folder such as logs/wandb/offline-run-DATE-ID")
    return found[0]


def _records(path: Path) -> Iterator[bytes]:
    """Yield the records of a log, joined from their pieces; the last may be cut off by a kill.

    DataError where a piece before the end is not what was written.
    """
    content = path.read_bytes()
    if not content.startswith(MAGIC):
        raise DataError(f"{path} is no W&B log, or one of a version that fusionkit does not know")
    at, record = len(MAGIC), None
    while at < len(content):
        if (room := BLOCK - at % BLOCK) < HEAD.size:  # the rest of a block that is too short for a piece is padding
            at += room
            continue
        kind, piece = _piece(content, at)
        if piece is None or (record is None) != (kind in (WHOLE, FIRST)):
            if piece is None and _is_cut(content, at):
                return
            raise DataError(
                f"{path} is damaged at byte {at:,} of {len(content):,}; copy it again from where it was written, or leave it out"
            )
        at += HEAD.size + len(piece)
        record = (record or b"") + piece
        if kind in (WHOLE, LAST):
            yield record
            record = None


def _piece(content: bytes, at: int) -> tuple[int, bytes | None]:
    """Return the kind of the piece at this place, and its bytes; None where it is not whole."""
    if at + HEAD.size > len(content):
        return 0, None
    checksum, length, kind = HEAD.unpack_from(content, at)
    piece = content[at + HEAD.size : at + HEAD.size + length]
    is_whole = len(piece) == length and zlib.crc32(bytes([kind]) + piece) == checksum
    return kind, piece if is_whole and kind in KINDS else None


def _is_cut(content: bytes, at: int) -> bool:
    """Return whether the log ends within the piece at this place: it reaches the end of the file, and no other follows.

    Where a machine went down, the end of a file may be zeros that were never written.
    """
    if not any(content[at:]):
        return True
    if at + HEAD.size <= len(content):
        checksum, length, kind = HEAD.unpack_from(content, at)
        end, left = at + HEAD.size + length, content[at + HEAD.size :]
        is_all_there = zlib.crc32(bytes([kind]) + left) == checksum  # and its length is what was changed
        if is_all_there or kind not in KINDS or end <= len(content) or end > at - at % BLOCK + BLOCK:
            return False
    return all(_piece(content, place)[1] is None for place in range(at + 1, len(content) - HEAD.size))


def _update(target: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *parents, last = item.nested_key or [item.key]
        _inner(target, parents)[last] = json.loads(item.value_json)


def _inner(target: MutableMapping[str, Any], parents: Iterable[str]) -> MutableMapping[str, Any]:
    """Return the mapping below these keys, made where there is none."""
    for key in parents:
        if not isinstance(target.get(key), dict):
            target[key] = {}
        target = target[key]
    return target


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Nest dotted keys."""
    nested: dict[str, Any] = {}
    # an agent of a W&B sweep adds fusion=late to fusion.num_layers: the latter counts
    for key, value in sorted(flat.items()):
        *parents, last = key.split(".")
        _inner(nested, parents)[last] = value
    return nested


def _is_media(value: Any) -> bool:
    return isinstance(value, dict) and "_type" in value


def _tables(files: Path, summary: dict[str, Any]) -> dict[str, Table]:
    """Read the tables that the summary names; one whose file is gone is left out."""
    tables = {}
    for name, value in summary.items():
        place = value.get("path") if _is_media(value) and value["_type"] == "table-file" else None
        if isinstance(place, str) and is_inside(files, place) and (path := files / place).exists():
            content = read_json(path, advice := "copy it again, or remove it", has_nan=True)
            if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("columns", "data")):
                raise DataError(f"{path} is no table of W&B's; {advice}")
            tables[name] = Table(content["columns"], content["data"])
    return tables
