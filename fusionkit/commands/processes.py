"""Starts the ranks of a run on one machine, each by the same command.

Lightning's own launcher repeats the command line that is running. In a sweep this repeats the sweep in every rank, and
the ranks of one job may then train different configurations without a word. So give a command on a saved config here.
Nothing is left behind in this process: the next job of a sweep starts from a clean environment.
"""

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

POLL = 0.2  # seconds
PATIENCE = 20.0  # seconds that interrupted ranks have to end by themselves


def is_rank() -> bool:
    """Whether this process was itself started as a rank (by ``start_ranks`` or torchrun)."""
    return "LOCAL_RANK" in os.environ


def start_ranks(command: Sequence[str], count: int) -> int:
    """Run ``command`` in ``count`` ranks and wait; when one fails the others are ended.

    Gives the exit code of the first that failed, negative where a signal ended it, or 0.
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
    }
    ranks = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    try:
        while None in (codes := [rank.poll() for rank in ranks]) and not any(codes):
            time.sleep(POLL)
    except KeyboardInterrupt:  # a Ctrl-C reaches the ranks as well: let them say how to go on
        _wait(ranks, PATIENCE)
        raise
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.terminate()
        for rank in ranks:
            rank.wait()
    return next((code for code in codes if code), 0)


def _wait(ranks: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Wait for processes to end, so long at most."""
    end = time.monotonic() + seconds
    for rank in ranks:
        with suppress(subprocess.TimeoutExpired):
            rank.wait(max(0.0, end - time.monotonic()))
