"""Work in a process of its own, whose memory goes with it."""

import os
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TypeVar

from fusionkit.errors import UserError
from fusionkit.signals import ASKING, watch_parent

Result = TypeVar("Result")
CAN_FORK = sys.platform == "linux"  # elsewhere a fork of a process with threads may hang
OUT_OF_MEMORY = 3  # exit status


@dataclass(frozen=True)
class Bounds:
    """What work on a stranger's file may take."""

    seconds: int = 5  # of the processor
    memory: int = 2**30  # bytes beside those of this process
    waited: float = 120.0  # seconds of the clock, where the processor is busy or the work sleeps


class Exceeded(Exception):
    """The work took more than its bounds."""


def in_child(work: Callable[[], Result], bounds: Bounds | None = None) -> Result:
    """What the work gives, done in a fork of this process. Raises what it raises, and Exceeded.

    Where it ends otherwise than with a result, a sentence for the user or beyond its bounds, it is done again here, so that the
    error is its own.
    """
    if not CAN_FORK:
        return work()
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe()
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which the child does not use
        process = os.fork()
    if process == 0:
        _answer(work, write_end, bounds, parent)
    os.close(write_end)
    answer = b""
    try:
        with os.fdopen(read_end, "rb") as file:
            is_done = bounds is None or wait([read_end], bounds.waited)
            answer = file.read() if is_done else b""
        if not is_done:
            os.kill(process, signal.SIGKILL)
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(process, 0)
    if bounds and not answer and (os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == OUT_OF_MEMORY):
        raise Exceeded(f"more than {bounds.seconds} seconds, or {bounds.memory / 2**30:g} GiB of memory")
    if not answer:
        return work()
    result, error = pickle.loads(answer)  # of our own process
    if error is not None:
        raise error
    done: Result = result
    return done


def _answer(work: Callable[[], Result], write_end: int, bounds: Bounds | None, parent: int) -> None:
    """Do the work, send its result or its error, and end this process at once."""
    try:
        for number in (signal.SIGINT, *ASKING):
            signal.signal(number, signal.SIG_DFL)
        watch_parent(parent)
        if bounds:
            _keep_within(bounds)
        try:
            answer = pickle.dumps((work(), None))
        except UserError as error:
            answer = pickle.dumps((None, error))
            pickle.loads(answer)  # else it is raised by the work itself, once more
        with os.fdopen(write_end, "wb") as file:
            file.write(answer)
        sys.stdout.flush()
        sys.stderr.flush()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    finally:
        os._exit(0)


def _keep_within(bounds: Bounds) -> None:
    import resource

    with open("/proc/self/statm", "rb") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    wanted = {resource.RLIMIT_AS: used + bounds.memory, resource.RLIMIT_CORE: 0}
    wanted[resource.RLIMIT_CPU] = int(time.process_time()) + 1 + bounds.seconds
    for which, value in wanted.items():
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
