"""How a training ends that is asked to stop, and how the ranks find the one of them that hangs."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from lightning import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only

from fusionkit.distributed import largest_of_ranks, meetings
from fusionkit.errors import ConfigError
from fusionkit.internals import at_each_batch, is_between_steps
from fusionkit.signals import MISTAKE, Stopped, asked, begin_thread, held

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
    """Within, a training that is asked to stop (``signals``) does so, all ranks at one step, with a checkpoint of it at ``path``.

    A validation that is due comes first. Before its first step a signal ends the run at once, and nothing is left.
    ``path``  None: nothing is kept.
    """

    def __init__(self, trainer: Trainer, path: Path | None) -> None:
        self.trainer, self.path, self._start = trainer, path, -1
        self._training = ExitStack()
        at_each_batch(trainer, self._check)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._training.close()

    def _check(self) -> None:
        step = self.trainer.global_step
        if self._start < 0:
            self._start = step
            self._training.enter_context(held())
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
    or that is behind the others, who then wait for it, and does not move. Where all are at one place, they may compute. The time
    counts from the moment when others are ahead, and anew where this process itself was stopped for a while.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.interval = seconds, min(5.0, seconds / 10)
        self._steps = self._batches = self._rank = 0
        self._count = 1
        self._over = threading.Event()
        self._seen: dict[int, Sign] = {}  # by rank
        self._waits: dict[int, float] = {}  # of a rank behind the others, since when it has not moved
        self._shown: dict[int, float] = {}  # when it last showed itself
        self._answered = 0.0  # when the store last did, whose process is rank 0; 0: never

    def on_fit_start(self, trainer: Trainer, *args: Any) -> None:
        self._rank, self._count = trainer.global_rank, trainer.world_size
        for work in (self._exchange, self._judge):
            begin_thread(work)

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
        while True:  # at once, lest one that stops soon is never known
            beat += 1
            try:
                store = store or _store(self.seconds)
                place = self._steps + meetings()
                mine = Sign(place, place + self._batches, beat, os.getpid(), socket.gethostname())
                store.set(f"fusionkit/{self._rank}", json.dumps(mine))
                known = [number for number in range(self._count) if store.check([f"fusionkit/{number}"])]
                signs = {number: Sign(*json.loads(store.get(f"fusionkit/{number}"))) for number in known}
            except Exception:  # no answer, or its process has ended, or there is no such store
                store = None
            else:
                self.note(signs, time.monotonic())
            if self._over.wait(self.interval):
                return

    def note(self, signs: Mapping[int, Sign], now: float) -> None:
        """Keep what the ranks have shown at a time (in seconds)."""
        moved = set[int]()
        for number, sign in signs.items():
            before = self._seen.get(number)
            if before is None or sign.beat != before.beat:
                self._shown[number] = now
            if before is None or sign[:2] != before[:2]:
                moved.add(number)
            self._seen[number] = sign
        last = max(sign.place for sign in self._seen.values())
        behind = [number for number, sign in self._seen.items() if sign.place < last]
        self._waits = {number: now if number in moved else self._waits.get(number, now) for number in behind}
        self._answered = now

    def given_up(self, now: float) -> list[int]:
        """The ranks that, at this time, are waited for in vain."""
        most = SHARE * self.seconds
        if not self._answered:
            return []
        if now - self._answered >= most:
            return [0]
        if now - self._answered > 3 * self.interval or len(self._seen) < self._count:  # of the others nothing is known
            return []
        if silent := [number for number in self._seen if now - self._shown[number] >= most]:
            return silent
        first = min(sign.place for sign in self._seen.values())
        return [
            number for number, since in self._waits.items() if self._seen[number].place == first and now - since >= most
        ]

    def begin_anew(self, now: float) -> None:
        """Count all times from now on."""
        self._waits = dict.fromkeys(self._waits, now)
        self._shown = dict.fromkeys(self._shown, now)
        self._answered = self._answered and now

    def _judge(self) -> None:
        looked = time.monotonic()
        while not self._over.wait(self.interval):
            now = time.monotonic()
            if now - looked > 4 * self.interval:  # this process was stopped, with the others maybe
                self.begin_anew(now)
            looked = now
            lost = self.given_up(now)
            if lost and not self._over.is_set():
                since = [*(self._waits.get(number, self._shown.get(number, now)) for number in lost), self._answered]
                self._end(lost, now - min(since))

    def _end(self, lost: list[int], seconds: float) -> None:
        tellers = [number for number in range(self._count) if number not in lost] or lost
        try:
            told = ", ".join(_described(number, self._seen.get(number)) for number in lost)
            sentence = (
                f"{told}: no move for {seconds:.0f} seconds, and the others wait (trainer.timeout={self.seconds:g}); the run "
                "ends, and resume=auto goes on from the last checkpoint"
            )
            if place := os.environ.get(MISTAKE):
                Path(place).write_text(sentence, encoding="utf-8")
            elif self._rank == tellers[0]:
                print(f"error: {sentence}", file=sys.stderr, flush=True)
            if self._rank != tellers[0]:
                time.sleep(1)  # who starts the processes may end all when the first has
        finally:
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
