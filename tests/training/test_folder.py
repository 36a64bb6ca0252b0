"""What becomes of the folder of a run: nothing of an earlier one is taken for the new one's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from fusionkit.training.folder import evaluation_folder, is_finished, keep_evaluation, prepare_folder

LEFT = (
    "checkpoints/last.ckpt",
    "samples/shapes_vqa.jsonl",
    "evaluation/metrics.json",
    "evaluation_2/metrics.json",
    "cache/shapes/batch_000000.pt",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run, evaluated on other data too, with the data that it was trained on."""
    for name in (*LEFT, "metrics.json", "details.json", "evaluation.yaml", "data/kept.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def config(folder: Path, **changes: Any) -> DictConfig:
    return OmegaConf.create({"output_dir": str(folder), "overwrite": False, **changes})


def test_a_replaced_run_leaves_nothing_but_its_data(folder: Path) -> None:
    prepare_folder(config(folder, overwrite=True))
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "data"]


def test_a_run_that_goes_on_is_not_finished_and_has_no_scores(folder: Path) -> None:
    prepare_folder(config(folder))
    assert not is_finished(config(folder))
    assert all((folder / name).exists() for name in LEFT)
    assert not (folder / "evaluation.yaml").exists()


def test_an_evaluation_has_no_intervals_of_the_one_before(folder: Path) -> None:
    parts: Any = SimpleNamespace(config=OmegaConf.create({"name": "a"}), parameters=3)
    keep_evaluation(folder, OmegaConf.create({"checkpoint": "a.ckpt", "split": "val"}), parts)
    assert not (folder / "details.json").exists()
    kept = yaml.safe_load((folder / "evaluation.yaml").read_text())
    assert (kept["run"], kept["parameters"], kept["split"]) == ({"name": "a"}, 3, "val")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "evaluation"),
        ({"devices": 2}, "evaluation"),  # the same scores
        ({"split": "test"}, "evaluation_2"),
        ({"data": {"root": "other"}}, "evaluation_3"),
        ({"benchmark": {"vqav2": {"name": "vqav2"}}}, "evaluation_3"),
        ({"checkpoint": "run/checkpoints/last.ckpt"}, "evaluation_3"),
    ],
)
def test_an_evaluation_never_replaces_another(tmp_path: Path, change: dict[str, Any], name: str) -> None:
    asked = {"checkpoint": "run/checkpoints/best.ckpt", "split": "val", "data": {}, "devices": 1}
    for folder, split in (("evaluation", "val"), ("evaluation_2", "test")):
        (tmp_path / folder).mkdir()
        kept = asked | {"checkpoint": "/elsewhere/run/checkpoints/best.ckpt", "split": split, "run": {}}
        (tmp_path / folder / "evaluation.yaml").write_text(yaml.safe_dump(kept))
    assert evaluation_folder(tmp_path, OmegaConf.create(asked | change)) == tmp_path / name
