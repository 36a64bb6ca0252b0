"""Checkpoints, the end of a run, throughput, skipped images."""

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback
from lightning.pytorch.utilities import CombinedLoader

from fusionkit.errors import ConfigError
from fusionkit.training.callbacks import BestCheckpoint, CutTexts, LastCheckpoint, SkippedImages, StopAfter, Throughput
from tests.training.fakes import FakeData, FakeLoader, FakeTask, fake_module
from tests.training.test_module import fit


class Peak:
    """A scorer whose second value is the best."""

    def __init__(self) -> None:
        self.values = iter([1.0, 3.0, 2.0, 2.5])

    def __call__(self, records, samples) -> dict[str, float]:
        return {"score": next(self.values)}


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


def test_best_keeps_the_best_and_last_the_last(tmp_path):
    callbacks = [BestCheckpoint(str(tmp_path), "val/coco/score"), LastCheckpoint(str(tmp_path)), StopAfter()]
    module = fake_module(tasks={"a": FakeTask(Peak())})
    options = {"enable_checkpointing": True, "max_epochs": 1, "val_check_interval": 2}
    fit(tmp_path, module, callbacks=callbacks, **options)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
    assert (step_of(tmp_path / "best.ckpt"), step_of(tmp_path / "last.ckpt")) == (4, 6)


@pytest.mark.parametrize("place", ["here", "moved"])
@pytest.mark.parametrize("is_kept", [True, False])
def test_a_run_that_goes_on_keeps_its_best_score_where_its_folder_has_moved(tmp_path, place, is_kept):
    def run(folder, values, steps, **options):
        scorer = Peak()
        scorer.values = iter(values)
        best = BestCheckpoint(str(folder), "val/coco/score")
        callbacks = [best, LastCheckpoint(str(folder)), StopAfter()]
        options |= {"enable_checkpointing": True, "max_steps": steps, "max_epochs": -1, "val_check_interval": 2}
        fit(tmp_path, fake_module(tasks={"a": FakeTask(scorer)}), callbacks=callbacks, **options)
        return best

    run(tmp_path / "here", [1.0, 3.0, 2.0], 6)
    (tmp_path / "here").rename(tmp_path / place)
    if not is_kept:  # a copy of last.ckpt alone: the best of what follows is the best that there is
        (tmp_path / place / "best.ckpt").unlink()
    best = run(tmp_path / place, [2.0, 2.5, 2.2], 12, ckpt_path=tmp_path / place / "last.ckpt")
    assert best.best_model_score == (3.0 if is_kept else 2.5)
    assert best.best_model_path == str(tmp_path / place / "best.ckpt")
    assert step_of(tmp_path / place / "best.ckpt") == (4 if is_kept else 10)


def test_an_unknown_monitor_is_told_at_the_first_validation(tmp_path):
    callbacks = [BestCheckpoint(str(tmp_path), "val/coco/coverag")]
    with pytest.raises(
        ConfigError, match=r"'val/coco/coverag'; did you mean 'val/coco/coverage'\? known: val/coco/cov"
    ):
        fit(
            tmp_path, fake_module(), callbacks=callbacks, max_steps=2, enable_checkpointing=True, num_sanity_val_steps=1
        )


@pytest.mark.parametrize("every", [1, 5])
def test_the_last_step_is_validated_and_saved(tmp_path, every):
    module = fake_module()
    callbacks = [StopAfter(), LastCheckpoint(str(tmp_path))]
    limits = {"max_steps": 4, "max_epochs": -1, "check_val_every_n_epoch": every}
    run = fit(tmp_path, module, callbacks=callbacks, enable_checkpointing=True, **limits)
    assert run.global_step == step_of(tmp_path / "last.ckpt") == 4
    assert float(run.callback_metrics["val/mean"]) == 100


def test_last_is_saved_without_any_validation(tmp_path):
    options = {"limit_val_batches": 0, "check_val_every_n_epoch": None, "max_steps": 2, "max_epochs": -1}
    fit(tmp_path, fake_module(), callbacks=[LastCheckpoint(str(tmp_path))], enable_checkpointing=True, **options)
    assert step_of(tmp_path / "last.ckpt") == 2


