"""A run that is asked to stop, or killed, goes on bit for bit; and one folder has one run."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fusionkit.cli.main import run
from fusionkit.files.lock import locked_folder

pytestmark = pytest.mark.usefixtures("warm")

TINY = [
    "trainer.precision=32-true",
    "trainer.max_epochs=-1",
    "trainer.max_steps=6",
    "trainer.check_val_every_n_epoch=null",
    "trainer.val_check_interval=4",
    "trainer.limit_val_batches=1",
    "trainer.num_sanity_val_steps=0",
    "trainer.log_every_n_steps=1",
    "scheduler.warmup_steps=0",
    "logger=csv",
    "data.sources.shapes.batch_size=4",
    "text_encoder.config.hidden_size=32",
    "text_encoder.config.num_hidden_layers=1",
    "fusion.num_layers=1",
    "fusion.num_heads=4",
    "model.embed_size=16",
    "task=[itc]",
    "objectives=null",
    "+objectives.shapes.itc=1",
    "evaluation.roles=[]",
    "callbacks.image_gain=null",
    "callbacks.answer_tables=null",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopping")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=24"]) == 0
    return folder


def train(world: Path, name: str, *overrides: str) -> int:
    return run(["train", *TINY, f"data.root={world}/shapes", f"output_dir={world}/{name}", *overrides])


def sending(number: int, step: int, hook: str = "train", rank: int = 0) -> list[str]:
    options = {
        "_target_": "tests.commands.stopping.SendSignal",
        "number": int(number),
        "step": step,
        "hook": hook,
        "rank": rank,
    }
    return [f"+callbacks.signal.{key}={value}" for key, value in options.items()]


def checkpoint(world: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(world / name / "checkpoints/last.ckpt", weights_only=True)
    return found


def assert_same(world: Path, name: str, other: str) -> None:
    one, two = checkpoint(world, name), checkpoint(world, other)
    assert one["global_step"] == two["global_step"] == 6
    for key, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][key]), key
    states = [found["optimizer_states"][0]["state"] for found in (one, two)]
    for number, state in states[0].items():
        assert torch.equal(state["exp_avg"], states[1][number]["exp_avg"])


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started find these tests, and take one thread each."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def uninterrupted(world: Path) -> str:
    assert train(world, "whole", "trainer=cpu") == 0
    return "whole"


@pytest.mark.parametrize(
    ("number", "step", "hook", "kept"),
    [
        (signal.SIGTERM, 1, "train", 1),
        (signal.SIGUSR1, 4, "validation", 4),
        pytest.param(signal.SIGTERM, 4, "save", 4, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_asked_to_stop_keeps_its_step_and_goes_on_bit_for_bit(
    world: Path, uninterrupted: str, capsys: pytest.CaptureFixture[str], number: int, step: int, hook: str, kept: int
) -> None:
    name = f"{hook}_{step}"
    before = signal.getsignal(signal.SIGTERM)
    assert train(world, name, "trainer=cpu", *sending(number, step, hook)) == 75
    told = capsys.readouterr()
    assert f"step {kept} is kept in {world}/{name}/checkpoints/last.ckpt" in told.out
    assert f"stopped by {signal.Signals(number).name}; the same command with resume=auto goes on" in told.err
    assert checkpoint(world, name)["global_step"] == kept
    assert not (world / name / ".lock").exists()
    assert train(world, name, "trainer=cpu", "resume=auto", *sending(number, step, hook)) == 0
    assert_same(world, name, uninterrupted)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 2])
def test_epochs_of_one_step_are_stopped_too(world: Path, capsys: pytest.CaptureFixture[str], accumulated: int) -> None:
    """Between two of them, where Lightning has counted no batch of the next."""
    few = [f"trainer.limit_train_batches={accumulated}", f"trainer.accumulate_grad_batches={accumulated}"]
    assert train(world, f"few_{accumulated}", "trainer=cpu", *few) == 0
    assert train(world, f"stopped_{accumulated}", "trainer=cpu", *few, *sending(signal.SIGTERM, 3)) == 75
    assert "step 3 is kept in" in capsys.readouterr().out
    assert train(world, f"stopped_{accumulated}", "trainer=cpu", "resume=true", *few) == 0
    assert_same(world, f"few_{accumulated}", f"stopped_{accumulated}")


def test_a_folder_in_which_a_run_writes_is_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked_folder(world / "held", "another run writes"):
        for more in ([], ["resume=auto"], ["overwrite=true"]):
            assert train(world, "held", "trainer=cpu", *more) == 2
            assert f"error: another run writes in {world}/held (process " in capsys.readouterr().err
        assert [path.name for path in (world / "held").iterdir()] == [".lock"]


@pytest.mark.slow
def test_ranks_stop_together_and_where_one_is_killed_the_others_end(
    world: Path, capfd: pytest.CaptureFixture[str], ranks: None
) -> None:
    two = ["trainer=ddp_cpu", "data.sources.shapes.batch_size=2"]
    assert train(world, "two", *two) == 0
    assert train(world, "asked", *two, *sending(signal.SIGTERM, 2, rank=1)) == 75
    assert checkpoint(world, "asked")["global_step"] == 2
    capfd.readouterr()
    killing = sending(signal.SIGKILL, 5, rank=1)
    assert train(world, "asked", *two, "resume=true", *killing) == 9
    told = capfd.readouterr()
    assert "error: one of the processes was killed" in told.err
    assert "Traceback" not in told.err
    assert checkpoint(world, "asked")["global_step"] == 4
    assert train(world, "asked", *two, "resume=true") == 0
    assert_same(world, "asked", "two")


@pytest.mark.slow
def test_a_rank_that_stands_still_is_named_and_ends_with_the_run(
    world: Path, capfd: pytest.CaptureFixture[str], ranks: None
) -> None:
    options = ["trainer=ddp_cpu", "data.sources.shapes.batch_size=2", "trainer.timeout=10"]
    assert train(world, "still", *options, *sending(signal.SIGSTOP, 2, rank=1)) == 1
    told = capfd.readouterr().err
    assert re.search(r"error: rank 1 \(process \d+ on .*\) is stopped \(SIGSTOP\): no move for \d+ seconds", told)
    assert "Traceback" not in told
    with pytest.raises(ProcessLookupError):
        os.kill(int(re.findall(r"process (\d+)", told)[0]), 0)
