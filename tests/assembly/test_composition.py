"""What an experiment says of parts that were not chosen is left out; what the user says never is."""

from pathlib import Path

import pytest
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.composition import ABOVE, _load, _plain, training_config
from fusionkit.assembly.config_checks import check_arguments, check_objectives, check_top_level
from fusionkit.cli.main import run
from fusionkit.cli.schemas import TrainConfig
from fusionkit.config import primary_groups, register_resolvers
from fusionkit.errors import ConfigError
from tests.toys import CONF, choices


def checked(*overrides: str) -> DictConfig:
    config = training_config(*overrides)
    check_top_level(config, TrainConfig)
    check_objectives(config)
    check_arguments(config)
    return config


def test_tasks_that_were_not_chosen_have_no_options_and_no_objectives() -> None:
    config = checked("experiment=quickstart", "task=[itc]")
    assert list(config.task) == ["itc"]
    assert config.objectives == {"shapes": {"itc": 1.0}}
    config = checked("experiment=quickstart", "task=[itc,mlm]")
    assert (config.task.mlm.probability, config.objectives) == (0.4, {"shapes": {"itc": 1.0, "mlm": 1.0}})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=[itc]", "task.mlm.probability=0.3"], "task.mlm._target_ is not there"),
        (["task=[itc]", "objectives.shapes.mlm=1"], "no task 'mlm' is configured"),
        (["task=[itc]", "objectives.shapes={itc:1,mlm:1}"], "no task 'mlm' is configured"),
        (["task=[itc,captioning]"], "task 'captioning' is configured but no objective uses it"),
        (["fusion=late", "+fusion.num_layers=3"], "takes no 'num_layers'"),
        (["balance=dwa", "+balance.alpha=3"], "takes no 'alpha'"),
        (["text_encoder=minilm", "text_encoder.config.hidden_size=3"], "unknown key 'hidden_size' in text_encoder"),
    ],
)
def test_what_the_user_says_of_them_is_a_mistake(overrides: list[str], words: str, capsys) -> None:
    assert run(["train", "experiment=quickstart", *overrides]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert words in sentence


def test_an_option_of_the_users_stays() -> None:
    config = training_config("experiment=quickstart", "text_encoder=minilm", "+text_encoder.num_layers=3")
    assert config.text_encoder.num_layers == 3
    assert "config" not in config.text_encoder
    config = training_config("experiment=quickstart", "text_encoder=minilm", "text_encoder.config.num_hidden_layers=3")
    assert config.text_encoder.config.num_hidden_layers == 3


def test_an_encoder_in_the_place_of_another_is_as_its_file_says() -> None:
    config = checked("experiment=uniter_vqa", "text_encoder=bert_small", "image_encoder=resnet50", "data.root=x")
    for group in ("text_encoder", "image_encoder"):
        assert config[group] == training_config(f"{group}={'bert_small' if group[0] == 't' else 'resnet50'}")[group]


def test_a_fusion_in_the_place_of_another_keeps_what_it_takes() -> None:
    config = checked("experiment=uniter_vqa", "fusion=co_attention", "data.root=x")
    assert config.fusion._target_.endswith("CoAttention")
    assert config.fusion.num_layers == 12
    assert config.fusion.entry._target_.endswith("TypedProjection")
    assert "norm_eps" not in config.fusion
    assert training_config("experiment=uniter_vqa", "data.root=x").fusion.norm_eps is None


def test_data_in_the_place_of_others_bring_their_own_folder() -> None:
    config = training_config("experiment=quickstart", "data=coco_captions")
    assert list(config.data.sources) == ["coco"]
    assert OmegaConf.is_missing(config.data, "root")
    assert training_config("experiment=quickstart", "data=coco_captions", "data.root=x").data.root == "x"


def test_callbacks_that_were_not_chosen_have_no_options() -> None:
    assert training_config("experiment=real_small", "callbacks=[]", "data.root=x").callbacks == {}
    assert "best" in training_config("experiment=real_small", "callbacks=default", "data.root=x").callbacks


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_bears_another_fusion_and_encoder(name: str) -> None:
    parts = ("fusion=gated", "image_encoder=patches", "text_encoder=bert_small", "data.root=x", "negatives=random")
    config = training_config(f"experiment={name}", *parts)
    check_top_level(config, TrainConfig)
    check_arguments(config)
    assert config.fusion._target_.endswith("Gated")


def test_objectives_that_a_fusion_cannot_feed_are_off() -> None:
    weights = {"itc": 1.0, "itm": 1.0, "mlm": 0, "vqa": 1.0, "grounding": 0}
    for above in ("experiment=quickstart", "sweep=fusion_study", "seed=1"):
        assert checked(above, "fusion=late").objectives.shapes == weights
    asked = training_config("fusion=late", "objectives.shapes.mlm=2").objectives.shapes
    assert (asked.mlm, asked.grounding) == (2, 0)
    assert training_config("fusion=late", "task=[mlm]").objectives.shapes == {"mlm": 1.0}  # else there would be none


def test_a_sweep_speaks_of_all_that_it_sweeps_over() -> None:
    assert "gate" not in checked("sweep=fusion_study").fusion
    assert checked("sweep=fusion_study", "fusion=gated_cross_attention").fusion.gate == 1.0
    assert checked("sweep=fusion_study", "fusion=bottleneck").fusion.num_layers == 2
    assert checked("sweep=balancer_study", "balance=dwa").balance.window == 25
    schedule = checked("sweep=balancer_study", "balance=schedule").balance
    assert (schedule.unit, schedule.points.shapes.itm) == ("progress", [[0.0, 0.0], [0.4, 1.0]])
    assert set(checked("sweep=balancer_study").balance) == {"_target_", "gradients_every_n_steps"}


def test_an_option_that_no_choice_knows_stays_a_mistake(tmp_path: Path, capsys) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment/mine.yaml"
    line = ["train", "--config-dir", str(tmp_path), "experiment=mine", "fusion=late", f"output_dir={tmp_path}/run"]
    file.write_text("# @package _global_\nfusion: {num_layer: 2}\n")
    assert run(line) == 2
    assert "fusionkit.fusion.late.Late takes no 'num_layer'" in capsys.readouterr().err
    file.write_text("# @package _global_\nfusion: {num_layers: 2}\nname: ''\nseed: -1\n")
    assert run(line) == 2
    assert "seed is -1" in capsys.readouterr().err  # and the layers are no mistake


def test_what_is_shown_is_what_is_run(capsys) -> None:
    assert run(["train", "experiment=quickstart", "task=[itc]", "--cfg", "job"]) == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert (list(shown.task), shown.fusion.num_layers) == (
        ["itc"],
        "${size.fusion_layers}",
    ) or shown.fusion.num_layers == 3
    assert OmegaConf.to_container(shown)["fusion"]["num_heads"] == "${size.num_heads}"
    assert run(["train", "fusion=late", "--cfg", "job", "--resolve"]) == 0
    assert "mlm: 0\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", choices("size"))