class Slow(Callback):
    def on_train_batch_start(self, *args) -> None:
        time.sleep(0.05)


def test_stops_when_the_time_is_over_and_counts_the_time_before_a_resume(tmp_path):
    stop = StopAfter(minutes=0.12 / 60)
    with pytest.warns(UserWarning, match=r"ends after 0.002 minutes \(scheduler.max_minutes\), at step [123] of 600:"):
        run = fit(tmp_path, fake_module(), callbacks=[stop, Slow()], max_epochs=100)
    assert 1 <= run.global_step <= 3
    assert "val/mean" in run.callback_metrics
    assert stop.fraction() >= 1
    resumed = StopAfter(minutes=1)
    resumed.load_state_dict({"seconds": 30.0})
    assert resumed.fraction() == pytest.approx(0.5, abs=0.01)


def test_a_run_that_reaches_its_last_step_is_not_cut_short(tmp_path, recwarn):
    run = fit(tmp_path, fake_module(), callbacks=[StopAfter(minutes=10)], max_steps=2, max_epochs=-1)
    assert run.global_step == 2
    assert not [warning for warning in recwarn if "max_minutes" in str(warning.message)]


def test_throughput_counts_the_images_of_all_sources(tmp_path):
    module = fake_module({"coco": {"a": 1.0}, "vqa": {"a": 1.0}})
    options = {"max_steps": 6, "max_epochs": -1, "limit_val_batches": 0}
    run = fit(tmp_path, module, FakeData(("coco", "vqa")), callbacks=[Slow(), Throughput(every_n_steps=2)], **options)
    assert 20 < float(run.callback_metrics["train/images_per_s"]) <= 8 / 0.05


class Clock(Callback):
    """Time that passes while a batch is waited for, and while it is trained on."""

    def __init__(self, monkeypatch, waited: float, trained: float) -> None:
        self.now, self.waited, self.asked, self.trained = 100.0, waited, 0.0, trained
        monkeypatch.setattr("fusionkit.training.callbacks.time", SimpleNamespace(monotonic=lambda: self.now))

    def on_before_backward(self, *args) -> None:
        self.now += self.trained + self.waited
        self.asked += self.waited


@pytest.mark.parametrize(("waited", "trained", "share", "is_told"), [(3.0, 1.0, 0.75, True), (0.1, 0.9, 0.1, False)])
def test_the_share_of_time_that_went_by_waiting_for_batches_is_told(
    tmp_path, monkeypatch, capsys, waited, trained, share, is_told
):
    data, clock = FakeData(), Clock(monkeypatch, waited, trained)
    data.num_workers, data.seconds_waited = 0, lambda: clock.asked
    options = {"max_steps": 9, "max_epochs": -1, "limit_val_batches": 0}
    run = fit(tmp_path, fake_module(), data, callbacks=[Throughput(every_n_steps=3), clock], **options)
    assert float(run.callback_metrics["train/data_wait"]) == pytest.approx(share)
    told = [line for line in capsys.readouterr().out.splitlines() if "waiting for batches" in line]
    assert len(told) == is_told
    if told:
        assert re.match(
            r"data: 75% of the training went by waiting for batches: raise data.num_workers \(now 0; auto", told[0]
        )


class LateLoader(FakeLoader):
    """Takes 5 seconds to begin an epoch, as workers do."""

    def __iter__(self):
        self.data.clock.now += 5
        self.data.clock.asked += 5
        yield from super().__iter__()


class LateData(FakeData):
    def train_dataloader(self):
        return CombinedLoader({"coco": LateLoader("coco", self.batches, self)}, "min_size")


def test_the_first_batch_of_an_epoch_is_waited_for_as_the_others_are(tmp_path, monkeypatch, capsys):
    data = LateData(batches=3)
    data.clock = Clock(monkeypatch, 0.0, 1.0)
    data.num_workers, data.seconds_waited = 0, lambda: data.clock.asked
    run = fit(tmp_path, fake_module(), data, callbacks=[Throughput(every_n_steps=3), data.clock], max_epochs=2)
    assert float(run.callback_metrics["train/data_wait"]) == pytest.approx(5 / 8)
    assert float(run.callback_metrics["train/images_per_s"]) == pytest.approx(4)  # while it trains
    assert "data: 62% of the training went by waiting" in capsys.readouterr().out


