"""Signals and the lives of processes: what asks a run to stop is noted, and no process outlives the one that started it.

SIGTERM and SIGUSR1 are how clusters take a machine back. A training that is asked by one stops at its next step, with a
checkpoint of it, and exits with ``REQUEUE``; what has nothing to lose stops at once. Ctrl-C (SIGINT) is Python's own.
"""

import _thread
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Protocol

REQUEUE = 75  # exit code: EX_TEMPFAIL of sysexits.h, "try again later"
ASKING = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
PARENT = "FUSIONKIT_PARENT"  # in the environment of a process that we started: the number of the process that did
MISTAKE = "FUSIONKIT_MISTAKE"  # there, too, for a rank that we started: the file in which it leaves a mistake
STOPPED = (
    "FUSIONKIT_STOPPED"  # in a job of SLURM: the file that a process leaves, which then ends with 0 and not ``REQUEUE``
)
SAME = 1.0  # seconds in which a second signal is the first, once more: clusters signal the group and its processes
DEAF = 5.0  # seconds after which a process is ended that cannot hear a signal, since it waits in a library's code
LOOK = 1.0  # seconds between two looks at the parent, where the system does not tell of its end
SET_PDEATHSIG = 1  # of Linux's prctl
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


class Stopped(SystemExit):
    """The run was asked to stop, and has: it may go on where it was."""

    def __init__(self) -> None:
        super().__init__(REQUEUE)

    def __str__(self) -> str:
        return f"stopped by {asked() or 'a signal to another process'}; the same command with resume=auto goes on"


def stopped_code() -> int:
    """The exit code of a process that was asked to stop: 0 where a job of SLURM looks for a file, which is made.

    Who has started it itself, for a sweep or as a rank, looks at the code.
    """
    if (place := os.environ.get(STOPPED)) and not is_child():
        with open(place, "w"):
            pass
        return 0
    return REQUEUE


def begin_thread(work: Callable[..., None], *args: Any) -> None:
    """Do ``work`` in a thread that ends with the process at the latest. Raises RuntimeError where the system gives none.

    Not ``Thread.start``, which waits for ever for a thread that finds no memory to begin with.
    """
    _thread.start_new_thread(work, args)


class Child(Protocol):
    """A process that was started, as of ``subprocess.Popen``."""

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...


class _State:
    asked: int = 0  # the first signal
    since: float = 0.0
    heard: float = 0.0  # when a signal last came to one of our handlers
    is_held: bool = False  # a training runs, and looks at ``asked`` between its steps
    is_listening: bool = False
    children: list[Child] = []  # noqa: RUF012  (one state a process)


def asked() -> str:
    """The name of the signal that has asked this process to stop, empty where none has."""
    return signal.Signals(_State.asked).name if _State.asked else ""


def is_child() -> bool:
    """Whether one of our own processes has started this one, and tells it when to stop."""
    return PARENT in os.environ


@contextmanager
def listening() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 stop what is done within (``Stopped``); in a thread that cannot hear signals nothing changes."""
    if _State.is_listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _on_signal) for number in ASKING}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt_once if is_child() else _interrupt)
    _State.is_listening, _State.asked = True, 0
    try:
        with _never_deaf():
            yield
    finally:
        _State.is_listening = False
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def _never_deaf() -> Iterator[None]:
    """End this process where a signal does not come to Python, before training or after it, when there is nothing to lose.

    A rank waits within torch's own code for others, which may never come; handlers run between two steps of Python alone.
    """
    here, there = socket.socketpair()
    there.setblocking(False)
    before = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    with suppress(RuntimeError):
        begin_thread(_hear, here)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        there.close()


def _hear(wakeups: socket.socket) -> None:
    with wakeups:
        while came := wakeups.recv(1):
            number, at = came[0], time.monotonic()
            if number not in (*ASKING, signal.SIGINT):
                continue
            time.sleep(DEAF)
            if _State.heard < at - SAME and not _State.is_held:
                told = f"stopped by {signal.Signals(number).name} while a library was waiting, as for other processes"
                with suppress(OSError):
                    os.write(2, f"\n{told}\n".encode())
                os._exit(130 if number == signal.SIGINT else stopped_code())


@contextmanager
def held() -> Iterator[None]:
    """Within, a signal is only noted: who is here asks for ``asked`` where it can stop."""
    before, _State.is_held = _State.is_held, True
    try:
        yield
    finally:
        _State.is_held = before


@contextmanager
def children(started: Sequence[Child]) -> Iterator[None]:
    """Processes that end at once where this one is told to, a second time."""
    _State.children.extend(started)
    try:
        yield
    finally:
        for child in started:
            _State.children.remove(child)


def started() -> list[Any]:
    """The processes of ``children`` that this one has now."""
    return list(_State.children)


def _on_signal(number: int, frame: FrameType | None) -> None:
    now = _State.heard = time.monotonic()
    if not _State.asked:
        _State.asked, _State.since = number, now
        if not _State.is_held:
            raise Stopped
    elif now - _State.since > SAME and not is_child():  # who started us ends us itself
        for child in _State.children:
            with suppress(OSError):
                child.kill()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _State.heard = time.monotonic()
    signal.default_int_handler(number, frame)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    _State.heard = time.monotonic()
    signal.signal(number, signal.SIG_IGN)  # our parent passes on what the terminal has sent us already
    raise KeyboardInterrupt


def child_environment() -> dict[str, str]:
    """What a process that we start has to know for ``end_with_parent``."""
    return {PARENT: str(os.getpid())}


def end_with_parent(parent: int | None = None) -> None:
    """End this process with its parent: at once where the system tells of that (Linux), else within a second or two.

    ``parent`` is its number; None: the process of ours that the environment names, and nothing where none did.
    """
    number = parent or int(os.environ.get(PARENT) or 0)
    if not number or not hasattr(os, "getppid"):
        return
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(SET_PDEATHSIG, int(KILL), 0, 0, 0)
    watch_parent(number)


def watch_parent(number: int) -> None:
    """End this process soon after its parent, whichever thread of that started it (the system tells of the thread's end)."""
    if os.getppid() != number:  # it has ended already
        os._exit(1)

    def watch() -> None:
        while os.getppid() == number:
            time.sleep(LOOK)
        os.kill(os.getpid(), KILL)

    begin_thread(watch)


def begin_worker() -> None:
    """In a process of multiprocessing that makes batches for another: it ends with that one, or by its word.

    A signal to all processes of a run is not for this one: its parent stops between two steps, and needs batches until then.
    """
    from multiprocessing import parent_process  # few who are here need it

    if (parent := parent_process()) is None:
        return
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        begin_thread(_obey, parent.pid)
    begin_thread(_follow, parent)


def _obey(parent: int | None) -> None:
    """End this process when its parent says so (``terminate``)."""
    while signal.sigwaitinfo(ASKING).si_pid != parent:
        pass
    os._exit(0)


def _follow(parent: Any) -> None:
    """End this process when its parent has ended, however the two were started."""
    parent.join()
    os._exit(1)
