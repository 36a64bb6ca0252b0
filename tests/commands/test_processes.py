"""Ranks on one machine: what each is told, who waits, and what the others' failure does."""

import subprocess
import sys

import pytest

from fusionkit.commands import processes as ranks
from fusionkit.commands.processes import is_rank, start_ranks

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "OMP_NUM_THREADS")


class FakeRank:
    """A process that ends after so many looks at it, or when it is told to."""

    started: list["FakeRank"]

    def __init__(self, command, env):
        self.command, self.env, self.looks, self.code, self.ended, self.waits = command, env, 0, 0, False, []
        FakeRank.started.append(self)

    def poll(self):
        self.looks += 1
        return self.code if self.ended or self.looks > self.patience else None

    def wait(self, seconds=None):
        self.waits.append(seconds)
        if seconds is not None:
            raise subprocess.TimeoutExpired("x", seconds)

    def terminate(self):
        self.ended = True


@pytest.fixture
def fakes(monkeypatch):
    FakeRank.started = []
    monkeypatch.setattr(ranks.subprocess, "Popen", FakeRank)
    monkeypatch.setattr(ranks.os, "cpu_count", lambda: 7)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def codes(monkeypatch, *given):
    """Each rank ends with its code, None: never by itself."""
    monkeypatch.setattr(
        FakeRank, "patience", property(lambda self: 2 if given[int(self.env["RANK"])] is not None else 1e9), False
    )
    monkeypatch.setattr(
        ranks.time, "sleep", lambda seconds: [setattr(r, "code", given[int(r.env["RANK"])]) for r in FakeRank.started]
    )


def test_each_rank_is_told_its_place(fakes):
    codes(fakes, 0, 0, 0)
    assert start_ranks(["train"], 3) == 0
    told = [[rank.env.get(name) for name in NAMES] for rank in FakeRank.started]
    assert told == [[str(n), str(n), "3", "0", "127.0.0.1", "2"] for n in range(3)]
    assert {rank.command[0] for rank in FakeRank.started} == {"train"}
    assert len({rank.env["MASTER_PORT"] for rank in FakeRank.started}) == 1
    assert [rank.waits for rank in FakeRank.started] == [[None]] * 3


def test_processors_are_shared_one_at_least_and_a_choice_is_kept(fakes):
    codes(fakes, 0, 0)
    fakes.setattr(ranks.os, "cpu_count", lambda: None)
    start_ranks(["train"], 1)
    assert FakeRank.started[0].env["OMP_NUM_THREADS"] == "1"
    assert int(FakeRank.started[0].env["MASTER_PORT"]) > 1023  # a free one
    fakes.setenv("OMP_NUM_THREADS", "5")
    start_ranks(["train"], 2)
    assert FakeRank.started[1].env["OMP_NUM_THREADS"] == "5"


def test_one_that_fails_ends_the_others_and_its_code_is_given(fakes):
    codes(fakes, None, 3)
    assert start_ranks(["train"], 2) == 3
    assert [rank.ended for rank in FakeRank.started] == [True, False]


def test_an_interruption_gives_the_ranks_some_seconds(fakes):
    codes(fakes, None, None)
    clock = iter((100.0, 104.0, 200.0))
    fakes.setattr(ranks.time, "monotonic", lambda: next(clock))

    def interrupt(seconds):
        assert seconds == ranks.POLL == 0.2
        raise KeyboardInterrupt

    fakes.setattr(ranks.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start_ranks(["train"], 2)
    assert [rank.waits for rank in FakeRank.started] == [[16.0, None], [0.0, None]]
    assert all(rank.ended for rank in FakeRank.started)


def test_real_processes(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert not is_rank()
    script = "import os, sys; sys.exit(4 if os.environ['RANK'] == '1' else 0)"
    assert start_ranks([sys.executable, "-S", "-c", script], 2) == 4
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert is_rank()
