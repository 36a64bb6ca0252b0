"""A lock on a folder: one living process holds it, and none that is dead.

The system's own (flock), which ends with the process that took it. Where the disk has none (some network file systems, Windows),
the file says who holds it: the process and its machine. On the same machine it is asked whether that process lives; of another
machine it is known only that a holder touches the file every ``SIGN`` seconds, and after ``STALE`` without it is taken for dead.
"""

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fusionkit.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
SIGN, STALE = 30.0, 300.0  # seconds


@contextmanager
def locked_folder(folder: Path, what: str) -> Iterator[None]:
    """Hold the folder, which is made where it is not there (and goes again where it is left empty).

    ``what`` is told of who holds it. Raises ConfigError at once where another process does; where nothing can be written nothing
    is held, and who writes will tell.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(path, folder, what)
    except OSError:
        yield
        return
    over = threading.Event()
    if handle is None:
        threading.Thread(target=_sign, args=(path, over), name="fusionkit-lock", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        with suppress(OSError):
            path.unlink()  # while it is held: who opens it now finds another file, or none
        if handle is not None:
            os.close(handle)
        for place in new:
            with suppress(OSError):  # not empty
                place.rmdir()


def _take(path: Path, folder: Path, what: str) -> int | None:
    """The open file that is locked; None where the disk has no locks and the file itself is one."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _flock(handle):
                os.close(handle)
                _take_by_name(path, folder, what)
                return None
        except BlockingIOError:
            holder = _read(path)
            os.close(handle)
            raise ConfigError(_told(folder, what, holder)) from None
        if _is_same(handle, path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(_self()).encode(), 0)
            return handle
        os.close(handle)  # its holder has just removed it


def _flock(handle: int) -> bool:
    """Lock an open file; False where the disk knows no locks, BlockingIOError where another process has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(error.errno, error.strerror) from error
        return False
    return True


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _take_by_name(path: Path, folder: Path, what: str) -> None:
    holder = _read(path)
    if holder and _lives(path, holder):
        raise ConfigError(_told(folder, what, holder))
    mine = path.with_name(f"{NAME}-{socket.gethostname()}-{os.getpid()}")
    mine.write_text(json.dumps(_self()), encoding="utf-8")
    mine.replace(path)
    time.sleep(0.2)  # who came at the same moment has replaced it by now: the last one holds it
    if (holder := _read(path)) != _self():
        raise ConfigError(_told(folder, what, holder))


def _lives(path: Path, holder: dict[str, Any]) -> bool:
    if holder["host"] == socket.gethostname():
        if holder["process"] == os.getpid():
            return True
        try:
            os.kill(holder["process"], 0)
        except ProcessLookupError:
            return False
        except OSError:  # another user's
            return True
        return holder.get("began") == _began(holder["process"])
    with suppress(OSError):
        return time.time() - path.stat().st_mtime < STALE
    return False


def _self() -> dict[str, Any]:
    return {"process": os.getpid(), "host": socket.gethostname(), "began": _began(os.getpid())}


def _began(process: int) -> str:
    """When a process began, in the system's own count, so that another of the same number is told apart; empty where unknown."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _read(path: Path) -> dict[str, Any]:
    """Who holds the lock, as far as the file says."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) and isinstance(found.get("process"), int) and "host" in found else {}
    except (OSError, ValueError):
        return {}


def _sign(path: Path, over: threading.Event) -> None:
    while not over.wait(SIGN):
        with suppress(OSError):
            os.utime(path)


def _told(folder: Path, what: str, holder: dict[str, Any]) -> str:
    who = f" (process {holder['process']} on {holder['host']})" if holder else ""
    return f"{what} in {folder}{who}; wait for its end, or give another output_dir=FOLDER"
