"""The configuration that loggers get, what W&B runs are grouped by, and that W&B can cost no run."""

import re
from pathlib import Path

import pytest
import wandb
import yaml
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf

from fusionkit.config import flatten
from fusionkit.errors import ConfigError
from fusionkit.reporting.wandb_offline import OfflineRun, read_offline
from fusionkit.scoring.examples import Example
from fusionkit.training.loggers import ScoreWandbLogger, Watch, finish, labels_of, log_config
from tests.toys import CONF, choices

CONFIG = {
    "seed": 1,
    "fusion": {"_target_": "fusionkit.fusion.co_attention.CoAttention"},
    "objectives": {"coco": {"itm": 1.0, "itc": 0.5}, "vqa": {"vqa": 1, "mlm": 0}, "unused": {"itc": 0}},
    "optimizer": {"lr": 0.1, "rules": [["a", 1, None]], "empty": {}},
}
LABELS = {"label_fusion": "co_attention", "label_tasks": "itc+itm+vqa", "label_sources": "coco+vqa"}


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory, monkeypatch):
    """W&B's folders of this test alone, and no account."""
    home = tmp_path_factory.mktemp("home")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR", "HOME"):
        monkeypatch.setenv(name, str(home))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def read_back(folder: Path) -> OfflineRun:
    (run,) = folder.glob("wandb/offline-run-*")
    return read_offline(run)


def test_the_configuration_is_one_flat_mapping(tmp_path):
    flat = flatten(CONFIG)
    expected = {"seed": 1, "optimizer.lr": 0.1, "optimizer.rules": [["a", 1, None]], "optimizer.empty": {}}
    assert {name: value for name, value in flat.items() if not name.startswith(("fusion", "objectives"))} == expected
    logger = CSVLogger(tmp_path, name="csv", version="")
    log_config([logger], CONFIG, 7)
    logger.save()
    assert yaml.safe_load((tmp_path / "csv" / "hparams.yaml").read_text()) == flat | LABELS


@pytest.mark.parametrize("name", choices("fusion"))
def test_a_fusion_is_labelled_as_its_file_is_called(name):
    fusion = OmegaConf.load(CONF / "fusion" / f"{name}.yaml")
    assert labels_of(CONFIG | {"fusion": OmegaConf.to_container(fusion)})["fusion"] == [name]


def test_runs_of_one_process_are_described_and_keep_their_best_scores_apart(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for folder, scores, options in (
        ("first", [1.0, 3.0, 2.0], {}),
        ("second", [5.0, 4.0], {"group": "study", "tags": ["mine"], "job_type": "evaluate"}),
    ):
        logger = ScoreWandbLogger(str(tmp_path / folder), name=folder, **options)
        log_config([logger], CONFIG, 7)
        for step, score in enumerate(scores):
            logger.log_metrics({"val/coco/accuracy": score, "val/coco/mlm_loss": score, "train/loss": score}, step=step)
        logger.alert("a title", "a text")
        Watch([logger], "test", 3).log_scores({"coco/accuracy": 1.5})
        finish()
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second"}
    first, second = read_back(tmp_path / "first"), read_back(tmp_path / "second")
    assert (first.name, first.group, first.job_type) == ("first", "co_attention", "train")
    assert first.tags == ["co_attention", "itc", "itm", "vqa", "coco"]
    assert (second.group, second.tags, second.job_type) == ("study", ["mine"], "evaluate")
    assert first.config == CONFIG
    assert first.labels == {name.removeprefix("label_"): value for name, value in LABELS.items()}
    assert first.summary["parameters"] == 7
    summary = ("val/coco/accuracy.max", "val/coco/mlm_loss.min", "train/loss", "test/coco/accuracy")
    assert [first.summary[name] for name in summary] == [3, 1, 2, 1.5]
    assert [second.summary[name] for name in summary] == [5, 4, 4, 1.5]


def test_a_failure_of_wandb_is_told_once_and_costs_nothing(tmp_path, monkeypatch, capfd):
    logger = ScoreWandbLogger(str(tmp_path), name="broken")
    log_config([logger], CONFIG, 7)

    def fail(*args, **options):
        raise ConnectionResetError("the service is gone")

    monkeypatch.setattr(type(logger.experiment), "log", fail)
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.log_metrics({"train/loss": 1.0}, 2)
    logger.alert("a", "b")
    logger.log_examples("x", [Example(1, 1, None, "t", "g", "t", 0.0)])
    logger.finalize("success")
    monkeypatch.setattr(wandb, "finish", fail)
    finish()
    assert wandb.run is None
    told = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert told == ["warning: W&B failed (the service is gone); the run goes on without it"]


def test_wandb_that_cannot_start_costs_nothing(tmp_path, monkeypatch, capfd):
    def fail(**options):
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr(wandb, "init", fail)
    logger = ScoreWandbLogger(str(tmp_path))
    log_config([logger], CONFIG, 7)
    assert logger.experiment is not None  # Lightning asks for it
    logger.log_metrics({"train/loss": 1.0}, 1)
    assert capfd.readouterr().err.count("no route to host") == 1


def test_what_cannot_work_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"logger\.wandb\.offline=false needs a W&B account.*set WANDB_API_KEY"):
        ScoreWandbLogger(str(tmp_path), offline=False)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=re.escape(f"save_dir={tmp_path}/file/logs cannot be written to")):
        ScoreWandbLogger(str(tmp_path / "file/logs"))
    ScoreWandbLogger(str(tmp_path / "new/logs"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing is made before a run begins