def test_sizes_have_the_same_numbers(name: str) -> None:
    sizes = training_config(f"size={name}").size
    assert sizes.keys() == training_config("size=base").size.keys()
    assert sizes.hidden_size % sizes.num_heads == 0
    used = OmegaConf.to_yaml(training_config(f"size={name}"))
    assert "${size.num_heads}" in used


def test_an_unknown_size_is_a_mistake() -> None:
    with pytest.raises(ConfigError):
        check_top_level(training_config("+sizes.x=1"), TrainConfig)


def test_a_group_given_as_a_mapping_gives_its_options() -> None:
    config = checked("experiment=quickstart", "fusion={num_layers:2}", "trainer={max_steps:5}")
    assert (config.fusion._target_, config.fusion.num_layers) == (training_config().fusion._target_, 2)
    assert config.trainer.max_steps == 5
    config = training_config("experiment=quickstart", "fusion=late", "objectives.shapes={itc:1,mlm:1}")
    assert config.objectives.shapes.mlm == 1


def test_a_part_that_is_switched_off_has_no_options(capsys) -> None:
    assert not checked("experiment=albef_pretrain_4m", "teacher=none", "data.root=/x").teacher
    assert run(["train", "experiment=quickstart", "scheduler=null", "--cfg", "job"]) == 0
    assert "warmup_steps" not in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_files_of_a_group_say_alone_what_they_say_beside_all_others(share: float) -> None:
    register_resolvers()
    words = {}
    for group, default in primary_groups("train").items():
        if group not in ABOVE:
            names = choices(group)
            name = names[round(share * (len(names) - 1))]
            words[group] = f"{group}=[{name}]" if isinstance(default, list) else f"{group}={name}"
    assert len(words) > 15
    with initialize_config_dir(str(CONF), version_base="1.3"):
        beside = _load("train", list(words.values()))
        for group, word in words.items():
            assert _plain(_load(None, [f"+{word}"]).get(group)) == _plain(beside.get(group)), word


def test_a_choice_of_ones_own_may_speak_of_other_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fusion").mkdir()
    file = tmp_path / "fusion/mine.yaml"
    file.write_text(
        "# @package _global_\ndefaults:\n  - gated@fusion\n  - override /text_encoder: bert_embeddings\n  - _self_\n"
    )
    words = ["experiment=quickstart", "fusion=mine"]
    assert run(["train", "--config-dir", str(tmp_path), *words, "--cfg", "job"]) == 0, capsys.readouterr().err
    told = OmegaConf.create(capsys.readouterr().out)
    assert told.fusion._target_.endswith("Gated")
    composed = training_config(f"hydra.searchpath=['file://{tmp_path}']", *words)
    assert composed.fusion == told.fusion
