"""What is computed together and when, and that nothing that a model raises ends the thread."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from fusionkit.serving.batching import Batcher, Job, Waiting
from fusionkit.serving.problems import Gone, Problem
from tests.serving.conftest import Clock

PATIENCE = 30  # seconds after which a test that hangs fails


def job(
    key: Any, payload: Any = None, arrived: float = 0.0, deadline: float = 100.0, said: list[Any] | None = None
) -> Job:
    return Job(key, payload, (said if said is not None else []).append, arrived, deadline)


def test_jobs_of_the_oldest_key_are_taken_when_there_are_enough_or_it_has_waited() -> None:
    waiting = Waiting(max_batch=2, wait=1.0, most=10)
    first, other, second, third = (job(key) for key in ("a", "b", "a", "a"))
    waiting.add(first)
    assert waiting.take(0.25) == ([], 0.75)
    waiting.add(other)
    waiting.add(second)
    waiting.add(third)
    assert waiting.take(0.25) == ([first, second], None)
    assert waiting.take(0.25) == ([], 0.75)
    assert waiting.take(1.0) == ([other], None)
    assert waiting.take(0.5, is_closing=True) == ([third], None)
    assert waiting.take(9.0) == ([], None)


def test_what_nobody_waits_for_is_not_computed_and_what_is_late_is_told() -> None:
    waiting, gone, late = Waiting(4, 0.0, 10), list[Any](), list[Any]()
    waiting.add(left := job("a", said=gone))
    waiting.add(job("a", deadline=5.0, said=late))
    waiting.add(fine := job("a"))
    left.is_gone = True
    assert waiting.take(5.0) == ([fine], None)
    assert isinstance(gone[0], Gone)
    assert late[0].status == 503
    assert not waiting.jobs


def test_no_more_wait_than_may() -> None:
    waiting = Waiting(4, 0.0, 2)
    waiting.add(job("a"))
    waiting.add(job("a"))
    with pytest.raises(Problem) as refused:
        waiting.add(job("a"))
    assert refused.value.status == 429
    assert refused.value.headers == {"Retry-After": "1"}


class Sink:
    """Waits for outcomes."""

    def __init__(self) -> None:
        self.said, self.there = dict[Any, Any](), threading.Condition()

    def of(self, name: Any) -> Callable[[Any], None]:
        def put(outcome: Any) -> None:
            with self.there:
                self.said[name] = outcome
                self.there.notify_all()

        return put

    def wait(self, *names: Any) -> list[Any]:
        with self.there:
            assert self.there.wait_for(lambda: set(names) <= self.said.keys(), PATIENCE)
        return [self.said[name] for name in names]


@pytest.fixture
def batcher() -> Iterator[Callable[..., Batcher]]:
    made: list[Batcher] = []

    def make(compute: Any, **options: Any) -> Batcher:
        found = Batcher(compute, Waiting(8, 0.0, 8), Clock(), lambda error: None, **options)
        found.start()
        made.append(found)
        return found

    yield make
    for each in made:
        assert each.close(PATIENCE)


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError()])
def test_the_thread_outlives_whatever_is_raised_and_others_are_answered(
    error: BaseException, batcher: Callable[..., Batcher]
) -> None:
    def compute(key: Any, jobs: Sequence[Job]) -> list[Any]:
        started.wait(PATIENCE)
        if any(each.payload == "bad" for each in jobs):
            raise error
        return [each.payload for each in jobs]

    started, sink = threading.Event(), Sink()
    found = batcher(compute)
    for payload in ("first", "bad", "good"):
        found.submit(Job("a", payload, sink.of(payload), 0.0, 100.0))
    started.set()
    first, bad, good = sink.wait("first", "bad", "good")
    assert (first, good) == ("first", "good")
    assert (bad.status, bad.sentence) == (500, "the model failed on this request")
    found.submit(Job("a", "later", sink.of("later"), 0.0, 100.0))
    assert sink.wait("later") == ["later"]
    assert found.is_alive


def test_an_outcome_too_few_is_a_failure_and_not_a_hang(batcher: Callable[..., Batcher]) -> None:
    sink = Sink()
    batcher(lambda key, jobs: []).submit(Job("a", None, sink.of("it"), 0.0, 100.0))
    assert sink.wait("it")[0].status == 500


def test_a_problem_is_passed_on_and_not_reported(batcher: Callable[..., Batcher]) -> None:
    def compute(key: Any, jobs: Sequence[Job]) -> list[Any]:
        raise Problem(422, "no")

    sink, told = Sink(), list[Any]()
    found = batcher(compute)
    found.report = told.append
    found.submit(Job("a", None, sink.of("it"), 0.0, 100.0))
    assert sink.wait("it")[0].sentence == "no"
    assert not told


def test_what_waits_is_computed_before_the_end_and_nothing_after_it(batcher: Callable[..., Batcher]) -> None:
    def compute(key: Any, jobs: Sequence[Job]) -> list[Any]:
        begun.set()
        go.wait(PATIENCE)
        return [each.payload for each in jobs]

    begun, go, sink = threading.Event(), threading.Event(), Sink()
    deaths = list[int]()
    found = batcher(compute, on_death=lambda: deaths.append(1))
    found.submit(Job("a", 1, sink.of(1), 0.0, 100.0))
    assert begun.wait(PATIENCE)
    found.submit(Job("b", 2, sink.of(2), 0.0, 100.0))
    assert not found.close(0)
    with pytest.raises(Problem) as refused:
        found.submit(Job("a", 3, sink.of(3), 0.0, 100.0))
    assert refused.value.status == 503
    go.set()
    assert sink.wait(1, 2) == [1, 2]
    assert found.close(PATIENCE)
    assert not deaths


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_nevertheless_tells_everybody(batcher: Callable[..., Batcher]) -> None:
    class Broken(Waiting):
        def take(self, now: float, is_closing: bool = False) -> tuple[list[Job], float | None]:
            if len(self.jobs) < 2:
                return [], None
            raise AssertionError("a defect")

    died, sink = threading.Event(), Sink()
    found = batcher(lambda key, jobs: [], on_death=died.set)
    found.waiting = Broken(8, 0.0, 8)
    found.submit(Job("a", None, sink.of(1), 0.0, 100.0))
    found.submit(Job("a", None, sink.of(2), 0.0, 100.0))
    assert [each.status for each in sink.wait(1, 2)] == [503, 503]
    assert died.wait(PATIENCE)
    found.thread.join(PATIENCE)
    assert not found.is_alive
    with pytest.raises(Problem, match="stopping"):
        found.submit(job("a"))


def test_an_outcome_is_given_once_and_to_nobody_who_has_gone() -> None:
    def closed(outcome: Any) -> None:
        raise RuntimeError("Event loop is closed")

    Job("a", None, closed, 0.0, 1.0).finish(1)
    said: list[Any] = []
    one = job("a", said=said)
    one.finish(1)
    one.finish(2)
    assert said == [1]
