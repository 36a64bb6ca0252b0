"""Offline runs of two fusions and an evaluation, read back: nothing that the run's own files say is missing in W&B's."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fusionkit.cli.main import run
from fusionkit.config import register_resolvers
from fusionkit.reporting.dashboard import SECTIONS, main
from fusionkit.reporting.wandb_offline import OfflineRun, read_offline
from tests.commands.test_train import SMALL

FUSIONS = ("cross_attention", "co_attention")
TABLES = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of each fusion, and an evaluation of the first on its validation split."""
    folder = tmp_path_factory.mktemp("world")
    loggers = ["logger=[csv,wandb]", f"logger.wandb.tables={TABLES}"]
    watched = ["task.itc.queue_size=16", "balance.gradients_every_n_steps=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
            patch.setenv(name, str(folder / "wandb"))
        assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=24"]) == 0
        for name in FUSIONS:
            places = [f"fusion={name}", f"name={name}", f"data.root={folder}/shapes", f"output_dir={folder}/{name}"]
            assert run(["train", *SMALL, *loggers, *watched, *places, "evaluation.options.gallery=false"]) == 0
        best = f"checkpoint={folder}/{FUSIONS[0]}/checkpoints/best.ckpt"
        again = [
            f"output_dir={folder}/again",
            "split=val",
            "logger.wandb.name=again",
            "evaluation.options.gallery=false",
        ]
        assert run(["evaluate", best, *loggers, *again]) == 0
        yield folder


def read_back(folder: Path) -> OfflineRun:
    (found,) = folder.glob("logs/wandb/offline-run-*")
    return read_offline(found)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scores(folder: Path, prefix: str) -> dict[str, float]:
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(metrics) > 20
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


@pytest.mark.parametrize("name", FUSIONS)
def test_configuration_and_scores_are_complete(world: Path, name: str) -> None:
    found = read_back(world / name)
    register_resolvers()
    config = OmegaConf.load(world / name / "config.yaml")
    assert found.config == OmegaConf.to_container(config, resolve=True)
    expected = scores(world / name, "test")
    assert {metric: found.summary[metric] for metric in expected} == pytest.approx(expected)
    assert (found.name, found.group, found.job_type) == (name, name, "train")
    assert found.labels == {"fusion": name, "tasks": "grounding+itc+itm+mlm+vqa", "sources": "shapes"}


def test_the_curves_are_those_of_the_csv(world: Path) -> None:
    (path,) = (world / FUSIONS[0]).glob("logs/csv/*/metrics.csv")
    history = read_back(world / FUSIONS[0]).history
    written = {
        (int(row["step"]), name): float(value)
        for row in csv.DictReader(path.open())
        for name, value in row.items()
        if value and name not in ("step", "epoch")
    }
    logged = {(row["trainer/global_step"], name): value for row in history for name, value in row.items()}
    assert {place: logged.get(place) for place in written} == pytest.approx(written)
    patterns = [pattern for panels in SECTIONS.values() for pattern in panels.values()]
    names = {name for _, name in written}
    assert len(patterns) > 10
    assert [pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in names)] == []
    assert {f"train/gradient_norm/{part}" for part in ("total", "fusion", "image_encoder", "itm")} <= names
    assert {f"test/shapes/text_to_image_r1{first}" for first in ("", "_itc")} <= names
    assert {f"val/shapes/vqa_accuracy_{kind}" for kind in ("yes_no", "number", "other")} <= names


def test_a_report_needs_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert main(["--project", "mine"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: a W&B report needs a W&B account, and there is no key: set WANDB_API_KEY")
    assert error.count("\n") == 1


def test_the_tables_hold_answers_that_the_run_wrote(world: Path) -> None:
    tables = read_back(world / FUSIONS[0]).tables
    own = {
        f"predictions/test/shapes{role}_{task}"
        for role in ("", "_compositional")
        for task in ("itc", "itm", "mlm", "vqa", "grounding")
    }
    assert set(tables) == own | {f"predictions/val/shapes_{task}" for task in ("itm", "mlm", "vqa", "grounding")}
    for task, key, value in (("vqa", "question_id", "answer"), ("grounding", "sent_id", "bbox")):
        table = tables[f"predictions/test/shapes_{task}"]
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        given = {str(line[key]): line[value] for line in lines(world / FUSIONS[0] / f"predictions/shapes_{task}.jsonl")}
        judged = {str(line["id"]): line["score"] for line in lines(world / FUSIONS[0] / f"samples/shapes_{task}.jsonl")}
        assert 3 <= len(rows) <= TABLES
        assert [(row["given"], row["score"]) for row in rows] == [(given[row["id"]], judged[row["id"]]) for row in rows]
        assert {row["image"] for row in rows} == {"Image"}


def test_an_evaluation_is_a_run_of_its_own_beside_the_training(world: Path) -> None:
    found = read_back(world / "again")
    assert (found.name, found.group, found.job_type) == ("again", FUSIONS[0], "evaluate")
    assert found.config["evaluated"]["split"] == "val"
    expected = scores(world / "again", "val")
    assert {metric: found.summary[metric] for metric in expected} == pytest.approx(expected)
    assert "predictions/val/shapes_itc" in found.tables
    (path,) = (world / "again").glob("logs/csv/*/metrics.csv")
    row = list(csv.DictReader(path.open()))[-1]
    assert {metric: float(row[metric]) for metric in expected} == pytest.approx(expected)


def test_predict_has_nothing_to_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "checkpoint=any.ckpt", "logger=wandb"]) == 2
    assert "logger is no choice of this command; known: benchmark" in capsys.readouterr().err
