"""Tables of what readers read, made once from the files and kept: all runs, ranks and workers map the same ones.

They are made in a process of its own, which gives back the memory that millions of Python objects took.
"""

import json
import os
import secrets
import shutil
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from xxhash import xxh3_128

from fusionkit.data.tables.child import in_child
from fusionkit.data.tables.describe import Unknown, describe
from fusionkit.data.tables.place import Made, is_writable, keep, kept, locked, places, tidy
from fusionkit.data.tables.table import Tables, open_tables, write_tables
from fusionkit.errors import DataError
from fusionkit.files.atomic import atomic_folder
from fusionkit.files.depends import noting, parsing_once
from fusionkit.files.plain import collector_paused

SMALL = 2**25  # bytes of tables that may stay in memory where they are not kept


@dataclass(frozen=True)
class Wanted:
    """Splits of a reader, and what reads them."""

    reader: Any
    splits: tuple[str, ...]
    read: Callable[[], Tables]
    how: str = ""  # what else ``read`` does otherwise

    @property
    def key(self) -> str | None:
        """A name that is equal where the same is read; None where nothing tells (``describe``)."""
        try:
            said = [describe(self.reader), list(self.splits), os.getcwd(), *([self.how] if self.how else [])]
        except Unknown:
            return None
        return xxh3_128(json.dumps(said).encode()).hexdigest()


def load_tables(wanted: Sequence[Wanted]) -> list[Tables]:
    """The tables of each: kept ones, or made now and kept; those of readers that nothing is known of are made anew.

    Raises what reading raises.
    """
    keys = [each.key for each in wanted]
    by_key = {key: each for key, each in zip(keys, wanted, strict=True) if key is not None}
    found = _load(by_key) if by_key else {}
    return [_read_here(each.read) if key is None else found[key] for key, each in zip(keys, wanted, strict=True)]


def _load(wanted: Mapping[str, Wanted]) -> dict[str, Tables]:
    folders = places()
    found = _find(folders, wanted)
    if missing := [key for key in wanted if key not in found]:
        place = next((folder for folder in folders if is_writable(folder)), None)
        if place is None:
            return found | {key: _read_here(wanted[key].read) for key in missing}
        with locked(place, missing):
            found |= _find([place], {key: wanted[key] for key in missing})  # another process has just made them
            missing = [key for key in missing if key not in found]
            if missing:
                found |= _make(place, {key: wanted[key] for key in missing})
    _tell(found, missing)
    return found


def _find(folders: Sequence[Path], wanted: Mapping[str, Wanted]) -> dict[str, Tables]:
    found, told = {}, dict[str, None]()
    for key in wanted:
        there = next((there for folder in folders if (there := kept(folder, key)) is not None), None)
        if there is not None:
            found[key], warned = there
            told |= dict.fromkeys(warned)
    _warn(told)
    return found


def _warn(told: Iterable[str]) -> None:
    """Say once what several splits of a file were told."""
    for text in dict.fromkeys(told):
        warnings.warn(text, stacklevel=3)


def _make(place: Path, wanted: Mapping[str, Wanted]) -> dict[str, Tables]:
    """Read, write, note and open; what the disk does not take is read again and stays in memory."""

    def write() -> list[Made | None]:
        with collector_paused(), parsing_once():
            return [_write(place, key, each) for key, each in wanted.items()]

    made = in_child(write)
    _warn(text for one in made if one is not None for text in one.warnings)
    found = {}
    for (key, each), one in zip(wanted.items(), made, strict=True):
        if one is None:
            found[key] = _read_here(each.read)
            continue
        found[key] = open_tables(place / one.folder, one.tables)
    tidy(place, {key: one.folder for key, one in zip(wanted, made, strict=True) if one is not None})
    return found


def _write(place: Path, key: str, wanted: Wanted) -> Made | None:
    """Read and write the tables of a key; None where the disk does not take them."""
    with noting() as files, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        tables = wanted.read()
    is_same = files.finish()
    folder = f"{key}-{secrets.token_hex(6)}"
    try:
        with atomic_folder(place / folder) as temporary:
            written = write_tables(tables, temporary)
    except DataError:
        return None
    made = Made(folder, written, files.seen, [str(each.message) for each in warned])
    if is_same:  # else it was read while it changed, and is read anew the next time
        with suppress(DataError):
            keep(place, key, made)
    return made


def _read_here(read: Callable[[], Tables]) -> Tables:
    """Read in this process; large tables are mapped from files that vanish with it, if the disk takes them."""
    with collector_paused():
        tables = read()
    if tables.nbytes <= SMALL:
        return tables
    try:
        folder = Path(tempfile.mkdtemp(prefix="fusionkit-"))
        mapped = open_tables(folder, write_tables(tables, folder))
    except OSError:
        return tables
    weakref.finalize(mapped, _remove, folder, os.getpid())
    return mapped


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # and not a worker that was forked from it
        shutil.rmtree(folder, ignore_errors=True)


@rank_zero_only
def _tell(found: Mapping[str, Tables], made: Sequence[str]) -> None:
    """Say what was read from where."""
    images = sum(len(tables) for tables in found.values())
    texts = sum(len(table["text"]) for tables in found.values() for table in tables.texts.values())
    folder = next((tables.folder.parent for tables in found.values() if tables.folder is not None), None)
    where = "kept in memory, as no folder takes them" if folder is None else f"kept in {folder}"
    how = f"read anew {len(made)} of {len(found)}, {where}" if made else f"read from {folder}"
    print(f"data: {images:,} images with {texts:,} texts, {how}", file=sys.stderr, flush=True)
