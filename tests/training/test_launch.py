"""How a run is built from its configuration, and the constructors' numbers that a configuration may leave out."""

import inspect
import logging
import warnings
from types import SimpleNamespace

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf
from torch import nn

from fusionkit.errors import ConfigError
from fusionkit.training import launch
from fusionkit.training.launch import (
    Parts,
    build_callbacks,
    build_loggers,
    build_tasks,
    plain_dims,
    quieten_libraries,
    spell,
)
from tests.toys import toy_model

DEFAULTS = {
    "fusionkit.training.callbacks.BestCheckpoint": {"monitor": "val/mean", "mode": "auto"},
    "fusionkit.training.callbacks.Throughput": {"every_n_steps": 10},
    "fusionkit.training.launch.build_parts": {"has_data": True},
    "fusionkit.training.module.TrainingModule": {"max_skipped_steps": 3},
    "fusionkit.training.optim.build_optimizer": {"weight_decay": 0.02, "eps": 1e-08, "fused": True},
    "fusionkit.training.restore.load_parts": {"has_data": True},
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


def test_shared_parameters_count_once():
    layer, other = nn.Linear(2, 1), nn.Linear(1, 1)
    parts = Parts(
        OmegaConf.create({"objectives": {"a": {"x": 0.5}}}), None, layer, {"x": nn.Sequential(layer, other), "y": other}
    )
    assert parts.parameters == 3 + 2
    assert parts.objectives == {"a": {"x": 0.5}}
    assert type(parts.objectives["a"]) is dict


def test_an_answer_with_an_unknown_word_is_not_spelt():
    rows = {"yes": [5], "a dog": [6, 7], "odd dog": [1, 7]}

    def tokenizer(texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [rows[text] for text in texts]}

    tokenizer.unk_token_id = 1
    assert spell(tokenizer, ("yes", "a dog", "odd dog")) == ((5,), (6, 7), ())
    assert spell(None, ()) == ()


def test_plain_values_of_a_model():
    model = toy_model()
    dims = plain_dims(model, {"cls": 2, "sep": 3, "pad": 0, "mask": None}, ["yes"])
    assert (dims.cls_token_id, dims.sep_token_id, dims.pad_token_id, dims.mask_token_id) == (2, 3, 0, None)
    assert (dims.vocab_size, dims.text_size, dims.embed_size, dims.answers) == (60, 32, 16, ("yes",))


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


def test_tasks_of_weight_0_need_nothing_of_the_fusion(monkeypatch):
    asked = []
    monkeypatch.setattr(launch, "check_needs", lambda name, task, fusion: asked.append(name))
    monkeypatch.setattr(launch, "instantiate", lambda block: lambda dims: (block.name, dims))
    config = {
        "task": {"a": {"name": "A"}, "b": {"name": "B"}},
        "objectives": {"s": {"a": 1.0, "b": 0}, "t": {"a": 2.0, "b": 0.0}},
    }
    assert build_tasks(OmegaConf.create(config), 7, None) == {"a": ("A", 7), "b": ("B", 7)}
    assert asked == ["a"]


@pytest.mark.parametrize("scorer", ["", "x", 5, {}, [1]])
def test_a_scorer_that_is_no_function_is_told(monkeypatch, scorer):
    monkeypatch.setattr(launch, "instantiate", lambda block: lambda dims: SimpleNamespace(scorer=block.scorer))
    config = {"task": {"a": {"scorer": None}, "b": {"scorer": scorer}}, "objectives": {}}
    with pytest.raises(ConfigError, match=r"^task\.b\.scorer is .*, but has to be a function that gives the scores"):
        build_tasks(OmegaConf.create(config), 7, None)
    config["task"]["b"]["scorer"] = None
    assert build_tasks(OmegaConf.create(config), 7, None).keys() == {"a", "b"}


def test_libraries_are_quiet_about_what_is_meant():
    with warnings.catch_warnings():
        before = warnings.formatwarning
        warnings.resetwarnings()
        quieten_libraries()
        patterns = [pattern.pattern for action, pattern, *_ in warnings.filters if action == "ignore" and pattern]
        assert set(patterns) >= set(launch.NOTICES)
        assert warnings.formatwarning("odd", UserWarning, "x.py", 3) == "warning: odd\n"
        warnings.formatwarning = before
    assert {logging.getLogger(f"lightning.{name}").level for name in ("pytorch", "fabric")} == {logging.WARNING}
