"""A run that reads kept image tokens is the run without: its losses, its scores, when it goes on, in ranks."""

import csv
import json
from pathlib import Path

import pytest

from fusionkit.cli.main import run

pytestmark = pytest.mark.usefixtures("warm")

SMALL = [
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=4",
    "trainer.log_every_n_steps=1",
    "scheduler=constant",
    "logger=csv",
    "data.answers.min_count=1",
    "data.sources.shapes.batch_size=8",
    "+image_encoder.frozen=true",
    "text_encoder.config.hidden_size=32",
    "text_encoder.config.num_hidden_layers=1",
    "text_encoder.config.hidden_dropout_prob=0",
    "fusion.num_layers=1",
    "fusion.num_heads=4",
    "model.embed_size=16",
    "teacher=momentum",
    "evaluation.options.gallery=false",
    "evaluation.options.reranking.k=4",
    "evaluation.roles=[val]",
    "evaluation.checkpoint=last",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set and a run on it that computes the tokens at each step."""
    folder = tmp_path_factory.mktemp("world")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=24"]) == 0
    assert train(folder, "plain") == 0
    return folder


def train(world: Path, name: str, *overrides: str) -> int:
    return run(["train", *SMALL, f"data.root={world}/shapes", f"output_dir={world}/{name}", *overrides])


def losses(folder: Path) -> dict[int, dict[str, float]]:
    """The losses of each step, by name."""
    found: dict[int, dict[str, float]] = {}
    for path in sorted(folder.glob("logs/csv/*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            values = {name: float(value) for name, value in row.items() if name.endswith("loss") and value}
            if values:
                found.setdefault(int(row["step"]), {}).update(values)
    return found


def assert_equal(world: Path, name: str) -> None:
    expected, found = losses(world / "plain"), losses(world / name)
    assert expected.keys() == found.keys()
    assert len(expected) == 4
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, abs=2e-6)
        assert len(values) == 6
    right, scores = (json.loads((world / run / "metrics.json").read_text()) for run in ("plain", name))
    assert scores == pytest.approx(right, abs=1e-3)


def test_losses_and_scores_are_those_of_the_run_without(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = f"image_tokens.folder={world}/tokens"
    assert train(world, "kept", kept) == 0
    assert "image tokens of shapes/train: 24 images" in capsys.readouterr().out
    assert_equal(world, "kept")
    capsys.readouterr()
    assert train(world, "begun", kept, "trainer.max_steps=2") == 0
    assert train(world, "begun", kept, "resume=true") == 0
    assert "image tokens of" not in capsys.readouterr().out  # another run computed them
    assert_equal(world, "begun")
    assert (
        run(["evaluate", f"checkpoint={world}/kept/checkpoints/last.ckpt", f"output_dir={world}/again", "split=val"])
        == 0
    )
    again, there = (json.loads((world / name / "metrics.json").read_text()) for name in ("again", "kept"))
    assert again == pytest.approx(there, abs=1e-3)


def test_a_dry_run_keeps_nothing_and_a_trained_encoder_is_refused(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = f"image_tokens.folder={world}/none"
    assert train(world, "dry", kept, "trainer.fast_dev_run=true") == 0
    assert not (world / "none").exists()
    assert train(world, "trained", kept, "++image_encoder.frozen=false") == 2
    assert "error: image_tokens: the image encoder trains" in capsys.readouterr().err
    assert not (world / "trained").exists()


@pytest.mark.slow
def test_two_ranks_compute_them_once(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = world / "wider"  # of which both ranks have validation images
    assert run(["data", "make", "shapes", f"root={root}", "scenes=60"]) == 0
    ranks = ["trainer.strategy=ddp", "trainer.devices=2", "data.sources.shapes.batch_size=2", f"data.root={root}"]
    assert train(world, "ranks", f"image_tokens.folder={world}/shared", *ranks) == 0
    assert train(world, "plain_ranks", *ranks) == 0
    assert len(list((world / "shared").iterdir())) == 2  # train and val
    for step, values in losses(world / "plain_ranks").items():
        assert losses(world / "ranks")[step] == pytest.approx(values, abs=2e-6)
