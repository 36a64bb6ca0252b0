"""Ranks on one machine: what each is told, who waits, and what the others' failure does."""

import os
import signal
import subprocess
import sys

import pytest

from fusionkit.commands import processes as ranks
from fusionkit.commands.processes import run_one, start_ranks
from fusionkit.signals import REQUEUE, Stopped, started
from fusionkit.training.processes.ranks import is_rank

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "OMP_NUM_THREADS")


class FakeRank:
    """A process that ends after so many looks at it, or when it is told to."""

    started: list["FakeRank"]

    def __init__(self, command, env):
        self.command, self.env, self.looks, self.code, self.ended, self.waits = command, env, 0, 0, False, []
        self.signals = []
        FakeRank.started.append(self)

    def poll(self):
        self.looks += 1
        return self.code if self.ended or self.looks > self.patience else None

    def wait(self, seconds=None):
        self.waits.append(seconds)
        if seconds is not None:
            raise subprocess.TimeoutExpired("x", seconds)

    def kill(self):
        self.ended = True

    def send_signal(self, number):
        self.signals.append(number)


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


def test_an_interruption_gives_the_ranks_some_seconds_and_is_passed_on(fakes):
    codes(fakes, None, None)
    clock = iter((100.0, 101.0, 102.0, 110.0, 114.0, 200.0))
    fakes.setattr(ranks.time, "monotonic", lambda: next(clock))

    def interrupt(seconds):
        assert seconds == ranks.POLL == 0.2
        raise KeyboardInterrupt

    fakes.setattr(ranks.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start_ranks(["train"], 2)
    assert [rank.waits for rank in FakeRank.started] == [[2.0, 13.0, None], [1.0, 0.0, None]]
    assert [rank.signals for rank in FakeRank.started] == [[signal.SIGINT]] * 2
    assert all(rank.ended for rank in FakeRank.started)


def test_what_asks_to_stop_is_passed_on_once_and_raised_when_all_have(fakes):
    codes(fakes, REQUEUE, REQUEUE)
    fakes.setattr(ranks, "asked", lambda: "SIGTERM")
    with pytest.raises(Stopped):
        start_ranks(["train"], 2)
    assert [rank.signals for rank in FakeRank.started] == [[signal.SIGTERM]] * 2


@pytest.mark.parametrize(
    ("ends", "told"), [((REQUEUE, REQUEUE), None), ((0, REQUEUE), None), ((REQUEUE, 1), 1), ((1, -9), -9), ((0, 0), 0)]
)
def test_how_ranks_end_says_how_the_run_ends(fakes, ends, told):
    """A rank that was asked to stop has agreed with the others; a mistake stays one, and a kill comes before what it led to."""
    codes(fakes, *ends)
    if told is None:
        with pytest.raises(Stopped):
            start_ranks(["train"], 2)
    else:
        assert start_ranks(["train"], 2) == told


def test_the_variables_of_a_single_task_are_not_those_of_its_ranks(fakes):
    codes(fakes, 0)
    fakes.setenv("SLURM_PROCID", "0")
    start_ranks(["train"], 1)
    assert "SLURM_PROCID" not in FakeRank.started[0].env
    assert FakeRank.started[0].env["FUSIONKIT_PARENT"] == str(os.getpid())


def test_one_command_prints_to_its_log_and_is_known_while_it_runs(tmp_path):
    script = "import os; print(os.environ['MORE']); os.sys.exit(os.getppid() != int(os.environ['FUSIONKIT_PARENT']))"
    with (tmp_path / "log").open("w") as log:
        assert run_one([sys.executable, "-S", "-c", script], {"MORE": "told"}, log) == 0
        assert run_one([sys.executable, "-S", "-c", "import sys; sys.exit(3)"], {}, log) == 3
    assert (tmp_path / "log").read_text() == "told\n"
    assert started() == []


def test_real_processes(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert not is_rank()
    script = "import os, sys; sys.exit(4 if os.environ['RANK'] == '1' else 0)"
    assert start_ranks([sys.executable, "-S", "-c", script], 2) == 4
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert is_rank()
