"""Starts the ranks of a run on one machine, each by the same command.

Lightning's own launcher repeats the command line that is running. In a sweep this repeats the sweep in every rank, and
the ranks of one job may then train different configurations without a word. So give a command on a saved config here.
Nothing is left behind in this process: the next job of a sweep starts from a clean environment.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from fusionkit.signals import REQUEUE, Stopped, asked, child_environment, children, held

POLL = 0.2  # seconds
AWHILE = 3.0  # seconds in which a Ctrl-C of the terminal, which reaches the ranks as well, has reached them
PATIENCE = 20.0  # seconds that interrupted ranks have to end by themselves
LEAVING = 120.0  # that ranks have which have kept their step: rank 0 may be telling W&B
ASKED = (
    0,
    REQUEUE,
    *(-getattr(signal, name, 0) for name in ("SIGTERM", "SIGUSR1")),
)  # how a rank ends that was asked to


def start_ranks(command: Sequence[str], count: int) -> int:
    """Run ``command`` in ``count`` ranks and wait; when one fails the others are ended. None is left, whatever happens here.

    Gives the exit code of one that failed, negative where a signal ended it, or 0. What asks this process to stop is
    passed on, and raised (``Stopped``) when all have.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    share = max(1, (os.cpu_count() or 1) // count)  # of the processors
    shared = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(count),
        **child_environment(),
    }
    own = {
        name: value for name, value in os.environ.items() if not name.startswith("SLURM_")
    }  # of this one, a single task
    ranks: list[subprocess.Popen[bytes]] = []
    with held():  # a signal is looked at below
        try:
            for rank in range(count):
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                ranks.append(subprocess.Popen(command, env={**own, **shared, **place}))
            with children(ranks):
                codes = wait_for(ranks)
        finally:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
            for process in ranks:
                process.wait()
    failed = min(
        (code for code in codes if code and code not in ASKED), default=0
    )  # a signal before what followed from it
    if any(codes) and not failed:
        raise Stopped
    return failed


def run_one(command: Sequence[str], more: Mapping[str, str], log: IO[str]) -> int:
    """Run a command, with ``more`` in its environment, until it ends; what it prints goes to ``log``. Gives its exit code.

    Who is in another thread ends it by ``pass_on`` (``signals.started``); it ends with this process.
    """
    environment = {**os.environ, **more, **child_environment()}
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    with children([process]):
        if asked():  # meanwhile
            process.send_signal(signal.SIGTERM)
        return process.wait()


def wait_for(processes: Sequence["subprocess.Popen[bytes]"]) -> list[int | None]:
    """The exit codes of processes, until the first fails; what asks to stop, and a Ctrl-C, is passed on to all of them.

    After a Ctrl-C they have ``PATIENCE`` to end by themselves before it is raised.
    """
    is_told = False
    try:
        while None in (codes := [process.poll() for process in processes]):
            if any(code not in (0, None, REQUEUE) for code in codes):
                break
            if (asked() or REQUEUE in codes) and not is_told:
                is_told = True
                _send(processes, signal.SIGTERM)
            if REQUEUE in codes:  # what there was to keep is kept
                _wait(processes, LEAVING)
                break
            time.sleep(POLL)
    except KeyboardInterrupt as stop:
        pass_on(processes, stop)
        raise
    return [process.poll() for process in processes]


def pass_on(processes: Sequence["subprocess.Popen[bytes]"], stop: BaseException) -> None:
    """Tell processes of what stops this one, a Ctrl-C or a signal, and give them time to end by themselves."""
    if isinstance(stop, KeyboardInterrupt):
        _wait(processes, AWHILE)
        _send(processes, signal.SIGINT)
        _wait(processes, PATIENCE - AWHILE)
    else:
        _send(processes, signal.SIGTERM)


def _send(processes: Sequence["subprocess.Popen[bytes]"], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _wait(processes: Sequence["subprocess.Popen[bytes]"], seconds: float) -> None:
    """Wait for processes to end, so long at most."""
    end = time.monotonic() + seconds
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
