"""What is in a shard, a tar of pictures with files of one key beside each (webdataset), found once and kept beside the tables."""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from xxhash import xxh3_128

from fusionkit.data.readers import picture_folders, row_pictures
from fusionkit.data.readers.picture_folders import PICTURES
from fusionkit.data.readers.row_pictures import digest_of_content
from fusionkit.data.tables.place import SHARDS, is_writable, locked, places
from fusionkit.errors import DataError
from fusionkit.files import tar
from fusionkit.files.atomic import atomic_write
from fusionkit.files.depends import RACY
from fusionkit.files.plain import TAR, other_kind

HEAD = 1000  # rows whose columns are a shard's
IMAGE = "image"
WORDS = ("txt", "text", "cls")  # endings of files of text; of x.txt the column is x
LONGEST = 2**20  # bytes of a text or json
UNREAD = ("exif",)  # of img2dataset's json, long and never read
BUFFER = 2**20  # bytes
PICTURE = pa.struct(
    {"column": pa.string(), "start": pa.int64(), "size": pa.int64(), "ending": pa.string(), "digest": pa.binary()}
)
SCHEMA = pa.schema(
    {"key": pa.string(), "pictures": pa.list_(PICTURE), "said": pa.string()}
)  # ``said``: JSON of the columns that are no pictures

NO_NUMBER = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}.get  # pandas writes NaN where there is nothing
UNREADABLE = "samples have texts or json that cannot be read, and are left out"
TWICE = "samples have a file twice, such as NAME, and are left out; give each sample a key of its own"
AGAIN = "samples, such as NAME, come again, and are left out but the first of each; give each sample a key of its own"
DOTTED = (
    "samples have names such as NAME, of which the key ends at the first dot, so that several may be one; they are left out: "
    "name their files without other dots"
)
APART = (
    "samples, such as NAME, have pictures and texts that do not stand side by side, and are not put together; write the files of "
    "a sample one behind the other, as tar --sort=name does"
)
SPARSE = "members, such as NAME, are sparse files, and are left out; write the tar without --sparse"


@dataclass
class Found:
    """The samples of a shard as they are found, and what was wrong with it."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    keys: dict[str, tuple[bool, bool]] = field(default_factory=dict)  # whether a key has had pictures, and texts
    odd: dict[str, list[str]] = field(default_factory=dict)  # what is left out, by what is wrong with it
    end: str | None = None

    def faults(self, shard: Path) -> Iterator[str]:
        """In sentences."""
        if self.end is not None:
            yield f"{shard} is cut short or damaged ({self.end}); its first {len(self.rows):,} samples are read"
        for what, names in self.odd.items():
            yield f"{shard}: {len(names):,} {what.replace('NAME', names[0])}"


def index_of(shard: Path) -> tuple[pa.Table, list[str]]:
    """The samples of a shard, by SCHEMA, and what is wrong with it. Raises DataError for a file that is no tar.

    The metadata name its columns, and those of them that are ``pictures``.
    """
    state = shard.stat()
    times = f"{state.st_mtime_ns} {state.st_ctime_ns}"  # of which a copy that keeps times keeps the first alone
    stamp = f"{os.path.abspath(shard)} {state.st_size} {times} {state.st_ino} {_version()}"
    key = xxh3_128(os.path.abspath(shard).encode("utf-8", "surrogateescape")).hexdigest()
    folders = places()
    if (kept := next((found for each in folders if (found := _kept(each, key, stamp))), None)) is not None:
        return kept
    place = next((each for each in folders if is_writable(each / SHARDS)), None)
    if place is None or abs(time.time_ns() - state.st_mtime_ns) < RACY:  # it may still be written to
        return _made(shard)
    with locked(place / SHARDS, [key]):
        if (kept := _kept(place, key, stamp)) is not None:  # another process has just made it
            return kept
        table, faults = _made(shard)
        about = {b"stamp": stamp.encode("utf-8", "surrogateescape"), b"faults": json.dumps(faults).encode()}
        schema = table.schema.with_metadata((table.schema.metadata or {}) | about)
        with (
            suppress(DataError),
            atomic_write(place / SHARDS / f"{key}.arrow") as file,
            pa.ipc.new_file(file, schema) as writer,
        ):
            writer.write_table(table.cast(schema))
    return table, faults


def _kept(place: Path, key: str, stamp: str) -> tuple[pa.Table, list[str]] | None:
    path = place / SHARDS / f"{key}.arrow"
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        about = table.schema.metadata
        if about[b"stamp"] != stamp.encode("utf-8", "surrogateescape"):
            return None
        faults = json.loads(about[b"faults"])
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError):  # not there, or damaged
        return None
    with suppress(OSError):
        os.utime(path)
    return table, faults


@cache
def _version() -> str:
    """A hash of the code that decides what an index holds."""
    files = (__file__, tar.__file__, row_pictures.__file__, picture_folders.__file__)
    return xxh3_128(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def _made(shard: Path) -> tuple[pa.Table, list[str]]:
    if told := other_kind(shard, TAR):
        raise DataError(told)
    found = Found()
    with shard.open("rb", buffering=BUFFER) as file:
        whole = 0  # rows before the last group
        for key, group in groupby(_members(file, found), itemgetter(0)):
            whole = len(found.rows)
            _add(found, file, key, [(kind, member) for _, kind, member in group])
    if found.end is not None:
        del found.rows[whole:]  # of which a part may be missing
    faults = list(found.faults(shard))
    if not any(row["pictures"] and row["said"] != "{}" for row in found.rows) and found.odd:
        raise DataError(faults[-1])
    if not found.rows:
        raise DataError(
            f"{shard} holds no samples{f' ({found.end})' if found.end else ''}; a shard is a tar of files key.jpg with key.txt "
            "or key.json beside each"
        )
    pictures = dict.fromkeys(each["column"] for row in found.rows[:HEAD] for each in row["pictures"])
    said = dict.fromkeys(name for row in found.rows[:HEAD] for name in json.loads(row["said"]))
    names = {b"columns": json.dumps([*(said | pictures)]).encode(), b"pictures": json.dumps([*pictures]).encode()}
    return pa.Table.from_pylist(found.rows, SCHEMA.with_metadata(names)), faults


def _members(file: BinaryIO, found: Found) -> Iterator[tuple[str, str, tar.Member]]:
    """The key and the kind of each member that has both."""
    try:
        for member in tar.members(file):
            key, kind = _key(member.name)
            if member.is_sparse:
                found.odd.setdefault(SPARSE, []).append(member.name)
            elif kind:
                yield key, kind, member
    except tar.CutShort as error:
        found.end = str(error)


def _key(name: str) -> tuple[str, str]:
    """The key of a member and what stands behind it, as webdataset has them: up to the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    key, _, kind = base.partition(".")
    return (folder + slash + key, kind.lower()) if key else (name, "")


