"""Where tables are kept between runs, and the notes beside them that say what they were made of."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from fusionkit.data.tables.describe import code_version
from fusionkit.data.tables.table import Tables, open_tables
from fusionkit.files.atomic import remove_leftovers, write_text
from fusionkit.files.depends import Seen, is_same
from fusionkit.files.names import is_file_name

SHARDS = "shards"  # the folder of what is in shards (``readers.shard_index``)
UNUSED = 90 * 86400.0  # seconds after which what no run has asked for is removed


@dataclass
class Made:
    """What was made of some files: the folder of tables and what is in it, the files, and what was warned of."""

    folder: str
    tables: dict[str, dict[str, Any]]
    files: dict[str, Seen]
    warnings: list[str]
    code: str = ""


def places() -> list[Path]:
    """Folders in which tables may be kept, the likeliest first: $FUSIONKIT_CACHE or ~/.cache/fusionkit, and a temporary one."""
    said = os.environ.get("FUSIONKIT_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return [Path(said).expanduser() / "tables" if said else base / "fusionkit" / "tables", _temporary()]


def _temporary() -> Path:
    """A folder that is this user's alone; its name in a folder that all may write to is no promise of that."""
    user = getattr(os, "getuid", int)()
    place = Path(tempfile.gettempdir()) / f"fusionkit-{user}"
    with suppress(OSError):
        place.mkdir(mode=0o700, exist_ok=True)
        state = place.lstat()
        if place.is_dir() and not place.is_symlink() and state.st_uid == user and not state.st_mode & 0o077:
            return place / "tables"
    return _own(tempfile.gettempdir()) / "tables"


@cache
def _own(parent: str) -> Path:
    """A folder of this process and its workers."""
    return Path(tempfile.mkdtemp(prefix="fusionkit-", dir=parent))


def is_writable(place: Path) -> bool:
    """Whether files can be made in a folder, which is made where it is not there."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False


def kept(place: Path, key: str) -> tuple[Tables, Sequence[str]] | None:
    """The tables of a key and what to warn of, where they are whole and what they were made of is as it was."""
    try:
        said = json.loads((place / f"{key}.json").read_text(encoding="utf-8"))
        files = {path: Seen(**seen) for path, seen in said.pop("files").items()}
        made = Made(files=files, **said)
        before = [seen.time for seen in files.values()]
        if made.code != code_version() or not is_file_name(made.folder):
            return None
        if not all(is_same(path, seen) for path, seen in files.items()):
            return None
        tables = open_tables(place / made.folder, made.tables)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # not there, or damaged
        return None
    with suppress(Exception):  # where nothing can be written that is no harm
        if before != [seen.time for seen in files.values()]:
            keep(place, key, made)
        os.utime(place / f"{key}.json")
    return tables, made.warnings


def keep(place: Path, key: str, made: Made) -> None:
    """Note what was made for a key; DataError where the disk does not take it."""
    made.code = code_version()
    write_text(place / f"{key}.json", json.dumps(asdict(made)))


def tidy(place: Path, current: Mapping[str, str]) -> None:
    """Remove tables that newer ones of the same key (``current``: folders by key) replace, and those long unused."""
    remove_leftovers(place)
    for note in place.glob("*.json"):
        with suppress(OSError):
            if note.stem not in current and time.time() - note.stat().st_mtime > UNUSED:
                note.unlink()
                for folder in place.glob(f"{note.stem}-*"):
                    shutil.rmtree(folder, ignore_errors=True)
    for path in place.glob(f"{SHARDS}/*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > UNUSED:
                path.unlink()
    for key, name in current.items():
        for other in place.glob(f"{key}-*"):
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)


@contextmanager
def locked(place: Path, keys: Sequence[str]) -> Iterator[None]:
    """Be the one process that makes the tables of some keys; where the disk knows no locks each makes its own."""
    with ExitStack() as stack:
        for key in sorted(set(keys)):  # in one order, so that no two wait for each other
            with suppress(OSError, NotImplementedError):
                stack.enter_context(FileLock(place / f"{key}.lock"))
        yield
