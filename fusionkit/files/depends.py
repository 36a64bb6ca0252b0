"""Which files a reading depends on: noted while they are read, so that what was made of them can be kept and known again."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

CHUNK = 2**22  # bytes read at a time
RACY = 2_000_000_000  # nanoseconds in which a file may change and keep its time of change
FILE, FOLDER, STORE = "file", "folder", "store"  # a store is too large to be hashed: its size and time have to do
MISSING = -1  # the size of a folder that is not there
SHARED = 2  # parsed files held at a time: what VQA and RefCOCO read together


@dataclass
class Seen:
    """What a file, the names in a folder or a store was like."""

    kind: str
    size: int
    time: int  # of its last change, nanoseconds
    is_racy: bool  # it had changed so lately that another change could have the same time
    digest: str = ""  # of its bytes or names; of a store which file it is, and when that came here


@dataclass
class Files:
    """What was read, by path."""

    seen: dict[str, Seen] = field(default_factory=dict)

    def note(self, path: Path, kind: str) -> None:
        """Before it is read, so that a change while it is read is seen."""
        place = os.path.abspath(path)
        if place not in self.seen and (now := _look(place, kind)) is not None:
            self.seen[place] = now

    def finish(self) -> bool:
        """Hash what was read; whether all of it is still as it was when it was read."""
        same = True
        for path, seen in self.seen.items():
            seen.digest, now = _digest(path, seen.kind), _look(path, seen.kind)
            same = same and now is not None and (now.size, now.time) == (seen.size, seen.time)
        return same


_noting: ContextVar[tuple[Files, ...]] = ContextVar("noting", default=())
_parsed: ContextVar[dict[str, Any] | None] = ContextVar("parsed", default=None)


@contextmanager
def noting() -> Iterator[Files]:
    """Gather what the block reads."""
    files = Files()
    token = _noting.set((*_noting.get(), files))
    try:
        yield files
    finally:
        _noting.reset(token)


def note(path: Path, kind: str = FILE) -> None:
    """Say that what is being read depends on a file, on the names in a FOLDER, or on a STORE such as an lmdb.

    The functions that readers share (``read_json`` and its like, ``find_images``) do; what opens a file by itself has to.
    """
    for files in _noting.get():
        files.note(path, kind)


def again(seen: Mapping[str, Seen]) -> None:
    """Say that what is being read depends on files that were read before, as they were then: what was made of them is held."""
    for files in _noting.get():
        for path, each in seen.items():
            files.seen.setdefault(path, replace(each))


@contextmanager
def parsing_once() -> Iterator[None]:
    """In the block a file of several splits is parsed once (``parsed_once``)."""
    token = _parsed.set({})
    try:
        yield
    finally:
        _parsed.reset(token)


def parsed_once(path: Path, parse: Callable[[Path], Any]) -> Any:
    """``parse(path)``, or what it gave when it was last asked for the same file in a ``parsing_once``: do not change it."""
    parsed = _parsed.get()
    if parsed is None:
        return parse(path)
    note(path)
    state = path.stat()
    key = f"{os.path.abspath(path)} {state.st_size} {state.st_mtime_ns}"
    if key not in parsed:
        while len(parsed) >= SHARED:
            del parsed[next(iter(parsed))]
        parsed[key] = parse(path)
    return parsed[key]


def is_same(path: str, seen: Seen) -> bool:
    """Whether a file is as it was; where its time differs by its content, whose new time is then noted."""
    now = _look(path, seen.kind)
    if now is None or now.size != seen.size:
        return False
    if seen.kind == STORE:
        return now.time == seen.time and _digest(path, STORE) == seen.digest
    if now.time == seen.time and not seen.is_racy:
        return True
    if _digest(path, seen.kind) != seen.digest:
        return False
    seen.time, seen.is_racy = now.time, now.is_racy
    return True


def _look(path: str, kind: str) -> Seen | None:
    try:
        state = os.stat(path)
    except OSError:
        return Seen(kind, MISSING, 0, is_racy=False) if kind == FOLDER else None  # where files were looked for
    is_racy = kind != STORE and abs(time.time_ns() - state.st_mtime_ns) < RACY
    return Seen(kind, 0 if kind == FOLDER else state.st_size, state.st_mtime_ns, is_racy)


def _digest(path: str, kind: str) -> str:
    """Of the bytes of a file, or of the names in a folder; empty where there are none to be read."""
    digest = xxh3_128()
    try:
        if kind == STORE:  # a copy that keeps the time of change is another file, or has changed in another way
            state = os.stat(path)
            return f"{state.st_ino} {state.st_ctime_ns}"
        if kind == FOLDER:
            digest.update(b"\0".join(sorted(map(os.fsencode, os.listdir(path)))))
        else:
            with open(path, "rb") as file:
                while part := file.read(CHUNK):
                    digest.update(part)
    except OSError:
        return ""
    return digest.hexdigest()
