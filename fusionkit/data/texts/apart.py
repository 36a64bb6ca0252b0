"""Work on what a stranger wrote, in a process of its own that ends where it takes too much time or memory."""

import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any, Generic, NoReturn, TypeVar
from weakref import finalize

from fusionkit.data.tables.child import CAN_FORK

SECONDS = 5  # of the processor for one item: some ten thousand times what a conversation takes
MEMORY = 2**30  # bytes beside those of this process
Item = TypeVar("Item")
Result = TypeVar("Result")


class Exceeded(Exception):
    """More time or memory than there is for an item."""


class Apart(Generic[Item, Result]):
    """The results of ``work`` on items, done in a fork of the process that asks, which stays until it is closed or forgotten.

    No signal within this process would do: Python takes them between its own steps, and a single step of a template, such as to
    compare two lists, can take years. What the work remembers, it remembers in the fork. Where a fork may hang the
    work is done here.
    """

    def __init__(self, work: Callable[[Item], Result]) -> None:
        self.work, self._owner = work, 0
        self._end: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"work": self.work, "_owner": 0, "_end": None}

    def __call__(self, items: Sequence[Item]) -> list[Result]:
        """Raises what the work raises, and Exceeded."""
        if not CAN_FORK:
            return [self.work(item) for item in items]
        if self._owner != os.getpid():
            self._begin()
        try:
            self._connection.send(items)
            results, error = self._connection.recv()
        except (EOFError, OSError) as ended:
            self.close()
            raise Exceeded(f"more than {SECONDS} seconds, or {MEMORY / 2**30:g} GiB of memory") from ended
        except BaseException:  # such as Ctrl-C: its answer would be taken for that to the next question
            self.close()
            raise
        if error is not None:
            raise error
        done: list[Result] = results
        return done

    def close(self) -> None:
        """End the process; the next items begin another."""
        if self._owner == os.getpid():
            self._end()
        self._owner = 0

    def _begin(self) -> None:
        ours, theirs = Pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which the work does not use
            process = os.fork()
        if process == 0:
            ours.close()
            _serve(self.work, theirs)
        theirs.close()
        self._connection, self._owner = ours, os.getpid()
        self._end = finalize(self, _stop, process, ours, self._owner)


def _stop(process: int, connection: Connection, owner: int) -> None:
    if os.getpid() == owner:  # not in another fork, which forgets its copy
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    connection.close()


def _serve(work: Callable[[Any], Any], connection: Connection) -> NoReturn:
    """Answer until the other end is closed; a signal to the group is the other process's to obey."""
    import resource

    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        with open("/proc/self/statm", "rb") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _lower(resource.RLIMIT_AS, used + MEMORY)
        _lower(resource.RLIMIT_CORE, 0)
        while True:
            connection.send_bytes(_answer(work, connection.recv()))
    finally:
        os._exit(0)


def _answer(work: Callable[[Any], Any], items: Sequence[Any]) -> bytes:
    import resource

    results = []
    try:
        for item in items:
            _lower(resource.RLIMIT_CPU, int(time.process_time()) + 1 + SECONDS)
            results.append(work(item))
    except MemoryError:  # which ends this process
        raise
    except Exception as error:
        return pickle.dumps((None, error))
    return pickle.dumps((results, None))


def _lower(which: int, value: int) -> None:
    """Set the bound that is in force, where no lower one is for good."""
    import resource

    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
