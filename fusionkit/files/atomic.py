"""Files and folders that are whole or not there: written beside their place, flushed to the disk, then renamed.

A killed process, a full disk or another process that writes the same file therefore never leaves a half-written one to be read.
"""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fusionkit.errors import DataError

BEGIN, END = ".fusionkit-", ".tmp"  # of the name of what is not written yet
ADVICE = "make room, or choose another folder"
ABANDONED = 3600.0  # seconds without a byte after which a temporary file belongs to no living process
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG)


@contextmanager
def atomic_write(path: Path, previous: Path | None = None, advice: str = ADVICE) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when the block ends, and vanishes where it fails.

    ``previous`` is where the file that was there before is kept. A link stays one: what it points to is replaced. Raises
    DataError, which says that the old file is whole and gives the advice, where the disk does not take the new one.
    """
    place = Path(os.path.realpath(path))
    temporary = _temporary(place)
    with writing(path, advice):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if previous is not None:
                _keep(place, previous)
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
    _flush_folder(place.parent)


@contextmanager
def atomic_folder(folder: Path, advice: str = ADVICE) -> Iterator[Path]:
    """Make a folder that appears at once, with all that the block writes to it; ``folder`` is empty or not there."""
    place = Path(os.path.realpath(folder))
    temporary = _temporary(place)
    with writing(folder, advice):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.mkdir()
            readable = (
                temporary.stat().st_mode & 0o666
            )  # as this system makes files; safetensors makes them its user's alone
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(readable)
                flush(file)
            temporary.replace(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    _flush_folder(place.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; bytes of a file's name that are no UTF-8 become the escapes that JSON reads them from."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def remove_leftovers(folder: Path, seconds: float = ABANDONED) -> None:
    """Remove what killed processes left in a folder; what was written to in the last ``seconds`` may be another's."""
    for path in folder.glob(f"{BEGIN}*{END}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime >= seconds:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def writing(path: Path, advice: str = ADVICE) -> Iterator[None]:
    """Tell what the disk refuses in the block as a DataError about ``path``."""
    try:
        yield
    except OSError as error:
        state = "the one before is whole" if path.exists() else "nothing is left of it"
        raise DataError(f"{path} cannot be written ({error.strerror or error}), and {state}; {advice}") from error


def refused(error: OSError) -> DataError | None:
    """The sentence for what the disk refuses, which is never a defect of ours; None for any other error of the system."""
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in FULL:
        return DataError(f"{place}{error.strerror}; {ADVICE} (what was written before is whole)")
    if error.errno in FORBIDDEN:
        return DataError(f"{place}{error.strerror}; see to its permissions and its disk, or choose another place")
    return None


def _temporary(place: Path) -> Path:
    return place.with_name(f"{BEGIN}{secrets.token_hex(6)}{END}")


def _keep(path: Path, previous: Path) -> None:
    """Give the file a second name, so that at each moment one of the two is there."""
    if not path.exists():
        return
    link = _temporary(previous)
    try:
        os.link(path, link)
        link.replace(previous)
    except OSError:  # a file system without links, or another one
        shutil.move(path, previous)
    else:
        # it stays where both were names of one file already: an earlier save was killed between the two
        link.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until the bytes of a file or folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Keep the new name as well; not every system can, and the file itself is safe by now."""
    with suppress(OSError):
        flush(folder)