def _add(found: Found, file: BinaryIO, key: str, group: Sequence[tuple[str, tar.Member]]) -> None:
    """A sample of the members that have its key, by their kinds."""
    pictures: dict[str, dict[str, Any]] = {}
    said: dict[str, Any] = {}
    kinds = [kind for kind, _ in group]
    if len(set(kinds)) < len(kinds):
        twice = next(kind for kind in kinds if kinds.count(kind) > 1)
        found.odd.setdefault(TWICE, []).append(f"{key}.{twice}")
        return
    told = {kind.rpartition(".")[0] for kind in kinds if kind.rpartition(".")[2] in (*WORDS, "json")}
    if dotted := next(
        (
            kind
            for kind in kinds
            if f".{kind.rpartition('.')[2]}" in PICTURES and "." in kind and kind.rpartition(".")[0] in told
        ),
        None,
    ):
        found.odd.setdefault(DOTTED, []).append(f"{key}.{dotted}")
        return
    try:
        for kind, member in group:
            column, _, ending = kind.rpartition(".")
            if f".{ending}" in PICTURES:
                about = {"start": member.start, "size": member.size, "ending": kind}
                about["digest"] = digest_of_content(_content(file, member))
                pictures.setdefault(column or IMAGE, {"column": column or IMAGE} | about)
            elif ending in WORDS:
                said[column or ending] = _content(file, member, LONGEST).decode("utf-8-sig").strip()
            elif ending == "json":
                read = json.loads(_content(file, member, LONGEST).decode("utf-8-sig"), parse_constant=NO_NUMBER)
                said = {**(read if isinstance(read, dict) else {column or ending: read}), **said}
    except (ValueError, RecursionError):
        found.odd.setdefault(UNREADABLE, []).append(key)
        return
    kept = {name: value for name, value in said.items() if name not in UNREAD}
    before, now = found.keys.get(key), (bool(pictures), bool(said))
    if before is not None and all(before):
        found.odd.setdefault(AGAIN, []).append(key)
        return
    if before is not None and not all(now) and before != now:
        found.odd.setdefault(APART, []).append(key)
    found.keys[key] = now
    found.rows.append({"key": key, "pictures": list(pictures.values()), "said": json.dumps(kept)})


def _content(file: BinaryIO, member: tar.Member, most: int | None = None) -> bytes:
    if most is not None and member.size > most:
        raise ValueError(f"{member.size} bytes")
    file.seek(member.start)
    return file.read(member.size)
