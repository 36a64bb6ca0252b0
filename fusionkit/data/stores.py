"""Many small files in one: an lmdb whose keys are file names, in a folder's place, the values of a table's column, or a tar.

The package lmdb is optional.
"""

import importlib
import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from xxhash import xxh3_64

from fusionkit.data.pixels.crops import crop_bytes, is_crop
from fusionkit.errors import ConfigError, DataError, UserError, install_extra
from fusionkit.files.names import is_file_name
from fusionkit.files.plain import reason_of

SHOWN = 80  # letters of a member's name that stand in its path
ODD = re.compile(r"[^\w-]")
MEMBER = re.compile(r"@(\d+)\+(\d+)(?:~(\w+))?(?:\.[^.@]*)?$")
ZIP = b"PK"  # what a zip file, and so an npz file, begins with


class ChangedError(DataError):
    """A tar is no longer the one whose members were found."""


def is_lmdb(folder: Path) -> bool:
    """Whether a folder is an lmdb."""
    return (folder / "data.mdb").is_file()


def stored_bytes(path: Path) -> bytes:
    """The content of a file, of the key ``path.name`` of the lmdb that its folder is, of a ``cell`` of a table, of a
    ``tar_member``, or of a ``crop`` of a picture.

    Empty for a key that is not there. Raises OSError for a file that is not there.
    """
    try:
        return path.read_bytes()
    except NotADirectoryError:  # a table, a tar or a picture stands in a folder's place
        if is_crop(path):
            return crop_bytes(path)
        return _member_bytes(path) if path.parent.is_file() else _cell_bytes(path)
    except FileNotFoundError:
        if not is_lmdb(path.parent):
            raise
    with _open(path.parent, os.getpid()).begin() as transaction:
        return transaction.get(path.name.encode()) or b""


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Size and time of change of a file, or of the lmdb, tar or table that it stands in.

    Of a folder the number of its files and a digest of their stamps. None where there is nothing.
    """
    for place in (path, path.parent, path.parent / "data.mdb", path.parent.parent):
        if place.is_file():
            state = place.stat()
            return state.st_size, state.st_mtime_ns
    if path.is_dir():  # the frames of a film
        with os.scandir(path) as entries:
            found = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries)
        return len(found), xxh3_64(repr(found).encode()).intdigest()
    return None


def lmdb_keys(folder: Path) -> list[str]:
    """The file names of an lmdb. DataError where its values are no npz files."""
    try:
        with _open(folder, os.getpid()).begin() as transaction, transaction.cursor() as cursor:
            names = [key.decode() for key in cursor.iternext(keys=True, values=False)]
            names = [name for name in names if not name.startswith("__")]  # UNITER's __keys__
            first = transaction.get(names[0].encode()) if names else ZIP
    except UserError:
        raise
    except Exception as error:  # lmdb's own, and names that are no text
        raise DataError(f"{folder} cannot be read as an lmdb ({error}); copy it again") from error
    if odd := [name for name in names if not is_file_name(name)]:
        raise DataError(f"{folder} has a key {odd[0]!a}, which is no plain file name")
    if not first.startswith(ZIP):
        raise DataError(f"the values of {folder} are no npz files; take UNITER's lmdb whose name ends in _compressed")
    return names


@cache
def _open(folder: Path, process: int) -> Any:
    """The lmdb of a folder, opened once in each process: a fork must not use its parent's."""
    try:
        lmdb = importlib.import_module("lmdb")
    except ImportError:
        raise ConfigError(
            f"{folder} is an lmdb, and the package lmdb is not installed; {install_extra('regions')}"
        ) from None
    try:
        store = lmdb.open(str(folder), readonly=True, create=False, lock=False)
    except lmdb.Error as error:
        raise DataError(f"{folder} cannot be read as an lmdb ({error}); copy it again") from error
    whole = (store.info()["last_pgno"] + 1) * store.stat()["psize"]  # bytes
    if (folder / "data.mdb").stat().st_size < whole:  # a look behind the end would kill the process
        raise DataError(f"{folder} is an lmdb that ends before its last page ({whole:,} bytes); copy it again")
    return store


