"""The configuration that loggers get, and W&B without a network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

from fusionkit.training.loggers import ScoreWandbLogger, finish, flatten, log_config

CONFIG = {"seed": 1, "optimizer": {"lr": 0.1, "rules": [["a", 1, None]], "empty": {}}}


def test_the_configuration_is_one_flat_mapping(tmp_path):
    flat = {"seed": 1, "optimizer.lr": 0.1, "optimizer.rules": [["a", 1, None]], "optimizer.empty": {}}
    assert flatten(CONFIG) == flat
    logger = CSVLogger(tmp_path, name="csv", version="")
    log_config([logger], CONFIG)
    logger.save()
    assert yaml.safe_load((tmp_path / "csv" / "hparams.yaml").read_text()) == flat


def inspect(path: Path, *options: str) -> dict:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", "--summary", str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
def test_two_offline_runs_of_one_process_keep_their_best_scores_apart(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "first" / "wandb"))
    for folder, scores in (("first", [1.0, 3.0, 2.0]), ("second", [5.0, 4.0])):
        logger = ScoreWandbLogger(str(tmp_path / folder), name=folder)
        log_config([logger], CONFIG)
        for step, score in enumerate(scores):
            logger.log_metrics({"val/coco/accuracy": score, "train/loss": score}, step=step)
        finish()
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second"}
    runs = {path.parts[len(tmp_path.parts)]: inspect(path) for path in tmp_path.glob("*/wandb/*/*.wandb")}
    assert {name: run["name"] for name, run in runs.items()} == {"first": "first", "second": "second"}
    assert runs["first"]["summary"]["val/coco/accuracy"] == {"max": 3}
    assert runs["second"]["summary"]["val/coco/accuracy"] == {"max": 5}
    assert runs["second"]["summary"]["train/loss"] == 4
    assert runs["second"]["config"]["optimizer.lr"] == 0.1
