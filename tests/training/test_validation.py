"""Which way a metric is better: what a scorer says, what a name tells, and what follows from it."""

from pathlib import Path

import pytest
import torch

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError
from fusionkit.scoring.sample_scores import is_error, known_direction
from fusionkit.training.callbacks import BestCheckpoint
from fusionkit.training.validation import Validation
from tests.training.fakes import FakeTask, fake_module
from tests.training.test_callbacks import step_of
from tests.training.test_module import fit

SAMPLES = [Sample(1, Path("a.png"), {"claims": (Text("c", "x", {"support": 1.0}),)})]


def scores(*scorers):
    validation = Validation()
    validation.add("claims", [1], {str(number): [{"claim_id": "c"}] for number in range(len(scorers))})
    found = validation.score({"claims": {str(n): s for n, s in enumerate(scorers)}}, lambda source: SAMPLES, False)
    return found, validation.directions


def gives(metrics=None, **values):
    def score(records, samples):
        return values

    if metrics is not None:
        score.metrics = metrics
    return score


@pytest.mark.parametrize("name", ["support_mae", "MAE", "text_median_rank", "itm_loss", "word_error", "wer"])
def test_errors_are_known_by_their_last_word(name):
    assert is_error(name)
    assert is_error(f"val/a_b/{name}")
    assert known_direction(name, {name: True}) is True


@pytest.mark.parametrize("name", ["accuracy", "error_free", "rank_accuracy", "val/loss/recall", "power", "r1"])
def test_what_no_name_tells_is_taken_to_be_better_the_higher(name):
    assert known_direction(name) is None
    assert known_direction(name, {"other": False}) is None
    assert known_direction(name, {name.rpartition("/")[2]: False}) is False
    assert not is_error(name)


def test_the_mean_falls_where_an_error_rises():
    small, large = (scores(gives(support_mae=value, accuracy=9.0), gives(accuracy=50.0))[0] for value in (10.0, 30.0))
    assert (small["val/claims/support_mae"], small["val/mean"]) == (10.0, 20.0)
    assert large["val/mean"] == 10.0
    found, directions = scores(gives({"off_by": False, "seen": True}, off_by=4.0, seen=3.0), gives(r=1.0))
    assert found["val/mean"] == -1.5
    assert directions == {"val/claims/off_by": False, "val/claims/seen": True, "val/mean": True}
    assert scores(gives({"wer": True}, wer=4.0))[0]["val/mean"] == 4.0
    assert scores(gives())[0] == {}
    assert scores(gives())[1] == {}


class Falling:
    """An error that is least at the second of four validations."""

    def __init__(self, name="off_by", metrics=None) -> None:
        self.name, self.values = name, iter([3.0, 1.0, 2.0, 2.5])
        if metrics is not None:
            self.metrics = metrics

    def __call__(self, records, samples):
        return {self.name: next(self.values)}


@pytest.mark.parametrize(
    ("scorer", "monitor", "mode", "step"),
    [
        (Falling("age_mae"), "val/coco/age_mae", "auto", 4),
        (Falling("age_mae"), "val/mean", "auto", 4),
        (Falling(metrics={"off_by": False}), "val/coco/off_by", "auto", 4),
        (Falling(metrics={"off_by": False}), "val/mean", "max", 4),
        (Falling(), "val/coco/off_by", "min", 4),
        (Falling(), "val/coco/off_by", "auto", 2),  # nobody says that it is an error
        (Falling("age_mae", {"age_mae": True}), "val/coco/age_mae", "auto", 2),
    ],
)
def test_best_is_what_the_metric_says_is_best(tmp_path, scorer, monitor, mode, step):
    module = fake_module(tasks={"a": FakeTask(scorer)})
    best = BestCheckpoint(str(tmp_path), monitor, mode)
    key = best.state_key
    fit(tmp_path, module, callbacks=[best], enable_checkpointing=True, max_epochs=1, val_check_interval=2)
    assert step_of(tmp_path / "best.ckpt") == step
    assert best.state_key == key == BestCheckpoint(str(tmp_path), monitor, mode).state_key
    resumed = BestCheckpoint(str(tmp_path), monitor, mode)
    resumed.load_state_dict(best.state_dict())
    resumed._turn(module.validation.directions.get(monitor))
    assert (resumed.mode, float(resumed.kth_value)) == (best.mode, float(best.kth_value))
    assert torch.isfinite(resumed.kth_value)


@pytest.mark.parametrize(
    ("monitor", "mode", "more"),
    [("val/coco/age_mae", "max", "less"), ("val/mean", "min", "more")],
)
def test_a_mode_that_contradicts_the_metric_is_told_once(tmp_path, monitor, mode, more, recwarn):
    module = fake_module(tasks={"a": FakeTask(Falling("age_mae"))})
    best = BestCheckpoint(str(tmp_path), monitor, mode)
    fit(tmp_path, module, callbacks=[best], enable_checkpointing=True, max_epochs=1, val_check_interval=2)
    told = [str(one.message) for one in recwarn if "callbacks.best.mode" in str(one.message)]
    assert len(told) == 1
    assert f"best.mode is {mode}, but {more} of {monitor} is better: best.ckpt is the worst one" in told[0]
    assert best.mode == mode
    with pytest.raises(ConfigError, match=r"callbacks.best.mode is 'mx'; did you mean 'max'\?"):
        BestCheckpoint(str(tmp_path), monitor, "mx")
