"""How a run is built from its configuration, and the constructors' numbers that a configuration may leave out."""

import inspect
import logging
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from fusionkit.assembly.composition import training_config
from fusionkit.assembly.signatures import signature_of
from fusionkit.errors import ConfigError
from fusionkit.training import trainer
from fusionkit.training.trainer import build_callbacks, build_loggers, build_trainer, quieten_libraries

DEFAULTS = {
    "fusionkit.training.callbacks.BestCheckpoint": {"monitor": "val/mean", "mode": "auto"},
    "fusionkit.training.callbacks.Throughput": {"every_n_steps": 10, "patience": 0.2},
    "fusionkit.training.image_gain.ImageGain": {"every_n_steps": 50, "window": 10, "tolerance": 0.01},
    "fusionkit.assembly.parts.build_parts": {"has_data": True},
    "fusionkit.training.module.TrainingModule": {"max_skipped_steps": 3, "frozen_weights": "stored"},
    "fusionkit.training.optim.build_optimizer": {"weight_decay": 0.02, "eps": 1e-08, "fused": True},
    "fusionkit.checkpoints.load.load_parts": {"has_data": True, "int8": False},
    "fusionkit.training.schedule.constant": {"warmup_steps": 0},
    "fusionkit.training.schedule.counted_linear": {"warmup_steps": 0.1, "first": 0},
    "fusionkit.training.schedule.epoch_cosine": {
        "min_lr_ratio": 0.0, "warmup_steps": 0, "warmup_lr_ratio": 1.0, "warmup_every": 100,
    },
    "fusionkit.training.schedule.epoch_decay": {
        "decay": 0.9, "min_lr_ratio": 0.0, "warmup_steps": 0, "warmup_lr_ratio": 0.0,
    },
    "fusionkit.training.schedule.warmup_cosine": {"warmup_steps": 0.05, "min_lr_ratio": 0.0},
    "fusionkit.training.schedule.warmup_linear": {"warmup_steps": 0.1, "min_lr_ratio": 0.0},
    "fusionkit.training.stages.Stage": {"lr_scale": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("path", DEFAULTS)
def test_defaults(path):
    parameters = inspect.signature(get_object(path)).parameters.values()
    assert {
        p.name: p.default for p in parameters if isinstance(p.default, int | float | str) and p.default != ""
    } == DEFAULTS[path]


def test_what_is_null_is_not_built(monkeypatch):
    config = OmegaConf.create({"logger": {"a": None, "b": {"_target_": "builtins.dict"}}, "callbacks": None})
    assert build_loggers(config) == [{}]
    assert build_loggers(OmegaConf.create({"logger": None})) == build_callbacks(config) == []
    block = {"_target_": "types.SimpleNamespace", "monitor": "test/r1"}
    config.callbacks = {"x": None, "best": block}
    with pytest.raises(ConfigError, match=r"callbacks\.best\.monitor is 'test/r1'"):
        build_callbacks(config)
    config.callbacks.best.monitor = "val/mean"
    assert build_callbacks(config) == [SimpleNamespace(monitor="val/mean")]


COUNTS = {  # the whole numbers of callbacks, each of which is divided by or is a length
    "collapse_alarm": ("window", "every_n_steps"),
    "gradient_norms": ("every_n_steps",),
    "image_gain": ("every_n_steps", "window"),
    "throughput": ("every_n_steps",),
}


def test_all_whole_numbers_of_callbacks_are_looked_at():
    found = {}
    for path in Path("conf/callbacks").glob("*.yaml"):
        block = OmegaConf.load(path)
        parameters = signature_of(block._target_) if "_target_" in block else {}
        if names := [name for name, parameter in parameters.items() if parameter.annotation is int]:
            found[path.stem] = set(names)
    assert found == {name: set(options) for name, options in COUNTS.items()}


@pytest.mark.parametrize(("name", "option"), [(name, option) for name, options in COUNTS.items() for option in options])
@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_1_is_a_mistake_in_its_callback(name, option, count):
    build = get_object(OmegaConf.load(f"conf/callbacks/{name}.yaml")._target_)
    with pytest.raises(
        ConfigError, match=rf"callbacks\.{name}\.{option}.* is {count}, but has to be at least 1; to do"
    ):
        build(**{option: count})


def test_libraries_are_quiet_about_what_is_meant():
    with warnings.catch_warnings():
        before = warnings.formatwarning
        warnings.resetwarnings()
        quieten_libraries()
        patterns = [pattern.pattern for action, pattern, *_ in warnings.filters if action == "ignore" and pattern]
        assert set(patterns) >= set(trainer.NOTICES)
        assert warnings.formatwarning("odd", UserWarning, "x.py", 3) == "warning: odd\n"
        warnings.formatwarning = before
    assert {logging.getLogger(f"lightning.{name}").level for name in ("pytorch", "fabric")} == {logging.WARNING}


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_of_multiprocessing_are_refused(strategy):
    config = training_config("trainer=ddp_cpu", f"trainer.strategy={strategy}", "trainer.fast_dev_run=true")
    with pytest.raises(
        ConfigError, match=f"^trainer.strategy={strategy} hands the run to processes of multiprocessing"
    ):
        build_trainer(config)
    assert build_trainer(training_config("trainer=ddp_cpu", "trainer.fast_dev_run=true")).world_size == 2
