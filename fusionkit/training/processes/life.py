"""How a training ends that is asked to stop, and how the ranks find the one of them that hangs."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from lightning import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only

from fusionkit.distributed import largest_of_ranks, meetings
from fusionkit.errors import ConfigError
from fusionkit.internals import at_each_batch, is_between_steps
from fusionkit.signals import MISTAKE, Stopped, asked

TIMEOUT = 1800.0  # seconds
SHARE = 0.7  # of the time, after which a rank is given up, so that it is named within it


def timeout_of(value: Any) -> float:
    """``trainer.timeout`` in seconds; ConfigError for what is none."""
    if value is None:
        return TIMEOUT
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < 1e9:
        raise ConfigError(
            f"trainer.timeout is {value!r}; give the seconds, from 1 up, after which a silent rank is given up"
        )
    return float(value)


class StopWhenAsked:
    """Ends a training that was asked to stop (``signals``), all ranks at the same step, with a checkpoint of it at ``path``.

    A validation that is due comes first, and so does the first step of an epoch; a run that has made no step leaves nothing.
    ``path``  None: nothing is kept.
    """

    def __init__(self, trainer: Trainer, path: Path | None) -> None:
        self.trainer, self.path, self._start = trainer, path, -1
        at_each_batch(trainer, self._check)

    def _check(self) -> None:
        step = self.trainer.global_step
        if self._start < 0:
            self._start = step
        if not largest_of_ranks(bool(asked()), self.trainer.strategy.root_device):
            return
        if step > self._start:
            if not is_between_steps(self.trainer):
                return
            if self.path is not None:
                self.trainer.save_checkpoint(self.path)
                rank_zero_only(print)(f"step {step} is kept in {self.path}", flush=True)
        raise Stopped


class Sign(NamedTuple):
    """What a rank says of itself."""

    place: int  # how far it is: collectives and steps, which all ranks go through in one order
    moves: int  # batches as well, of which ranks may have different numbers
    beat: int  # that it says anything
    process: int
    host: str


class RankWatch(Callback):
    """Ends the run, with a sentence that names it, where a rank has stopped or hangs for most of ``seconds``.

    A thread of each rank shows the others, in the store at which they met, how far it is. A rank is given up that shows nothing,
    or that does not move and is behind the others, who then wait for it. Where all are at one place, they may compute.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.interval = seconds, min(5.0, seconds / 10)
        self._steps = self._batches = self._rank = 0
        self._count = 1
        self._over = threading.Event()
        self._seen: dict[int, Sign] = {}  # by rank
        self._moved: dict[int, float] = {}  # when it last did
        self._shown: dict[int, float] = {}
        self._answered = 0.0  # when the store last did, whose process is rank 0

    def on_fit_start(self, trainer: Trainer, *args: Any) -> None:
        self._rank, self._count, self._answered = trainer.global_rank, trainer.world_size, time.monotonic()
        for work in (self._exchange, self._judge):
            threading.Thread(target=work, name="fusionkit-ranks", daemon=True).start()

    def on_train_batch_start(self, *args: Any) -> None:
        self._steps += 1

    def on_before_backward(self, *args: Any) -> None:
        self._steps += 1

    def on_before_optimizer_step(self, *args: Any) -> None:
        self._steps += 1

    def on_validation_batch_start(self, *args: Any) -> None:
        self._batches += 1

    def on_exception(self, *args: Any) -> None:
        self._over.set()

    def on_fit_end(self, *args: Any) -> None:
        self._over.set()

    def _exchange(self) -> None:
        """Show how far this rank is, and see how far the others are."""
        beat, store = 0, None
        while not self._over.wait(self.interval):
            beat += 1
            try:
                store = store or _store(self.seconds)
                place = self._steps + meetings()
                mine = Sign(place, place + self._batches, beat, os.getpid(), socket.gethostname())
                store.set(f"fusionkit/{self._rank}", json.dumps(mine))
                known = [number for number in range(self._count) if store.check([f"fusionkit/{number}"])]
                signs = {number: Sign(*json.loads(store.get(f"fusionkit/{number}"))) for number in known}
            except (dist.DistError, RuntimeError):  # no answer, or its process has ended
                store = None
                continue
            self.note(signs, time.monotonic())

    def note(self, signs: Mapping[int, Sign], now: float) -> None:
        """Keep what the ranks have shown at a time (in seconds)."""
        for number, sign in signs.items():
            before = self._seen.get(number)
            if before is None or sign.beat != before.beat:
                self._shown[number] = now
            if before is None or sign[:2] != before[:2]:
                self._moved[number] = now
            self._seen[number] = sign
        self._answered = now

    def given_up(self, now: float) -> list[int]:
        """The ranks that, at this time, are waited for in vain."""
        most = SHARE * self.seconds
        if now - self._answered >= most:
            return [0]
        if now - self._answered > 3 * self.interval or len(self._seen) < self._count:  # of the others nothing is known
            return []
        if silent := [number for number in self._seen if now - self._shown[number] >= most]:
            return silent
        first, last = (of(sign[:2] for sign in self._seen.values()) for of in (min, max))
        behind = [number for number, sign in self._seen.items() if sign[:2] == first < last]
        return [number for number in behind if now - self._moved[number] >= most]

    def _judge(self) -> None:
        while not self._over.wait(self.interval):
            now = time.monotonic()
            lost = self.given_up(now)
            if lost and not self._over.is_set():
                self._end(lost, now - min(self._moved.get(number, self._answered) for number in lost))

    def _end(self, lost: list[int], seconds: float) -> None:
        told = ", ".join(_described(number, self._seen.get(number)) for number in lost)
        sentence = (
            f"{told}: no move for {seconds:.0f} seconds, and the others wait (trainer.timeout={self.seconds:g}); the run ends, "
            "and resume=auto goes on from the last checkpoint"
        )
        tellers = [number for number in range(self._count) if number not in lost] or lost
        if place := os.environ.get(MISTAKE):
            Path(place).write_text(sentence, encoding="utf-8")
        elif self._rank == tellers[0]:
            print(f"error: {sentence}", file=sys.stderr, flush=True)
        if self._rank != tellers[0]:
            time.sleep(1)  # who starts the processes may end all when the first has
        os._exit(1)


def _store(seconds: float) -> Any:
    """A line of its own to the store at which the ranks met."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(  # type: ignore[attr-defined]  # public, and documented
        address, port, is_master=False, timeout=timedelta(seconds=max(1.0, seconds)), wait_for_workers=False
    )


def _described(number: int, sign: Sign | None) -> str:
    """A rank in words."""
    if sign is None:
        return f"rank {number}"
    what = "is stopped (SIGSTOP)" if sign.host == socket.gethostname() and _is_stopped(sign.process) else "hangs"
    return f"rank {number} (process {sign.process} on {sign.host}) {what}"


def _is_stopped(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False