def test_tells_new_skipped_images_once(tmp_path, capsys):
    data = FakeData()
    counts = iter([0, 0, 2, 2, 3, 3])
    data.skipped = lambda: {"coco": next(counts)}
    run = fit(tmp_path, fake_module(), data, callbacks=[SkippedImages()], max_epochs=1)
    assert [line for line in capsys.readouterr().out.splitlines() if "corrupt" in line] == [
        "source coco: 2 corrupt images replaced by others so far",
        "source coco: 3 corrupt images replaced by others so far",
    ]
    assert run.callback_metrics["train/coco/skipped_images"] == 3


def test_tells_of_cut_texts_where_that_is_news(tmp_path, capsys):
    data = FakeData(("coco", "vqa"))
    counts = iter([(100, 0, 0), (200, 30, 0), (300, 40, 0), (400, 90, 0), (500, 90, 60)])
    data.sources = {name: SimpleNamespace(max_length=30) for name in ("coco", "vqa")}
    data.cut_texts = lambda source, role: next(counts) if (source, role) == ("coco", "train") else (50, 0, 0)
    fit(tmp_path, fake_module({"coco": {"a": 1.0}, "vqa": {"a": 1.0}}), data, callbacks=[CutTexts()], max_epochs=5)
    assert [line for line in capsys.readouterr().out.splitlines() if "cut at" in line] == [
        "source coco: 30 of the 200 texts read were cut at 30 tokens, data.sources.coco.max_length",
        "source coco: 90 of the 400 texts read were cut at 30 tokens, data.sources.coco.max_length",
        "source coco: 90 of the 500 texts read were cut at 30 tokens, data.sources.coco.max_length; 60 conversations have no "
        "reply that is learnt",
    ]


def test_last_of_a_moved_folder_is_that_of_the_new_place(tmp_path, recwarn):
    options = {"enable_checkpointing": True, "max_epochs": -1, "limit_val_batches": 0, "check_val_every_n_epoch": None}
    fit(tmp_path, fake_module(), callbacks=[LastCheckpoint(str(tmp_path / "a"))], max_steps=2, **options)
    last = LastCheckpoint(str(tmp_path / "b"))
    fit(tmp_path, fake_module(), callbacks=[last], max_steps=4, ckpt_path=tmp_path / "a/last.ckpt", **options)
    assert (step_of(tmp_path / "a/last.ckpt"), step_of(tmp_path / "b/last.ckpt")) == (2, 4)
    assert last.best_model_path == str(tmp_path / "b/last.ckpt")
    assert not [warning for warning in recwarn if "dirpath" in str(warning.message)]


@pytest.mark.parametrize("name", ["../precious", "..", "best.ckpt/.."])
def test_no_file_that_a_foreign_checkpoint_names_is_removed(tmp_path, name):
    best, last = BestCheckpoint(str(tmp_path), "val/coco/score"), LastCheckpoint(str(tmp_path))
    (tmp_path / "best.ckpt").touch()
    path = f"{tmp_path}/{name}"
    state = best.state_dict() | {"kth_best_model_path": path, "last_model_path": path, "best_k_models": {path: 0.0}}
    state.pop("dirpath")
    best.load_state_dict(state | {"best_model_path": f"elsewhere/{tmp_path.name}/best.ckpt"})
    last.load_state_dict(state | {"best_model_path": path})
    allowed = ("", str(tmp_path / "precious"))  # in the folder itself
    assert best.best_model_path == str(tmp_path / "best.ckpt")
    assert best.kth_best_model_path in allowed
    assert best.last_model_path in allowed
    assert set(best.best_k_models) <= set(allowed)
    assert (last.best_model_path, last.kth_best_model_path, last.last_model_path) == ("", "", "")
