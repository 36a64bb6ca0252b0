"""The objectives that train, what a checkpoint must fit, and what a logger is told."""

from types import SimpleNamespace

import pytest
import torch

from fusionkit.assembly.objectives import active_objectives, text_kinds
from fusionkit.checkpoints.match import differences_between, require_fit
from fusionkit.errors import ConfigError, DataError
from fusionkit.training.loggers import Watch

TASKS = {"itm": None, "mlm": None}


def test_objectives_of_weight_0_are_off():
    assert active_objectives({"a": {"itm": 0, "mlm": 2}, "b": {"itm": 0.0}, "c": {"itm": 0.5}}, TASKS) == {
        "a": {"mlm": 2.0},
        "c": {"itm": 0.5},
    }


@pytest.mark.parametrize(
    ("objectives", "words"),
    [
        ({"a": {"itn": 1}}, r"objectives\.a\.itn: no such task is configured; did you mean 'itm'"),
        (
            {"a": {"itm": -0.5}},
            r"objectives\.a\.itm: the weight -0.5 is not a number of at least 0 \(0 switches it off\)",
        ),
        ({"a": {"itm": float("nan")}}, "the weight nan is not a number"),
        ({"a": {"itm": 0}}, "there is nothing to train"),
        ({}, "there is nothing to train"),
    ],
)
def test_objectives_that_cannot_train(objectives, words):
    with pytest.raises(ConfigError, match=words):
        active_objectives(objectives, TASKS)


def test_plain_texts_are_encoded_for_those_who_read_them():
    tasks = [
        SimpleNamespace(reads=kind, encodes=does)
        for kind, does in (("b", True), ("a", True), ("c", False), ("a", True))
    ]
    assert text_kinds(tasks) == ["a", "b"]


def test_what_does_not_fit_is_told_shapes_first_and_three_at_most():
    here = {"a": torch.ones(2), "b": torch.ones(1), "c": torch.ones(3)}
    there = {"a": torch.ones(4, 1), "c": torch.ones(3), "d": torch.ones(1)}
    told = ["a is (4, 1) there and (2,) here", "b is missing there", "d is unknown here"]
    assert differences_between(here, there) == told
    require_fit(here, dict(here), "x.ckpt")
    whole = here | {"a": torch.ones(2, dtype=torch.int32)}
    assert differences_between(here, whole) == ["a is of torch.int32 there and torch.float32 here"]
    assert differences_between(whole, here) == []  # a counter that was cast with the weights still counts
    with pytest.raises(DataError) as caught:
        require_fit(here, there, "x.ckpt")
    assert str(caught.value) == (
        f"checkpoint x.ckpt is of another architecture: {'; '.join(told)}; choose the encoders, fusion, model and teacher that "
        "it was trained with"
    )
    with pytest.raises(
        DataError, match=r"than its own configuration .*: a is .*; leave out what you change of .* is damaged"
    ):
        require_fit(here, there, "x.ckpt", is_own=True)
    with pytest.raises(DataError, match="d is unknown here and 1 more; choose"):
        require_fit(here, there | {"e": torch.ones(1)}, "x.ckpt")


def test_loggers_are_told_scores_and_those_that_show_answers_some():
    seen, scorer = [], SimpleNamespace(examples=lambda *given: given)

    class Plain:
        def log_metrics(self, metrics, step):
            seen.append((metrics, step))

        def save(self):
            seen.append("saved")

    class Showing(Plain):
        tables = 3

        def log_examples(self, name, examples, step):
            seen.append((name, examples, step))

    watch = Watch([Plain(), Showing()], "test", 7)
    watch.log_scores({"coco/r1": 2.0})
    assert seen == [({"test/coco/r1": 2.0}, 7), "saved"] * 2
    seen.clear()
    watch.log_answers("coco", scorer, "records", "samples", "rows")
    assert seen == [("test/coco", ("records", "samples", "rows", 3), 7)]