def cell(table: Path, column: str, row: int, place: int = 0) -> Path:
    """What stands for the picture in a row, from 0, of a parquet or arrow file: ``TABLE/COLUMN/row17``.

    Of a list of pictures it is the one at ``place``. DataError for a column that no path can name.
    """
    if not is_file_name(column):
        raise DataError(f"{table} has a column {column!a} of pictures, whose name is no plain one; rename it")
    return table / column / (f"row{row}-{place}" if place else f"row{row}")


def tar_member(archive: Path, name: str, start: int, size: int, state: str = "") -> Path:
    """What stands for a file in a tar, by the place of its bytes: ``ARCHIVE/key@START+SIZE~STATE.jpg``.

    Of an archive that has another ``state_of`` since, where one is given, nothing is read.
    """
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    plain = stem if stem.isalnum() else ODD.sub("_", stem)
    return Path(f"{archive}/{plain[:SHOWN]}@{start}+{size}{'~' if state else ''}{state}{dot}{ending}")


def state_of(state: os.stat_result) -> str:
    """A word for the size and the time of change of a file."""
    return xxh3_64(f"{state.st_size} {state.st_mtime_ns}".encode()).hexdigest()


def _member_bytes(path: Path) -> bytes:
    """The bytes of a ``tar_member``; NotADirectoryError for a path that is none, ChangedError."""
    found = MEMBER.search(path.name)
    if found is None:
        raise NotADirectoryError(f"{path.parent} is no folder")
    with path.parent.open("rb", buffering=0) as file:
        if found[3] and found[3] != state_of(os.fstat(file.fileno())):
            raise ChangedError(
                f"the shard {path.parent} was changed while it was read; start again, and it is read anew"
            )
        file.seek(int(found[1]))
        return file.read(int(found[2]))


def arrow_table(path: Path) -> Any:
    """An arrow file, of either layout, as a ``pyarrow.Table`` of mapped memory; DataError where it is none."""
    import pyarrow

    with reading(path):
        source = pyarrow.memory_map(str(path))
        with path.open("rb") as file:
            is_file = file.read(6) == b"ARROW1"
        opened = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
        return opened(source).read_all()


def parquet_file(path: Path) -> Any:
    """A ``pyarrow.parquet.ParquetFile``; DataError where it is none."""
    from pyarrow import parquet

    with reading(path):
        return parquet.ParquetFile(path)


@contextmanager
def reading(table: Path) -> Iterator[None]:
    """Turns what pyarrow says of a damaged parquet or arrow file in the block into a DataError about it."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        kind = "a parquet table" if table.suffix.lower() == ".parquet" else "an arrow table"
        raise DataError(f"{table} cannot be read as {kind} ({reason_of(error)}); write it again") from error


def _cell_bytes(path: Path) -> bytes:
    """The bytes of a ``cell``; NotADirectoryError for a path that is none."""
    table, column = path.parent.parent, path.parent.name
    row, _, place = path.name.removeprefix("row").partition("-")
    if not row.isdecimal() or not table.is_file():
        raise NotADirectoryError(f"{path.parent} is no folder")
    with reading(table):
        value = _value(table, column, int(row))
    value = value[int(place or 0)] if isinstance(value, list) else value
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else b""


def _value(table: Path, column: str, row: int) -> Any:
    if table.suffix.lower() != ".parquet":
        return _arrow(table, os.getpid()).column(column)[row].as_py()
    starts = _starts(table, os.getpid())
    group = bisect_right(starts, row) - 1
    return _row_group(table, column, group, os.getpid()).column(column)[row - starts[group]].as_py()


@lru_cache(maxsize=64)
def _arrow(table: Path, process: int) -> Any:
    return arrow_table(table)


@lru_cache(maxsize=256)
def _starts(table: Path, process: int) -> list[int]:
    """The number of the first row of each row group."""
    about = parquet_file(table).metadata
    return list(accumulate((about.row_group(n).num_rows for n in range(about.num_row_groups - 1)), initial=0))


@lru_cache(maxsize=4)  # a whole row group is unpacked for one picture of it
def _row_group(table: Path, column: str, group: int, process: int) -> Any:
    return parquet_file(table).read_row_group(group, columns=[column])
