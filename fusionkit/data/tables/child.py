"""Work in a process of its own, whose memory goes with it."""

import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from fusionkit.errors import UserError

Result = TypeVar("Result")
CAN_FORK = sys.platform == "linux"  # elsewhere a fork of a process with threads may hang


def in_child(work: Callable[[], Result]) -> Result:
    """What the work gives, done in a fork of this process. Raises what it raises.

    Where it ends otherwise than with a result or a sentence for the user, it is done again here, so that the error is its own.
    """
    if not CAN_FORK:
        return work()
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which the child does not use
        process = os.fork()
    if process == 0:
        _answer(work, write_end)
    os.close(write_end)
    try:
        with os.fdopen(read_end, "rb") as file:
            answer = file.read()
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        raise
    finally:
        os.waitpid(process, 0)
    if not answer:
        return work()
    result, error = pickle.loads(answer)  # of our own process
    if error is not None:
        raise error
    done: Result = result
    return done


def _answer(work: Callable[[], Result], write_end: int) -> None:
    """Do the work, send its result or its error, and end this process at once."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            answer = pickle.dumps((work(), None))
        except UserError as error:
            answer = pickle.dumps((None, error))
            pickle.loads(answer)  # else it is raised by the work itself, once more
        with os.fdopen(write_end, "wb") as file:
            file.write(answer)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)
