"""A search for the best run: what is proposed and told, refused trials, a search that goes on, runs of several processes."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fusionkit.assembly.search_study import cuts_short
from fusionkit.cli.main import run
from fusionkit.commands.worker import main, run_in_ranks, save, score_of
from fusionkit.errors import ConfigError, DataError

SEARCH = ["train", "-m", "hydra/sweeper=search", "experiment=quickstart", "name=found"]
FOLDER = Path("multirun/found")


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The configurations that runs were started on; the score is best at a rate of 0.01, five heads are refused."""
    configs = []

    def train(config):
        configs.append(config)
        if config.fusion.num_heads == 5:
            raise ConfigError("fusion: 5 heads do not divide the width")
        if config.seed == 13 and len(configs) == 3:
            raise KeyboardInterrupt
        return 100.0 - abs(config.optimizer.lr - 0.01) * 1000

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fusionkit.commands.train.train", train)
    return configs


def trials():
    """What the search has kept, by trial."""
    import optuna

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(FOLDER / "search.log")))
    return optuna.load_study(study_name="search", storage=storage).trials


def test_it_finds_the_better_rates(trained, capsys):
    assert run([*SEARCH, "hydra.sweeper.trials=30", "optimizer.lr=interval(0.001,0.1)"]) == 0, capsys.readouterr().err
    rates = [config.optimizer.lr for config in trained]
    assert len(set(rates)) == 30
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    assert [Path(config.output_dir) for config in trained] == [FOLDER / str(number) for number in range(30)]
    found = yaml.safe_load((FOLDER / "best.yaml").read_text())
    best = min(rates, key=lambda rate: abs(rate - 0.01))
    assert found["params"] == {"optimizer.lr": best}
    assert found["score"] == pytest.approx(100 - abs(best - 0.01) * 1000)
    assert rates.index(best) == found["trial"]
    assert "best of 30 trials: " in capsys.readouterr().out
    gaps = [abs(rate - 0.01) for rate in rates]
    assert sum(gaps[20:]) < sum(gaps[:10])  # the first ten are drawn at random


def test_kinds_of_sweeps_and_what_all_runs_share(trained, tmp_path):
    (tmp_path / "mine/sweep").mkdir(parents=True)
    params = {"optimizer.lr": "tag(log,interval(1e-4,1e-2))", "fusion.num_heads": "range(2,9,2)", "seed": "1,2"}
    content = {
        "defaults": [{"override /hydra/sweeper": "search"}],
        "hydra": {"sweeper": {"params": params, "trials": 8}},
    }
    (tmp_path / "mine/sweep/rates.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(content)}")
    line = ["train", "-m", "--config-dir", f"{tmp_path}/mine", "sweep=rates", "experiment=quickstart", "name=found"]
    more = ["seed=choice(7,8,9)", "objectives.shapes.mlm=0.5", "task.itc.queue_size=int(interval(16,64))"]
    assert run([*line, *more]) == 0
    assert len(trained) == 8
    assert {config.seed for config in trained} <= {7, 8, 9}  # the command line has the last word
    assert {config.fusion.num_heads for config in trained} <= {2, 4, 6, 8}
    assert {config.objectives.shapes.mlm for config in trained} == {0.5}
    assert all(1e-4 <= config.optimizer.lr <= 1e-2 for config in trained)
    assert all(isinstance(config.task.itc.queue_size, int) for config in trained)
    assert len({config.task.itc.queue_size for config in trained}) > 3
    (drawn,) = {trial.distributions["optimizer.lr"].log for trial in trials()}
    assert drawn


def test_a_refused_run_is_a_trial_without_a_score(trained, capsys):
    line = [*SEARCH, "hydra.sweeper.trials=6", "fusion.num_heads=choice(4,5)", "optimizer.lr=interval(0.001,0.1)"]
    assert run(line) == 2  # a mistake was told
    said = capsys.readouterr()
    refused = [config for config in trained if config.fusion.num_heads == 5]
    assert len(trained) == 6
    assert 0 < len(refused) < 6
    assert said.err.count("error: fusion: 5 heads do not divide the width") == len(refused)
    assert f"best of 6 trials, {len(refused)} without a score: " in said.out
    assert [trial.state.name for trial in trials()].count("FAIL") == len(refused)
    capsys.readouterr()
    assert run([*SEARCH, "name=none", "hydra.sweeper.trials=2", "fusion.num_heads=choice(5)"]) == 2
    assert "none of the 2 trials of the search gave a score" in capsys.readouterr().err


