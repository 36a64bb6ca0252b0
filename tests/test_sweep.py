"""A sweep of processes: each run once, what is finished not again, failures named, the study written at the end."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from omegaconf import OmegaConf

from fusionkit.cli import run
from fusionkit.config import conf_dir, group_choices
from fusionkit.reporting import cost


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The configurations that processes were started on; a fake one finishes at once, a fusion named "gated" fails."""
    configs = []

    def process(command, stdout, stderr, env):
        config = OmegaConf.load(command[-1])
        configs.append(config)
        folder = Path(config.output_dir)
        (folder / "config.yaml").write_text(Path(command[-1]).read_text())
        if folder.parts[-2] == "gated":
            return SimpleNamespace(returncode=1)
        (folder / "metrics.json").write_text(json.dumps({"shapes/vqa_accuracy": 50.0 + config.seed}))
        assert env["OMP_NUM_THREADS"].isdigit()
        return SimpleNamespace(returncode=0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", process)
    monkeypatch.setattr(cost, "measure", lambda sweep, timed, growth: {})
    return configs


def sweep(*overrides):
    return run(["train", "-m", "sweep=fusion_study", "seed=1", *overrides])


def test_a_finished_run_is_not_repeated_and_the_study_is_written(started, capsys):
    assert sweep("fusion=late,bottleneck") == 0, capsys.readouterr().err
    late, bottleneck = sorted(started, key=lambda config: config.output_dir, reverse=True)
    assert late.output_dir == "multirun/fusion_study/late/1"
    assert (late.objectives.shapes.grounding, late.objectives.shapes.vqa) == (0, 1)
    assert (bottleneck.objectives.shapes.grounding, bottleneck.fusion.num_layers) == (2, 2)
    assert "| late | 51.0 |" in Path("experiments/fusion-study/table.md").read_text()

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


@pytest.mark.parametrize(("name", "group"), [("fusion_study", "fusion"), ("balancer_study", "balance")])
def test_the_studies_compare_all_there_are(name, group):
    axes = yaml.safe_load((conf_dir() / "sweep" / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert set(axes[group].split(",")) == set(group_choices(group))
