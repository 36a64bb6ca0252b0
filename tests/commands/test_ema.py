"""The moving average of the weights through the commands: what is scored, exported and gone on from."""

import json
from pathlib import Path

import pytest
import torch

from fusionkit.checkpoints.directory import read_safetensors
from fusionkit.cli.main import run
from fusionkit.files.tensors import read_tensors
from tests.commands.test_train import SMALL

RUN = [*SMALL, "trainer.max_epochs=2", "evaluation.roles=[test]", "evaluation.checkpoint=last", "ema.warmup=true"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small data set, and a run on it whose weights are averaged."""
    folder = tmp_path_factory.mktemp("ema")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=40"]) == 0
    assert train(folder, "averaged", "ema.decay=0.9") == 0
    return folder


def train(world: Path, name: str, *overrides: str) -> int:
    return run(["train", *RUN, f"data.root={world}/shapes", f"output_dir={world}/{name}", *overrides])


def scores(world: Path, name: str) -> dict:
    return json.loads((world / name / "metrics.json").read_text())


def last(world: Path, name: str) -> Path:
    return world / name / "checkpoints/last.ckpt"


def test_the_average_is_what_is_scored_exported_and_started_from(world):
    checkpoint = read_tensors(last(world, "averaged"))
    means, weights = checkpoint["state_dict"], checkpoint["progress"]["average"]["weights"]
    assert weights
    assert not any(torch.equal(means[name], weight) for name, weight in weights.items() if "weight" in name)
    assert run(["evaluate", f"checkpoint={last(world, 'averaged')}", f"output_dir={world}/again"]) == 0
    assert scores(world, "again") == scores(world, "averaged")
    assert run(["export", f"checkpoint={last(world, 'averaged')}", f"output={world}/exported"]) == 0
    exported = read_safetensors(world / "exported/model.safetensors")
    assert all(torch.equal(tensor, means[name]) for name, tensor in exported.items())


def test_a_run_that_keeps_no_checkpoint_is_scored_by_it_too(world):
    assert train(world, "kept_none", "ema.decay=0.9", "callbacks=none") == 0
    assert train(world, "plain", "callbacks=none") == 0
    assert scores(world, "kept_none") == scores(world, "averaged")
    assert scores(world, "plain") != scores(world, "averaged")


def test_a_run_that_was_cut_goes_on_bit_for_bit_and_tells_what_changed(world, capsys):
    assert train(world, "cut", "ema.decay=0.9", "trainer.max_epochs=1", "scheduler=constant") == 0
    assert train(world, "cut", "ema.decay=0.9", "resume=true", "scheduler=constant") == 0
    assert train(world, "whole", "ema.decay=0.9", "scheduler=constant") == 0
    one, other = read_tensors(last(world, "cut")), read_tensors(last(world, "whole"))
    for name, tensor in other["state_dict"].items():
        assert torch.equal(tensor, one["state_dict"][name]), name
    for name, tensor in other["progress"]["average"]["weights"].items():
        assert torch.equal(tensor, one["progress"]["average"]["weights"][name]), name
    capsys.readouterr()
    assert train(world, "cut", "trainer.max_epochs=3", "resume=true", "scheduler=constant") == 0
    assert "ema.decay was 0.9 and is None" in capsys.readouterr().out


def test_a_mistake_is_one_sentence(world, capsys):
    assert train(world, "wrong", "ema.decay=2") == 2
    assert "error: ema.decay is 2; give a number between 0 and 1" in capsys.readouterr().err
    assert not (world / "wrong").exists()
