"""The files in a tar archive by their places, so that each is read where it stands; nothing is unpacked, and no link followed."""

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512  # bytes, of which an archive is made
FILE = b"0\0007"  # kinds of members that are files
BARE = b"123456"  # links, devices, folders and pipes, which have no content
HARD_LINK, SPARSE = b"1", b"S"  # another name of a file before it; a file without its zeros (GNU)
LONG_NAME, LONG_LINK, PAX, PAX_OF_ALL = b"L", b"K", b"x", b"g"  # headers about the member behind them
LONGEST_HEADER = 2**20  # bytes
PADDING = 20 * BLOCK + BLOCK  # the most zeros that end an archive: two blocks, filled up to a record of twenty


class Member(NamedTuple):
    """A file in an archive: its name, which is a word and no place, and where its bytes are."""

    name: str
    start: int
    size: int
    is_sparse: bool = False  # its bytes are not those of the file


class CutShort(Exception):
    """An archive that ends, or cannot be read on, before its end."""


def members(file: BinaryIO) -> Iterator[Member]:
    """The files of an archive (POSIX.1-2001 ustar and pax, GNU's long names) in their order, hard links as what they name.

    Archives behind one another are read as one. Raises CutShort behind the last of them where the archive has no end, where
    more zeros stand than end one, and where a header is damaged. A byte of a name that is no UTF-8 is ``\\xe9``.
    """
    whole, place, zeros = os.fstat(file.fileno()).st_size, 0, 0
    said: dict[bytes | str, bytes] = {}
    there: dict[bytes, Member] = {}
    while True:
        file.seek(place)
        header = file.read(BLOCK)
        if not header.strip(b"\0") and (header or zeros):
            zeros, place = zeros + len(header), place + len(header)
            if zeros > PADDING:
                raise CutShort(f"from byte {place - zeros:,} on it has zeros, more than end a tar")
            if len(header) == BLOCK:
                continue
            if zeros >= BLOCK:
                return
        if len(header) < BLOCK:
            raise CutShort(f"it ends at byte {whole:,} without the mark of an end")
        zeros = 0
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise CutShort(f"its header at byte {place:,} is damaged")
        kind, start = header[156:157], place + BLOCK
        size = _number(said.get("size", header[124:136]), 10 if "size" in said else 8)
        if size is None:
            raise CutShort(f"its header at byte {place:,} names no size")
        size = 0 if kind in BARE else size
        is_sparse = kind == SPARSE or any(str(key).startswith("GNU.sparse.") for key in said)
        more = kind == SPARSE and header[482]  # blocks of the places of a sparse file
        while more:
            block, start = file.read(BLOCK), start + BLOCK
            more = len(block) == BLOCK and block[504]
        place = start + -(-size // BLOCK) * BLOCK
        if start + size > whole:
            raise CutShort(
                f"its member at byte {start - BLOCK:,} would end at byte {start + size:,}, but it has {whole:,}"
            )
        if kind in (LONG_NAME, LONG_LINK, PAX, PAX_OF_ALL):
            if size > LONGEST_HEADER:
                raise CutShort(f"its header at byte {start - BLOCK:,} is damaged")
            content = file.read(size)
            if kind in (LONG_NAME, LONG_LINK):
                said[kind] = content.partition(b"\0")[0]
            elif kind == PAX:
                said |= _pax(content)
            continue
        short, folder = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
        is_ustar = header[257:263] == b"ustar\0"  # in GNU's own format other things stand there
        own = folder + b"/" + short if is_ustar and folder else short
        name = said.get("path") or said.get(LONG_NAME) or own
        link = said.get("linkpath") or said.get(LONG_LINK) or header[157:257].partition(b"\0")[0]
        target = there.get(link) if kind == HARD_LINK else None
        if kind in FILE or kind == SPARSE or target:
            text = name.decode("utf-8", "backslashreplace")
            there[name] = target._replace(name=text) if target else Member(text, start, size, is_sparse)
            yield there[name]
        said = {}


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


def _pax(content: bytes) -> dict[bytes | str, bytes]:
    """Records "LENGTH key=value" by key; what is behind a damaged one is left out."""
    found: dict[bytes | str, bytes] = {}
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not len(length) < int(length[:8]) <= len(content):
            break
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value
        content = content[int(length) :]
    return found
