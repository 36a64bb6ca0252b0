"""The one thread that computes with models, and what waits for it: jobs of one kind are computed together, in bounded time."""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fusionkit.serving.problems import Gone, Problem, too_many

Tell = Callable[[Any], None]


@dataclass(eq=False)
class Job:
    """Something to compute. ``done`` is called once, with a value or a Problem, ``tell`` before that with what is known so far.

    ``key``      jobs with equal ones may be computed together.
    ``arrived``, ``deadline``  by the batcher's clock, in seconds: what has not begun by its deadline is not computed.
    """

    key: Hashable
    payload: Any
    done: Tell
    arrived: float
    deadline: float
    tell: Tell | None = None
    is_gone: bool = False  # set by who asked: nobody waits for it any more
    is_done: bool = field(default=False, init=False)

    def finish(self, outcome: Any) -> None:
        if not self.is_done:
            self.is_done = True
            with suppress(RuntimeError):  # the loop of who asked has ended
                self.done(outcome)


class Waiting:
    """The jobs that wait, and which of them are next: a rule of what waits and of the time alone."""

    def __init__(self, max_batch: int, wait: float, most: int) -> None:
        self.max_batch, self.wait, self.most = max_batch, wait, most
        self.jobs: deque[Job] = deque()

    def add(self, job: Job) -> None:
        """Raises Problem where too many wait already."""
        if len(self.jobs) >= self.most:
            raise too_many(f"{self.most} requests wait already; try again in a moment")
        self.jobs.append(job)

    def take(self, now: float, is_closing: bool = False) -> tuple[list[Job], float | None]:
        """Jobs that are computed together now, at most ``max_batch``; or none, and in how many seconds to look again.

        They are those of the key of the oldest, as soon as there are enough of them or it has waited for ``wait`` seconds. What
        nobody waits for any more is dropped, and what has not begun by its deadline is told so.
        """
        kept = deque[Job]()
        for job in self.jobs:
            if job.is_gone:
                job.finish(Gone())
            elif now >= job.deadline:
                job.finish(Problem(503, "the service is busy: the request was not begun in time", {"Retry-After": "1"}))
            else:
                kept.append(job)
        self.jobs = kept
        if not kept:
            return [], None
        first = kept[0]
        alike = [job for job in kept if job.key == first.key][: self.max_batch]
        left = first.arrived + self.wait - now
        if len(alike) < self.max_batch and left > 0 and not is_closing:
            return [], left
        chosen = set(map(id, alike))
        self.jobs = deque(job for job in kept if id(job) not in chosen)
        return alike, None


class Batcher:
    """Computes jobs in a thread of its own.

    ``compute``  (key, jobs) -> an outcome for each: a value, or a Problem. Whatever it raises is that of all its jobs.
    ``report``   is told of what no request is at fault for.
    ``on_death`` is called when the thread ends unasked.
    """

    def __init__(
        self,
        compute: Callable[[Any, Sequence[Job]], Sequence[Any]],
        waiting: Waiting,
        clock: Callable[[], float],
        report: Callable[[BaseException], None],
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self.compute, self.waiting, self.clock, self.report, self.on_death = compute, waiting, clock, report, on_death
        self.changed = threading.Condition()
        self.is_closing = False
        self.batches = 0
        self.thread = threading.Thread(target=self._run, name="fusionkit-model", daemon=True)

    def start(self) -> None:
        self.thread.start()

    @property
    def is_alive(self) -> bool:
        return self.thread.is_alive()

    def submit(self, job: Job) -> None:
        """Raises Problem where it cannot be taken."""
        with self.changed:
            if self.is_closing or not self.is_alive:
                raise Problem(503, "the service is stopping")
            self.waiting.add(job)
            self.changed.notify()

    def close(self, seconds: float) -> bool:
        """Compute what waits, then end the thread; False where it has not ended in so many seconds."""
        with self.changed:
            self.is_closing = True
            self.changed.notify()
        self.thread.join(seconds)
        return not self.is_alive

    def _run(self) -> None:
        try:
            while (jobs := self._next()) is not None:
                self._compute(jobs)
        finally:
            with self.changed:
                was_asked, self.is_closing = self.is_closing, True
                left = list(self.waiting.jobs)
                self.waiting.jobs.clear()
            for job in left:
                job.finish(Problem(503, "the service is stopping"))
            if not was_asked:
                self.on_death()

    def _next(self) -> list[Job] | None:
        with self.changed:
            while True:
                jobs, pause = self.waiting.take(self.clock(), self.is_closing)
                if jobs:
                    return jobs
                if self.is_closing and not self.waiting.jobs:
                    return None
                self.changed.wait(pause)

    def _compute(self, jobs: Sequence[Job]) -> None:
        """What one of several breaks is computed one by one, so that it fails alone."""
        self.batches += 1
        try:
            outcomes = list(self.compute(jobs[0].key, jobs))
            if len(outcomes) != len(jobs):
                raise ValueError(f"{len(outcomes)} outcomes of {len(jobs)} jobs")
        except Gone as gone:
            outcomes = [gone] * len(jobs)
        except BaseException as error:  # of a model or a filter: the thread goes on, whatever it was
            if len(jobs) > 1:
                for job in jobs:
                    self._compute([job])
                return
            if not isinstance(error, Problem):
                self._tell(error)
            outcomes = [error if isinstance(error, Problem) else Problem(500, "the model failed on this request")]
        for job, outcome in zip(jobs, outcomes, strict=True):
            job.finish(outcome)

    def _tell(self, error: BaseException) -> None:
        with suppress(Exception):  # a closed log keeps nobody from an answer
            self.report(error)
