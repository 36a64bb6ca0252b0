"""The files in a tar archive by their places, so that each is read where it stands; nothing is unpacked, and no link followed."""

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512  # bytes, of which an archive is made
FILE = b"0\0007"  # kinds of members that are files
BARE = b"123456"  # links, devices, folders and pipes, which have no content
LONG_NAME, LONG_LINK, PAX, PAX_OF_ALL = b"L", b"K", b"x", b"g"  # headers about the member behind them
LONGEST_HEADER = 2**20  # bytes


class Member(NamedTuple):
    """A file in an archive: its name, which is a word and no place, and where its bytes are."""

    name: str
    start: int
    size: int


class CutShort(Exception):
    """An archive that ends, or cannot be read on, before its end."""


def members(file: BinaryIO) -> Iterator[Member]:
    """The files of an archive (POSIX.1-2001 ustar and pax, GNU's long names) in their order.

    Raises CutShort behind the last of them where the archive has no end, and where a header is damaged.
    """
    whole, place = os.fstat(file.fileno()).st_size, 0
    name: bytes | None = None
    said: dict[str, bytes] = {}
    while True:
        file.seek(place)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise CutShort(f"it ends at byte {whole:,} without the mark of an end")
        if not header.strip(b"\0"):
            return
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise CutShort(f"its header at byte {place:,} is damaged")
        kind, start = header[156:157], place + BLOCK
        size = _number(said.get("size", header[124:136]), 10 if "size" in said else 8)
        if size is None:
            raise CutShort(f"its header at byte {place:,} names no size")
        size = 0 if kind in BARE else size
        place = start + -(-size // BLOCK) * BLOCK
        if start + size > whole:
            raise CutShort(
                f"its member at byte {start - BLOCK:,} would end at byte {start + size:,}, but it has {whole:,}"
            )
        if kind in (LONG_NAME, LONG_LINK, PAX, PAX_OF_ALL):
            if size > LONGEST_HEADER:
                raise CutShort(f"its header at byte {start - BLOCK:,} is damaged")
            content = file.read(size)
            if kind == LONG_NAME:
                name = content.partition(b"\0")[0]
            elif kind == PAX:
                said = _pax(content)
            continue
        if kind in FILE:
            short, folder = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
            is_ustar = header[257:263] == b"ustar\0"  # in GNU's own format other things stand there
            own = folder + b"/" + short if is_ustar and folder else short
            yield Member((said.get("path") or name or own).decode("utf-8", "replace"), start, size)
        name, said = None, {}


def _number(field: bytes, base: int = 8) -> int | None:
    """A number of a header: digits, or bytes where it is too large for them (GNU); None for anything else."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    try:
        digits = field.strip(b"\0 ")
        found = int(digits, base) if digits else 0
    except ValueError:
        return None
    return found if found >= 0 else None


def _pax(content: bytes) -> dict[str, bytes]:
    """Records "LENGTH key=value" by key; what is behind a damaged one is left out."""
    found = {}
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not len(length) < int(length[:8]) <= len(content):
            break
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value
        content = content[int(length) :]
    return found