def test_a_choice_that_does_not_exist_is_a_trial_without_a_score(trained, capsys):
    assert run([*SEARCH, "hydra.sweeper.trials=6", "fusion=choice(late,lite)"]) == 2
    assert 0 < len(trained) < 6
    assert "lite" in capsys.readouterr().err


def test_the_same_command_goes_on(trained):
    line = ["optimizer.lr=interval(0.001,0.1)"]
    assert run([*SEARCH, "hydra.sweeper.trials=3", *line]) == 0
    assert run([*SEARCH, "hydra.sweeper.trials=5", *line]) == 0
    assert len({config.optimizer.lr for config in trained}) == 5  # none was drawn twice
    assert Path(trained[-1].output_dir) == FOLDER / "4"
    assert run([*SEARCH, "hydra.sweeper.trials=5", *line]) == 0
    assert len(trained) == 5


def test_a_trial_that_was_cut_off_is_begun_anew(trained):
    line = [*SEARCH, "hydra.sweeper.trials=4", "seed=13", "optimizer.lr=interval(0.001,0.1)"]
    assert run(line) == 130
    assert len(trained) == 3
    assert run(line) == 0
    rates = [config.optimizer.lr for config in trained]
    assert rates[3] == rates[2]
    assert len(set(rates)) == 4
    assert [trial.state.name for trial in trials()] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_what_a_killed_search_left_running_is_begun_anew(trained):
    line = [*SEARCH, "hydra.sweeper.trials=3", "optimizer.lr=interval(0.001,0.1)"]
    assert run([*line, "hydra.sweeper.trials=2"]) == 0
    log = FOLDER / "search.log"
    kept = [json.loads(text) for text in log.read_text().splitlines()]
    told = max(place for place, each in enumerate(kept) if each.get("state") == 1)
    log.write_text("\n".join(map(json.dumps, kept[:told])) + "\n")  # as if it was killed before its last trial was told
    assert [trial.state.name for trial in trials()] == ["COMPLETE", "RUNNING"]
    assert run(line) == 0
    rates = [config.optimizer.lr for config in trained]
    assert rates[2] == rates[1]
    assert len(set(rates)) == 3


def test_a_search_that_was_killed_as_it_wrote_goes_on(trained):
    line = [*SEARCH, "optimizer.lr=interval(0.001,0.1)"]
    assert run([*line, "hydra.sweeper.trials=2"]) == 0
    with (FOLDER / "search.log").open("a") as log:
        log.write('{"op_code":4,"worker')
    for count in (3, 4):  # the second reads what the first wrote behind it
        assert run([*line, f"hydra.sweeper.trials={count}"]) == 0
    text = (FOLDER / "search.log").read_text()
    (FOLDER / "search.log").write_text(text.rstrip("\n"))  # a whole line, but for its end
    assert run([*line, "hydra.sweeper.trials=4"]) == 0
    assert (FOLDER / "search.log").read_text().startswith(text)
    assert [trial.state.name for trial in trials()] == ["COMPLETE"] * 4


@pytest.mark.parametrize("place", ["directions", "distribution", "op_code", "state", None])
def test_a_damaged_search_is_named(place, trained, capsys):
    line = [*SEARCH, "optimizer.lr=interval(0.001,0.1)"]
    assert run([*line, "hydra.sweeper.trials=2"]) == 0
    log = FOLDER / "search.log"
    kept = [json.loads(text) for text in log.read_text().splitlines()]
    for each in kept:
        each |= {place: []} if place in each else {}
    text = "\n".join(map(json.dumps, kept)) + "\n"
    log.write_text(text if place else text.replace("{", "", 1))
    damaged = log.read_bytes()
    capsys.readouterr()
    assert run([*line, "hydra.sweeper.trials=3"]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"error: {log} is damaged, or of another version of Optuna (")
    assert log.read_bytes().startswith(damaged)
    assert len(trained) == 2


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError("no words for it")])
def test_a_search_that_cannot_be_read_is_not_called_damaged(error, trained, monkeypatch, capsys):
    def refuse(*_):
        raise error

    monkeypatch.setattr("optuna.storages.journal.JournalFileBackend", refuse)
    assert run([*SEARCH, "optimizer.lr=interval(0.001,0.1)", "hydra.sweeper.trials=2"]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    reason = error.strerror or str(error)
    log = FOLDER / "search.log"
    assert told == f"error: {log} cannot be read or written ({reason}); mend that, or give another name=NAME"
    assert not trained


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ([], "hydra/sweeper=search has nothing to search; give choices or intervals"),
        (["seed=1,2", "hydra.sweeper.direction=up"], "direction is up and trials 20; give maximize or minimize"),
        (["seed=1,2", "hydra.sweeper.trials=0"], "trials 0; give"),
        (["seed=1,2", "hydra.sweeper.trials=nan"], "trials nan; give maximize or minimize, and a whole number above 0"),
        (["seed=1,2", "hydra.sweeper.trials=1.5"], "trials 1.5; give"),
        (["seed=1,2", "hydra.sweeper.seed=-1"], "hydra.sweeper.seed is -1; give a whole number from 0 up"),
        (["seed=1,2", "hydra.sweeper.seed=2147483648"], "hydra.sweeper.seed is 2147483648; give"),
        (["seed=1,2", "hydra.sweeper.seed=x"], "hydra.sweeper.seed is 'x'; give"),
    ],
)
def test_a_mistake_is_one_sentence(line, words, trained, capsys):
    assert run([*SEARCH, *line]) == 2
    assert words in capsys.readouterr().err
    assert not trained


