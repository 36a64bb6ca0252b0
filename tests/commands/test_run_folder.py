"""What becomes of the folder of a run: nothing of an earlier one is taken for the new one's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from fusionkit.commands.run_folder import (
    GoingOn,
    evaluation_folder,
    is_finished,
    keep_evaluation,
    prepare_folder,
    unrounded_folder,
)
from fusionkit.errors import ConfigError

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
    return OmegaConf.create({"output_dir": str(folder), "overwrite": False, "resume": False, **changes})


def test_a_replaced_run_leaves_nothing_but_its_data(folder: Path) -> None:
    prepare_folder(config(folder, overwrite=True))
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "data"]


def test_a_run_that_goes_on_leaves_all_as_it_was_until_it_has_trained(folder: Path) -> None:
    prepare_folder(config(folder, resume=True), folder / "checkpoints/last.ckpt")
    assert is_finished(config(folder))
    assert not (folder / "config.yaml").exists()
    going_on = GoingOn(config(folder, resume=True))
    assert not going_on.is_restored
    going_on.on_train_batch_end(trainer(is_global_zero=False))
    assert is_finished(config(folder))
    going_on.on_train_batch_end(trainer())
    assert not is_finished(config(folder))
    assert all((folder / name).exists() for name in (*LEFT, "config.yaml"))
    assert not (folder / "evaluation.yaml").exists()
    (folder / "metrics.json").touch()
    going_on.on_train_batch_end(trainer())
    assert (folder / "metrics.json").exists()


def trainer(is_global_zero: bool = True) -> Any:
    return SimpleNamespace(is_global_zero=is_global_zero)


@pytest.mark.parametrize("hook", ["on_sanity_check_start", "on_train_start"])
def test_a_checkpoint_is_taken_up_before_the_first_batch(tmp_path: Path, hook: str) -> None:
    going_on = GoingOn(config(tmp_path))
    getattr(going_on, hook)(trainer())
    assert going_on.is_restored


def test_a_new_run_keeps_its_configuration_at_once(tmp_path: Path) -> None:
    prepare_folder(config(tmp_path / "run", resume=True))
    assert (tmp_path / "run/config.yaml").exists()


def test_a_run_knows_itself_by_what_its_keys_refer_to_and_where_its_folder_has_gone(tmp_path: Path) -> None:
    run = {"resume": "auto", "width": 16, "pool": {"width": "${width}"}, "data": "${output_dir}/data"}
    kept = run | {"resume": False, "output_dir": "/elsewhere/run", "pool": {"width": 16}, "overwrite": False}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(kept))
    (tmp_path / "metrics.json").touch()
    assert is_finished(config(tmp_path, **run))
    with pytest.raises(ConfigError, match=r"is of another run \(pool.width was 16, is 8\)"):
        is_finished(config(tmp_path, **run | {"pool": {"width": 8}}))
    with pytest.raises(
        ConfigError, match=r"is of another run \(width was 16, is 4\)"
    ):  # not pool.width, which follows it
        is_finished(config(tmp_path, **run | {"width": 4}))
    with pytest.raises(ConfigError, match=r"is of another run \(depth was None, is 2\)"):
        is_finished(config(tmp_path, **run | {"depth": 2}))


def test_an_evaluation_has_no_intervals_of_the_one_before(folder: Path) -> None:
    parts: Any = SimpleNamespace(config=OmegaConf.create({"name": "a"}), parameters=3, int8=None)
    keep_evaluation(folder, OmegaConf.create({"checkpoint": "a.ckpt", "split": "val"}), parts)
    assert not (folder / "details.json").exists()
    kept = yaml.safe_load((folder / "evaluation.yaml").read_text())
    assert (kept["run"], kept["parameters"], kept["split"]) == ({"name": "a"}, 3, "val")


@pytest.mark.parametrize(("asked", "kept"), [(False, True), (True, True), (["fusion"], ["fusion"])])
def test_rounded_weights_are_of_another_model_than_the_run(asked: Any, kept: Any, folder: Path) -> None:
    parts: Any = SimpleNamespace(config=OmegaConf.create({"name": "a"}), parameters=3, int8=object())
    (folder / "int8.json").write_text("{}")
    keep_evaluation(folder, OmegaConf.create({"checkpoint": "a.ckpt", "int8": asked}), parts)
    assert yaml.safe_load((folder / "evaluation.yaml").read_text())["run"] == {"name": "a", "int8": kept}
    assert not (folder / "int8.json").exists()


def test_scores_of_rounded_weights_find_those_of_before(tmp_path: Path) -> None:
    own = {"checkpoint": "run/checkpoints/best.ckpt", "split": None, "data": {}, "int8": True}
    other = own | {"split": "val"}
    assert unrounded_folder(tmp_path, OmegaConf.create(own)) is None
    for name, kept in (("evaluation", other), ("evaluation_2", own), ("evaluation_3", other | {"int8": False})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.yaml").write_text(yaml.safe_dump(kept))
        (tmp_path / name / "metrics.json").write_text("{}")
    assert unrounded_folder(tmp_path, OmegaConf.create(own)) is None  # the run was not evaluated
    (tmp_path / "metrics.json").write_text("{}")
    assert unrounded_folder(tmp_path, OmegaConf.create(own)) == tmp_path
    assert unrounded_folder(tmp_path, OmegaConf.create(other)) == tmp_path / "evaluation_3"
    otherwise = own | {"evaluation": {"options": {"reranking": {"k": 4}}}}
    assert unrounded_folder(tmp_path, OmegaConf.create(otherwise)) is None  # scored in another way
    (tmp_path / "evaluation.yaml").write_text(yaml.safe_dump(otherwise | {"int8": False}))
    assert unrounded_folder(tmp_path, OmegaConf.create(otherwise)) == tmp_path
    assert unrounded_folder(tmp_path, OmegaConf.create(own)) is None
    (tmp_path / "evaluation_3/metrics.json").unlink()
    assert unrounded_folder(tmp_path, OmegaConf.create(other)) is None


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "evaluation"),
        ({"devices": 2}, "evaluation"),  # the same scores
        ({"split": "test"}, "evaluation_2"),
        ({"data": {"root": "other"}}, "evaluation_3"),
        ({"benchmark": {"vqav2": {"name": "vqav2"}}}, "evaluation_3"),
        ({"checkpoint": "run/checkpoints/last.ckpt"}, "evaluation_3"),
        ({"int8": True}, "evaluation_3"),
        ({"int8": False}, "evaluation"),
    ],
)
def test_an_evaluation_never_replaces_another(tmp_path: Path, change: dict[str, Any], name: str) -> None:
    asked = {"checkpoint": "run/checkpoints/best.ckpt", "split": "val", "data": {}, "devices": 1}
    for folder, split in (("evaluation", "val"), ("evaluation_2", "test")):
        (tmp_path / folder).mkdir()
        kept = asked | {"checkpoint": "/elsewhere/run/checkpoints/best.ckpt", "split": split, "run": {}}
        (tmp_path / folder / "evaluation.yaml").write_text(yaml.safe_dump(kept))
    assert evaluation_folder(tmp_path, OmegaConf.create(asked | change)) == tmp_path / name
