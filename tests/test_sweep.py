"""A sweep of processes: each run once, what is finished not again, failures named, the study written at the end."""

import itertools
import json
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from fusionkit.assembly.composition import training_config
from fusionkit.assembly.parts import build_model
from fusionkit.cli.main import run
from fusionkit.commands import processes
from fusionkit.config import conf_dir, group_choices
from fusionkit.reporting import measure_cost
from fusionkit.types import TextFormat

ROOT = Path(__file__).parents[1]


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The configurations that processes were started on; a fake one finishes at once, a fusion named "gated" fails."""
    configs = []

    def process(command, more, log):
        config = OmegaConf.load(command[-1])
        configs.append(config)
        folder = Path(config.output_dir)
        (folder / "config.yaml").write_text(Path(command[-1]).read_text())
        if folder.parts[-2] == "gated":
            return 1
        (folder / "metrics.json").write_text(json.dumps({"shapes/vqa_accuracy": 50.0 + config.seed}))
        assert more["OMP_NUM_THREADS"].isdigit()
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "run_one", process)
    monkeypatch.setattr(measure_cost, "measure", lambda sweep, timed, growth: {})
    return configs


def sweep(*overrides):
    return run(["train", "-m", "sweep=fusion_study", "seed=1", *overrides])


def test_a_finished_run_is_not_repeated_and_the_study_is_written(started, capsys):
    assert sweep("fusion=late,bottleneck") == 0, capsys.readouterr().err
    late, bottleneck = sorted(started, key=lambda config: config.output_dir, reverse=True)
    assert late.output_dir == "multirun/fusion_study/late/1"
    assert (late.objectives.shapes.grounding, late.objectives.shapes.vqa) == (0, 1)
    assert (bottleneck.objectives.shapes.grounding, bottleneck.fusion.num_layers) == (2, 2)
    assert "| late/1 | 51.0 |" in Path("experiments/fusion-study/table.md").read_text()
    assert Path("experiments/fusion-study/index.html").is_file()

    (Path(late.output_dir) / "metrics.json").unlink()  # as if it had been interrupted
    started.clear()
    assert sweep("fusion=late,bottleneck") == 0
    assert started == [late]


def test_a_run_of_another_configuration_is_not_taken_for_finished(started, capsys):
    assert sweep("fusion=late") == 0
    assert sweep("fusion=late", "trainer.max_steps=7") == 2
    error = capsys.readouterr().err
    assert "trainer.max_steps was 400, is 7" in error
    assert "choose another output_dir=FOLDER" in error


def test_the_runs_of_a_sweep_are_one_group_for_loggers_that_group(started):
    assert sweep("fusion=late", "logger=[csv,wandb]") == 0
    (config,) = started
    assert (config.logger.wandb.group, config.logger.wandb.name) == ("fusion_study", "late/1")


def test_what_a_run_asks_of_hydra_goes_with_it(started):
    asked = ["name=${hydra:job.num}_x", "optimizer.lr=0.01,0.02", "logger=[csv,wandb]"]
    assert sweep("fusion=late", *asked, "hydra.sweep.dir=all", "hydra.sweep.subdir=${hydra.job.num}") == 0
    for number, config in enumerate(sorted(started, key=lambda config: config.output_dir)):
        assert (config.output_dir, config.logger.wandb.group) == (f"all/{number}", f"{number}_x")
        hydra = yaml.safe_load(Path(f"all/{number}/job.hydra.yaml").read_text())["hydra"]
        assert (hydra["job"]["num"], hydra["runtime"]["output_dir"]) == (number, str(Path(f"all/{number}").absolute()))
    assert len(started) == 2


def test_runs_that_fail_stop_no_other_and_are_named(started, capsys):
    assert sweep("fusion=gated,late") == 1
    assert "1 of 2 runs failed; see log.txt in multirun/fusion_study/gated/1 (" in capsys.readouterr().err
    assert Path("multirun/fusion_study/late/1/metrics.json").exists()


def test_what_a_sweep_says_of_one_balancer(started):
    assert run(["train", "-m", "sweep=balancer_study", "seed=2", "balance=schedule"]) == 0
    (config,) = started
    assert config.output_dir == "multirun/balancer_study/schedule/2"
    assert config.balance.points.shapes.itm[0] == [0, 0]
    assert config.fusion.num_layers == 2


def test_a_run_keeps_the_choice_that_a_value_asks_for(started):
    assert run(["train", "-m", "sweep=language_model_study", "seed=1", "fusion=prefix"]) == 0
    (config,) = started
    value = OmegaConf.to_container(config)["text_encoder"]["config"]["intermediate_size"]
    assert value == "${size.language_model.prefix}"  # and no longer asks Hydra


def wandb_runs(path: Path) -> list[list[str]]:
    """The command lines that W&B's agents run for a sweep, in any order."""
    sweep = yaml.safe_load(path.read_text())
    values = [about.get("values", [about.get("value")]) for about in sweep["parameters"].values()]
    commands = []
    for point in itertools.product(*values):
        args = {name: {"value": value} for name, value in zip(sweep["parameters"], point, strict=True)}
        macros = create_sweep_command_args({"args": args}) | {"program": [sweep["program"]]}
        commands.append([part for word in sweep["command"] for part in macros.get(word[2:-1], [word])])
    return commands


