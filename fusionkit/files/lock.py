"""A lock on a folder: one living process holds it, and none that is dead.

The system's own (flock), which ends with the process that took it. Where the disk has none (some network file systems), a second
file is the lock, and says who made it: the process and its machine. On the same machine it is asked whether that process lives;
of another it is known only that it touches the file every ``SIGN`` seconds, and after ``STALE`` without it is taken for dead.
"""

import errno
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fusionkit.errors import ConfigError

NAME, HOLDER = ".lock", ".lock-holder"
SIGN, STALE = 30.0, 300.0  # seconds


@contextmanager
def locked_folder(folder: Path, what: str) -> Iterator[None]:
    """Hold the folder, which is made where it is not there (and goes again where it is left empty).

    ``what`` is told of who holds it. Raises ConfigError at once where another process does; where nothing can be written nothing
    is held, and who writes will tell.
    """
    folder = folder.absolute()  # wherever one stands later
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(folder, what)
    except OSError:
        yield
        return
    over = threading.Event()
    if handle is None:
        threading.Thread(target=_sign, args=(folder / HOLDER, over), name="fusionkit-lock", daemon=True).start()
    else:
        _HANDLES.add(handle)
    try:
        yield
    finally:
        over.set()
        with suppress(OSError):
            if handle is not None:
                (folder / NAME).unlink()  # while it is held: who opens it now finds another file, or none
            elif _read(folder / HOLDER) == _self():
                (folder / HOLDER).unlink()
                (folder / NAME).unlink()
        if handle is not None:
            _HANDLES.remove(handle)
            os.close(handle)
        for place in new:
            with suppress(OSError):  # not empty
                place.rmdir()


_HANDLES = set[int]()  # of locks that this process holds


def _let_go() -> None:
    """In a fork: the lock is its parent's, and ends with that one."""
    for handle in _HANDLES:
        os.close(handle)
    _HANDLES.clear()


os.register_at_fork(after_in_child=_let_go)


def _take(folder: Path, what: str) -> int | None:
    """The open file that is locked; None where the disk has no locks and a second file is one."""
    path = folder / NAME
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # another user's, who may write in the folder too
            handle = os.open(path, os.O_RDONLY)
        try:
            has_locks = _flock(handle)
        except BlockingIOError:
            holder = _read(path)
            os.close(handle)
            raise ConfigError(_told(folder, what, holder)) from None
        if not has_locks:
            os.close(handle)
            _take_by_name(folder, what)
            return None
        if _is_same(handle, path):
            with suppress(OSError):  # it is held, even if it cannot say by whom
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(_self()).encode(), 0)
            return handle
        os.close(handle)  # its holder has just removed it


def _flock(handle: int) -> bool:
    """Lock an open file; False where the disk knows no locks, BlockingIOError where another process has it."""
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


def _take_by_name(folder: Path, what: str) -> None:
    """Make the file that is the lock; one of a dead holder is put aside first."""
    path = folder / HOLDER
    while True:
        with suppress(FileExistsError):
            handle = os.open(
                path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666
            )  # one of all who try makes it, on NFS too
            os.write(handle, json.dumps(_self()).encode())
            os.close(handle)
            return
        holder, aside = _read(path), path.with_name(f"{HOLDER}-{socket.gethostname()}-{os.getpid()}")
        if _lives(path, holder):
            raise ConfigError(_told(folder, what, holder))
        with suppress(FileNotFoundError):
            path.rename(aside)
            if _read(aside) == holder:
                aside.unlink()
            else:  # somebody was quicker, and this is theirs
                aside.rename(path)


def _lives(path: Path, holder: Mapping[str, Any]) -> bool:
    if holder.get("host") == socket.gethostname() and holder.get("began"):
        return bool(_began(holder["process"]) == holder["began"])
    with suppress(OSError):
        os.utime(path.with_name(NAME))  # by the clock of the disk
        return path.with_name(NAME).stat().st_mtime - path.stat().st_mtime < STALE
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
            if _read(path) == _self():  # it may have been taken for dead
                os.utime(path)


def _told(folder: Path, what: str, holder: dict[str, Any]) -> str:
    who = f" (process {holder['process']} on {holder['host']})" if holder else ""
    return f"{what} in {folder}{who}; wait for its end, or give another output_dir=FOLDER"
