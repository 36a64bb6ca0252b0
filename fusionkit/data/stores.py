"""Many small files in one: an lmdb whose keys are file names, in a folder's place. The package lmdb is optional."""

import importlib
import os
from functools import cache
from pathlib import Path
from typing import Any

from fusionkit.errors import ConfigError, DataError, UserError, install_extra
from fusionkit.files.names import is_file_name

ZIP = b"PK"  # what a zip file, and so an npz file, begins with


def is_lmdb(folder: Path) -> bool:
    """Whether a folder is an lmdb."""
    return (folder / "data.mdb").is_file()


def stored_bytes(path: Path) -> bytes:
    """The content of a file, or of the key ``path.name`` of the lmdb that its folder is; empty for a key that is not there."""
    if not is_lmdb(path.parent):
        return path.read_bytes()
    with _open(path.parent, os.getpid()).begin() as transaction:
        return transaction.get(path.name.encode()) or b""


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
