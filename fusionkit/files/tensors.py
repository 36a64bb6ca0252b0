"""Files of tensors that carry a hash of all their bytes: computed while they are written, checked whenever they are read.

They are what ``torch.save`` writes. The hash is the comment of the zip file that this is, which other readers pass over.
"""

import io
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch
from xxhash import xxh3_128

from fusionkit.errors import DataError
from fusionkit.files.atomic import ADVICE, atomic_write
from fusionkit.files.plain import CHECKPOINT, other_kind

MARK = b"fusionkit xxh3_128 "
COMMENT = len(MARK) + 2 * xxh3_128().digest_size  # bytes: the mark, and the hash in hexadecimal digits
LENGTH = struct.Struct("<H")  # of the comment, right before it
LAST = b"PK\5\6"  # what the last record of a zip file begins with
LAST_SIZE = 22  # bytes of this record, without the comment
CHUNK = 2**22  # bytes read at a time


def save_tensors(content: Any, path: Path, previous: Path | None = None, advice: str = ADVICE) -> None:
    """Write nested tensors and plain values with their hash, as in ``atomic_write``."""
    with atomic_write(path, previous, advice) as file:
        hashed = _Hashed(file)
        try:
            torch.save(content, hashed)  # type: ignore[arg-type]  # all that it calls is there
        except RuntimeError as error:  # torch's words for an error of the file
            raise hashed.error or error from error
        file.seek(-LENGTH.size, os.SEEK_END)
        file.write(LENGTH.pack(COMMENT) + MARK + hashed.hash.hexdigest().encode())


def read_tensors(path: Path, mmap: bool = False) -> Any:
    """Read what ``save_tensors`` wrote, on the CPU, or what an earlier version wrote without a hash; runs no code of the file.

    With ``mmap`` its tensors take memory only as they are read. Raises DataError where the file is damaged or of another kind.
    """
    try:
        if (fault := _fault(path)) is None:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # bytes that are no pickle can fail anywhere in it
        fault = (str(error).partition(". ")[0].splitlines() or [type(error).__name__])[0]
    told = other_kind(path, CHECKPOINT)
    raise DataError(told or f"{path} cannot be read: it is truncated, damaged or no such file at all ({fault})")


def glance(path: Path) -> Any:
    """The content of a file, its bytes unchecked and its tensors unread; raises anything where that is none of ours."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def is_hashed(path: Path) -> bool:
    """Whether the file carries a hash, and that of its bytes; raises OSError where the disk does not give them."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - COMMENT))
        return file.read(len(MARK)) == MARK and _fault(path) is None


def is_whole(path: Path) -> bool:
    """Whether the file reads, without a look at its tensors where it has a hash."""
    try:
        read_tensors(path, mmap=True)
    except DataError:
        return False
    return True


def _fault(path: Path) -> str | None:
    """What is wrong with the bytes of a file, as far as they tell; None where all is well."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - COMMENT - LENGTH.size))
        tail = file.read()
        length, comment = tail[: LENGTH.size], tail[LENGTH.size :]
        file.seek(0)
        if not comment.startswith(MARK):
            is_zip = file.read(2) == LAST[:2]
            is_plain = tail[-LAST_SIZE:].startswith(LAST) and tail.endswith(b"\0\0")  # of the time before hashes
            return None if is_plain or not is_zip else "its end is missing"
        file.seek(0)
        digest = xxh3_128()
        for start in range(0, size - len(tail), CHUNK):
            digest.update(file.read(min(CHUNK, size - len(tail) - start)))
        digest.update(bytes(LENGTH.size))
        is_same = length == LENGTH.pack(COMMENT) and comment == MARK + digest.hexdigest().encode()
        return None if is_same else "its bytes are not those that were written"


class _Hashed(io.RawIOBase):
    """A file that is hashed while it is written, and keeps the error that torch hides."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash = file, xxh3_128()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._put(data)
        except OSError as error:
            self.error = error
            raise
        self.hash.update(data)
        return written

    def _put(self, data: Any) -> int:
        return self.file.write(data)
