"""Sections of a run that are none are told by their key, and groups may be null."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from fusionkit.assembly.config_checks import check_objectives, check_sections, check_top_level
from fusionkit.cli.app import without_null
from fusionkit.cli.schemas import TrainConfig
from fusionkit.config import primary_groups
from fusionkit.errors import ConfigError
from tests.test_config import composed


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data", 5, "data is 5, but has to be a section of keys"),
        ("image_encoder", [1], "image_encoder is [1], but has to be a section"),
        (
            "fusion",
            {"x": 1},
            "fusion._target_ is not there, but has to be the name of the class that fusion is built from",
        ),
        ("balance", {"_target_": None}, "balance._target_ is null"),
        ("model", {"_target_": ""}, "model._target_ is ''"),
        ("scheduler", {"rate": 1}, "scheduler._target_ is not there"),
        ("teacher", "x" * 99, f"teacher is '{'x' * 59}..."),
        ("task", None, "task is null, but has to be a section"),
        ("task.mlm", None, "task.mlm is null"),
        ("task.mlm", {"probability": 1}, "task.mlm._target_ is not there"),
        ("data.sources", [], "data.sources is [], but"),
        ("data.sources.shapes", 1, "data.sources.shapes is 1"),
        ("logger", "csv", "logger is 'csv', but"),
        ("callbacks.best", True, "callbacks.best is True"),
        ("stages", {"one": 1}, "stages.one is 1"),
        ("objectives", "x", "objectives is 'x'"),
        ("objectives.shapes", 3, "objectives.shapes is 3"),
        ("evaluation", "last", "evaluation is 'last'"),
        ("evaluation.options", None, "evaluation.options is null"),
    ],
)
def test_what_is_no_section_is_told(key: str, value: Any, words: str) -> None:
    config = composed("train", [])
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    with pytest.raises(ConfigError) as caught:
        check_objectives(config)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    "key", ["scheduler", "teacher", "logger", "callbacks", "stages", "logger.csv", "objectives.shapes"]
)
def test_what_may_be_left_out(key: str) -> None:
    config = composed("train", [])
    OmegaConf.update(config, key, None, merge=False, force_add=True)
    check_sections(OmegaConf.to_container(config, resolve=False))
    OmegaConf.set_struct(config, False)
    del config[key.partition(".")[0]]
    check_sections(OmegaConf.to_container(config, resolve=False))


def test_settings_of_a_source_that_is_not_there_are_told_with_what_to_leave_out() -> None:
    for value in (None, {}, {"batch_size": 2}):
        config = composed("train", [])
        OmegaConf.update(config, "data.sources.shapes", value, merge=False)
        check_sections(OmegaConf.to_container(config, resolve=False))
        with pytest.raises(ConfigError, match=r"^data\.sources\.shapes has no _target_.*leave it out with"):
            check_objectives(config)


def test_a_reference_to_a_section_is_one() -> None:
    check_sections(OmegaConf.to_container(composed("train", []), resolve=False) | {"fusion": "${model}"})


@pytest.mark.parametrize("group", ["logger", "callbacks", "stages", "teacher", "scheduler", "negatives", "balance"])
def test_a_group_that_is_null_is_none(group: str) -> None:
    config = composed("train", without_null([f"{group}=null", "task=[itc]"], primary_groups("train")))
    OmegaConf.update(config, "objectives.shapes", {"itc": 1}, merge=False)
    check_top_level(config, TrainConfig)
    check_objectives(config)
    assert not config[group] or config[group]._target_ == "fusionkit.balance.Fixed"


@pytest.mark.parametrize("group", ["logger", "callbacks"])
def test_a_list_of_no_choices_is_none(group: str) -> None:
    config = composed("train", [f"{group}=[]", "task=[itc]"])
    OmegaConf.update(config, "objectives.shapes", {"itc": 1}, merge=False)
    check_top_level(config, TrainConfig)
    check_objectives(config)
    assert not config.get(group)


def test_other_nulls() -> None:
    given = ["experiment=null", "checkpoint=null", "task=null", "seed=1", "+logger=null", "data.root=null"]
    assert without_null(given, primary_groups("train")) == ["checkpoint=null", "task=[]", *given[3:]]
    assert without_null(["benchmark=null"], primary_groups("evaluate")) == ["benchmark=[]"]
    assert without_null(["fusion=null"], primary_groups("train")) == ["~fusion"]


@pytest.mark.parametrize("group", ["image_encoder", "fusion", "data", "trainer", "objectives"])
def test_a_group_that_is_needed_is_named_with_its_choices(group: str) -> None:
    config = composed("train", [])
    OmegaConf.set_struct(config, False)
    del config[group]
    with pytest.raises(ConfigError, match=rf"^'{group}' has no value yet; give it as {group}=NAME, known: \w"):
        check_top_level(config, TrainConfig)
    config[group] = None
    with pytest.raises(
        ConfigError, match=rf"^{group} is null, but nothing works without it; give it as {group}=NAME, known"
    ):
        check_top_level(config, TrainConfig)