def test_another_direction_is_told(trained, capsys):
    line = [*SEARCH, "hydra.sweeper.trials=1", "seed=1,2"]
    assert run(line) == 0
    assert run([*line, "hydra.sweeper.direction=minimize"]) == 2
    assert (
        "multirun/found was begun to maximize; give another name=NAME, or remove the folder" in capsys.readouterr().err
    )


def test_without_optuna_the_sentence_says_how_to_install_it(trained, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert run([*SEARCH, "seed=1,2"]) == 2
    assert "hydra/sweeper=search needs the package optuna: run in fusionkit's repository" in capsys.readouterr().err


def test_runs_of_processes_hand_their_scores_back(tmp_path, monkeypatch):
    """Rank 0's, of a run over several; and of a launcher that starts each run by itself."""
    (tmp_path / "scored.py").write_text(
        "import os\n\n\ndef score(config):\n    return config.value + int(os.environ['RANK'])\n\n\ndef none(config):\n    pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[1]}")
    config = OmegaConf.create({"value": 4.5})
    assert run_in_ranks("scored:score", config, 2) == 4.5
    assert run_in_ranks("scored:none", config, 2) is None
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RANK", "0")
    place = tmp_path / "job.yaml"
    save(config, place)
    assert main("scored:score", str(place)) == 0
    assert score_of(place) == 4.5
    save(config, place)
    assert score_of(place) is None  # that of the run before is gone


def test_some_trials_at_a_time(trained, monkeypatch):
    """hydra/launcher=parallel, whose processes are played here."""
    started = []

    def process(command, more, log):
        place = Path(command[-1])
        config = OmegaConf.load(place)
        started.append(config.output_dir)
        is_refused = config.fusion.num_heads == 5
        if not is_refused:
            place.with_suffix(".score").write_text(repr(float(config.optimizer.lr)))
        return 2 if is_refused else 0

    monkeypatch.setattr("fusionkit.commands.processes.run_one", process)
    line = ["hydra/launcher=parallel", "fusion.num_heads=choice(4,5)", "optimizer.lr=interval(0.001,0.1)"]
    assert run([*SEARCH, "hydra.sweeper.trials=5", *line]) == 0
    assert len(started) == 5
    assert sorted(started) == [str(FOLDER / str(number)) for number in range(5)]
    for trial in trials():
        assert trial.value == (None if trial.params["fusion.num_heads"] == "5" else trial.params["optimizer.lr"])


def test_of_trials_at_a_time_only_what_cannot_be_composed_is_lost(trained, monkeypatch):
    def process(command, more, log):
        Path(command[-1]).with_suffix(".score").write_text("1.5")
        return 0

    monkeypatch.setattr("fusionkit.commands.processes.run_one", process)
    run(
        [
            *SEARCH,
            "hydra.sweeper.trials=6",
            "hydra/launcher=parallel",
            "hydra.launcher.jobs=3",
            "fusion=choice(late,lite)",
        ]
    )
    assert {(trial.params["fusion"], trial.value) for trial in trials()} == {("late", 1.5), ("lite", None)}


def test_the_command_line_has_the_last_word_and_params_are_values(trained, tmp_path):
    (tmp_path / "mine/sweep").mkdir(parents=True)
    params = {"optimizer.lr": "interval(0.001,0.01)", "checkpoint": None, "seed": "1,2", "resume": False}
    params |= {"evaluation.roles": ["val"], "scheduler": {"warmup_steps": 3, "max_minutes": 4}}
    content = {
        "defaults": [{"override /hydra/sweeper": "search"}],
        "hydra": {"sweeper": {"params": params, "trials": 2}},
    }
    (tmp_path / "mine/sweep/rates.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(content)}")
    line = ["train", "-m", "--config-dir", f"{tmp_path}/mine", "sweep=rates", "experiment=quickstart", "name=found"]
    more = ["~scheduler.warmup_steps", "+scheduler.warmup_steps=7"]
    assert run([*line, "++optimizer.lr=0.5", *more]) == 0
    assert [(config.optimizer.lr, config.checkpoint, config.resume) for config in trained] == [(0.5, None, False)] * 2
    assert {tuple(config.evaluation.roles) for config in trained} == {("val",)}
    assert {config.scheduler.warmup_steps for config in trained} == {7}
    assert {config.scheduler.max_minutes for config in trained} == {4}


@pytest.mark.parametrize("sweep", ["interval(1,0.1)", "tag(log,interval(0,0.1))", "interval(0.01,inf)"])
def test_bounds_that_cannot_be_are_one_sentence(sweep, trained, capsys):
    assert run([*SEARCH, f"optimizer.lr={sweep}"]) == 2
    assert "cannot be searched" in capsys.readouterr().err
    assert not trained


@pytest.mark.parametrize("sweep", ["choice(1,2,3)", "tag(log,interval(1,2))"])
def test_what_is_searched_stays_the_same(sweep, trained, capsys):
    before = "seed=choice(1,2)" if sweep.startswith("choice") else "optimizer.lr=interval(1,2)"
    assert run([*SEARCH, "hydra.sweeper.trials=1", before]) == 0
    assert run([*SEARCH, "hydra.sweeper.trials=2", f"{before.partition('=')[0]}={sweep}"]) == 2
    assert "A search goes on with what it has searched before; give another name" in capsys.readouterr().err
    assert len(trained) == 1


def test_runs_without_validation_end_the_search(trained, monkeypatch, capsys):
    monkeypatch.setattr("fusionkit.commands.train.train", lambda config: trained.append(config))
    assert run([*SEARCH, "seed=1,2"]) == 1
    assert "trial 0 gave no validation score, by which the search goes" in capsys.readouterr().err
    assert len(trained) == 1


def test_two_searches_do_not_share_a_folder(trained, capsys):
    FOLDER.mkdir(parents=True)
    with FileLock(FOLDER / "search.lock"):
        assert run([*SEARCH, "hydra.sweeper.trials=1", "seed=1,2"]) == 2
    assert "another search runs in multirun/found" in capsys.readouterr().err
    assert not trained


def test_a_sampler_of_ones_own_draws_on(trained):
    line = ["+hydra.sweeper.sampler._target_=optuna.samplers.RandomSampler", "+hydra.sweeper.sampler.seed=1"]
    for count in (2, 4):
        assert run([*SEARCH, f"hydra.sweeper.trials={count}", "optimizer.lr=interval(0.001,0.1)", *line]) == 0
    assert len({config.optimizer.lr for config in trained}) == 4


def validated(pruning, values, ends=99):
    """Show a callback validations at steps 10, 20, ...; gives the steps until the run is cut short, or all."""
    trainer = SimpleNamespace(global_step=0, is_global_zero=True, sanity_checking=True, should_stop=False)
    trainer.strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer.callback_metrics = {"val/mean": 0.0}
    pruning.on_validation_end(trainer, None)  # of the sanity check: nothing is told
    trainer.sanity_checking, trainer.callback_metrics = False, {}
    pruning.on_validation_end(trainer, None)  # without a score
    for value in values:
        trainer.global_step += 10
        trainer.should_stop = trainer.global_step >= ends
        trainer.callback_metrics = {"val/mean": value}
        pruning.on_validation_end(trainer, None)
        if pruning.is_pruned:
            assert trainer.should_stop
            break
    return trainer.global_step


@pytest.fixture
def cut_short(trained, monkeypatch):
    """Runs of four validations, each by a tenth better than the last; gives the steps that each has made."""
    steps = []

    def train(config):
        level = [5.0, 6.0, 4.0, 7.0, 5.5, 1.0][len(steps)]
        values = [level, level + 0.1, level + 0.2, level + 0.3]
        pruning = instantiate(config.callbacks.pruning)
        steps.append(validated(pruning, values, ends=40))
        return values[steps[-1] // 10 - 1]

    monkeypatch.setattr("fusionkit.commands.train.train", train)
    return steps


MEDIAN = "hydra.sweeper.pruner={name: MedianPruner, n_startup_trials: 2, n_warmup_steps: 15}"


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_trial_behind_the_others_is_cut_short(direction, cut_short, capsys):
    line = [MEDIAN, f"hydra.sweeper.direction={direction}", "optimizer.lr=interval(0.001,0.1)"]
    assert run([*SEARCH, "hydra.sweeper.trials=4", *line]) == 0
    assert run([*SEARCH, "hydra.sweeper.trials=6", *line]) == 0  # a search that goes on knows what was cut short
    best, behind = (3, {2, 4, 5}) if direction == "maximize" else (5, {3})
    # trial 4, minimize: the median of 5.1, 6.1, 4.1 at step 20 is 5.1, of trials that got there; it has 5.6
    behind |= {4} if direction == "minimize" else set()
    assert cut_short == [20 if number in behind else 40 for number in range(6)]
    assert [trial.state.name == "PRUNED" for trial in trials()] == [number in behind for number in range(6)]
    assert [sorted(trial.intermediate_values) for trial in trials()] == [
        [10, 20] if number in behind else [10, 20, 30, 40] for number in range(6)
    ]
    assert yaml.safe_load((FOLDER / "best.yaml").read_text())["trial"] == best
    said = capsys.readouterr().out
    assert f"best of 6 trials, {len(behind)} cut short: " in said
    for number in behind:
        assert f"trial {number} ends at step 20: its val/mean of " in said
    assert "is behind that of others (MedianPruner)" in said


def test_a_run_that_ends_anyway_is_not_cut_short(cut_short):
    line = ["hydra.sweeper.pruner={name: MedianPruner, n_startup_trials: 1, n_warmup_steps: 35}", "seed=1,2,3"]
    assert run([*SEARCH, "hydra.sweeper.trials=3", *line]) == 0
    assert [trial.state.name for trial in trials()] == ["COMPLETE"] * 3


def test_without_a_pruner_none_is_asked(trained):
    assert run([*SEARCH, "hydra.sweeper.trials=1", "seed=1,2"]) == 0
    assert "pruning" not in trained[0].callbacks


def test_where_all_are_cut_short_there_is_no_best(cut_short, capsys):
    pruner = (
        "{name: PatientPruner, patience: 0, wrapped_pruner: {name: ThresholdPruner, lower: 50}}"  # one within another
    )
    line = [f"hydra.sweeper.pruner={pruner}", "hydra.sweeper.direction=minimize", "seed=1,2"]
    assert run([*SEARCH, "hydra.sweeper.trials=2", *line]) == 1
    assert "none of the 2 trials of the search gave a score" in capsys.readouterr().err
    assert [trial.state.name for trial in trials()] == ["PRUNED"] * 2


@pytest.mark.parametrize(
    ("pruner", "words"),
    [
        ("median", "hydra.sweeper.pruner is 'median'; give {name: MedianPruner}, with its arguments: "),
        ("{name: MedianPrune}", "did you mean 'MedianPruner'? known: "),
        ("{name: BasePruner}", "hydra.sweeper.pruner is {'name': 'BasePruner'}; give"),
        ("{n_startup_trials: 2}", "hydra.sweeper.pruner is {'n_startup_trials': 2}; give"),
        ("{name: MedianPruner, startup: 2}", "hydra.sweeper.pruner: "),
        ("{name: PercentilePruner, percentile: 200}", "hydra.sweeper.pruner: "),
    ],
)
def test_a_pruner_that_is_none_is_one_sentence(pruner, words, trained, capsys):
    assert run([*SEARCH, "seed=1,2", f"hydra.sweeper.pruner={pruner}"]) == 2
    assert words in capsys.readouterr().err
    assert not trained


def test_a_trial_that_was_told_before_is_neither_changed_nor_ended(trained, tmp_path):
    assert run([*SEARCH, "hydra.sweeper.trials=2", "seed=1,2"]) == 0
    log = FOLDER / "search.log"
    before = log.read_bytes()
    pruner = {"name": "ThresholdPruner", "lower": 1e9}
    assert not cuts_short(log, 1, pruner, 10, 1.0, may_end=True)
    assert log.read_bytes() == before
    with pytest.raises(DataError, match=r"search.log is damaged, or of another version"):
        cuts_short(log, 7, pruner, 10, 1.0, may_end=True)