@pytest.mark.parametrize("name", ["fusion_study", "balancer_study", "language_model_study"])
def test_the_sweep_of_wandb_is_that_of_hydra(name, monkeypatch, tmp_path):
    runs = wandb_runs(ROOT / "experiments" / name.replace("_", "-") / "sweep.yaml")
    axes = {"seed": "1,2,3"} | sweep_params(name)
    grid = itertools.product(*([f"{axis}={value}" for value in str(axes[axis]).split(",")] for axis in axes))
    assert sorted(sorted(command[-len(axes) :]) for command in runs) == sorted(sorted(point) for point in grid)
    assert {tuple(command[:4]) for command in runs} == {("fusionkit", "train", "-m", f"sweep={name}")}
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    configs = []
    monkeypatch.setattr("fusionkit.commands.train.train", lambda config: configs.append(OmegaConf.to_container(config)))
    assert run(runs[-1][1:]) == 0
    (config,) = configs
    variant = dict(word.split("=") for word in runs[-1][-len(axes) :])["balance" if "balance" in axes else "fusion"]
    assert config["output_dir"] == f"multirun/{name}/{variant}/3"
    assert (
        config["logger"]["wandb"] | {"group": name, "name": f"{variant}/3", "offline": False}
        == config["logger"]["wandb"]
    )
    assert list(config["logger"]) == ["csv", "wandb"]
    assert not Path("experiments").exists()  # an agent writes no study of its one run


def sweep_params(name: str) -> dict[str, str]:
    """What Hydra sweeps over."""
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        config = compose("train", overrides=[f"sweep={name}"], return_hydra_config=True)
    return dict(config.hydra.sweeper.params)


@pytest.mark.parametrize(("name", "group"), [("fusion_study", "fusion"), ("balancer_study", "balance")])
def test_the_studies_compare_all_there_are(name, group):
    axes = yaml.safe_load((conf_dir() / "sweep" / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]
    there = {  # but for what reads on in a language model
        name for name in group_choices(group) if not name.startswith(("prefix", "interleaved", "encoder_decoder"))
    }
    assert set(axes[group].split(",")) == there


def test_the_ways_into_a_language_model_have_as_many_parameters_each():
    readme = (ROOT / "experiments/language-model-study/README.md").read_text()
    further = "fusion=encoder_decoder text_encoder=tiny_t5 text_encoder.config.d_ff=1008"
    assert f"fusionkit train -m sweep=language_model_study {further}" in readme
    ways = [[f"fusion={way}"] for way in sweep_params("language_model_study")["fusion"].split(",")] + [further.split()]
    counts = []
    for way in ways:
        model = build_model(training_config("sweep=language_model_study", *way), 99, TextFormat(2, 3, 0, 4))
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    assert len(counts) == 8
    assert max(counts) < 1.005 * min(counts)
