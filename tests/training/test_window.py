"""What is measured between two logs: every row counts, no step that is left out, and an interruption changes nothing."""

import math
from contextlib import nullcontext

import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy
from torchmetrics.text import BLEUScore

from fusionkit.checkpoints.load import load_weights
from fusionkit.errors import ConfigError
from fusionkit.internals import FAKE_TENSORS, NEEDS_NUMBERS
from fusionkit.losses import IGNORE
from fusionkit.negatives import Drawn
from fusionkit.tasks.itm import match_metrics, match_sums
from fusionkit.tasks.metrics import Summed, hits, means, row_count
from fusionkit.training.callbacks import LastCheckpoint, StopAfter
from fusionkit.training.diagnostics import CollapseAlarm
from fusionkit.training.window import MetricWindow
from fusionkit.types import TaskOutput
from tests.training.fakes import FakeData, FakeTask, ListLoader, fake_batch, fake_module
from tests.training.test_diagnostics import Guessing, Sink
from tests.training.test_finite import Spoil
from tests.training.test_module import Interrupt, fit

RUN = {"max_epochs": -1, "limit_val_batches": 0}
LOGITS, TARGETS = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]]), torch.tensor([1, 1, IGNORE])


class Measuring(FakeTask):
    """Tells whether targets lie above 1.5: counted, as a metric of torchmetrics, and as a plain mean."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = means("share")
        self.metrics.add_metrics({"accuracy": BinaryAccuracy()})

    def forward(self, model, batch, encoded, teacher=None):
        output = super().forward(model, batch, encoded, teacher)
        above = batch["targets"] > 1.5
        told = {"share": (above.sum(), len(above)), "plain": above.float().mean()}
        return output._replace(metrics=told | {"accuracy": (torch.ones_like(above), above)})


def output(loss: float, **metrics) -> TaskOutput:
    return TaskOutput(torch.tensor(loss), LOGITS, TARGETS, metrics)


def window(task=None) -> MetricWindow:
    return MetricWindow({"coco": {"a": 1.0}}, {"a": task or FakeTask()})


def uneven(source="coco"):
    """Batches of 4, 1 and 7 images, again and again."""
    return [fake_batch(source, number, images) for number, images in enumerate([4, 1, 7] * 4)]


class UnevenData(FakeData):
    def train_dataloader(self):
        from lightning.pytorch.utilities import CombinedLoader

        return CombinedLoader({"coco": ListLoader(uneven())}, "min_size")


def test_rows_are_those_that_teach():
    assert row_count(output(1.0)) == 2
    assert row_count(output(1.0)._replace(targets=torch.rand(5))) == 5
    assert row_count(output(1.0)._replace(targets=torch.rand(4, 2))) == 4
    assert row_count(output(1.0)._replace(targets=torch.full((4, 2), IGNORE))) == 4  # no classes of rows
    assert (
        row_count(output(1.0)._replace(targets=torch.tensor(1.0))) == row_count(output(1.0)._replace(targets=None)) == 1
    )


def test_a_window_is_weighted_by_rows_and_begins_anew():
    found = window()
    for loss, value, targets in ((1.0, 0.5, torch.rand(3)), (5.0, 0.9, torch.rand(1))):
        found.note({"coco/a": output(loss, plain=torch.tensor(value))._replace(targets=targets)})
        assert found.rows.tolist() == [len(targets)]
        found.count([loss, 10 * loss], [float(len(targets))])
    assert found.compute() == pytest.approx(
        {"train/coco/a_plain": (3 * 0.5 + 0.9) / 4, "train/coco/a_loss": 2.0, "train/loss": 30.0}
    )
    assert found.compute() == {}
    found.note({"coco/a": output(7.0, plain=0.25)})
    found.count([7.0, 8.0], [2.0])
    assert found.compute() == {"train/coco/a_plain": 0.25, "train/coco/a_loss": 7.0, "train/loss": 8.0}


def test_what_was_measured_of_no_row_is_not_logged():
    found = window()
    found.note({"coco/a": output(0.0, plain=torch.tensor(0.5), share=(0, 0))._replace(targets=torch.rand(0))})
    found.count([0.0, 1.0], [0.0])
    assert found.compute() == {"train/loss": 1.0}


def test_micro_batches_of_a_step_wait_for_it_and_are_dropped_with_it():
    found = window()
    for rows in (3, 1):
        found.note({"coco/a": output(1.0, plain=float(rows))._replace(targets=torch.rand(rows))})
    assert found.rows.tolist() == [4]
    assert found.state() == {}
    found.count([1.0, 1.0], [4.0])
    found.note({"coco/a": output(math.nan, plain=math.nan)})
    found.drop()
    assert found.last("_plain") == {}
    assert found.compute()["train/coco/a_plain"] == pytest.approx((9 + 1) / 4)


def test_the_last_outputs_alone_are_told_too():
    found = window()
    for value in (0.25, -0.75):
        found.note({"coco/a": output(1.0, chance_gap=value, other=1.0)})
        found.count([1.0, 1.0], [2.0])
    assert found.last("_chance_gap") == {"train/coco/a_chance_gap": -0.75}


def test_a_formula_is_of_the_sums():
    ratio = Summed(lambda total, one, other: total / (one - other), 3)
    ratio.update(3.0, torch.tensor(5), 1)
    ratio.update(torch.tensor(7.0), 2, torch.tensor(1.0))
    assert ratio.compute() == 2
    with pytest.raises(ValueError, match="argument"):
        ratio.update(1.0, 2.0)


def test_each_source_has_metrics_of_its_own():
    task = Measuring()
    found = MetricWindow({"coco": {"a": 1.0}, "vqa": {"a": 1.0}}, {"a": task})
    for source, value in (("coco", 1), ("vqa", 3)):
        found.note({f"{source}/a": output(1.0, share=(value, 4))})
    found._rows = [torch.tensor([1.0, 1.0])]
    found.count([1.0, 1.0, 1.0], [1.0, 1.0])
    measured = found.compute()
    assert (measured["train/coco/a_share"], measured["train/vqa/a_share"]) == (0.25, 0.75)
    assert not task.metrics["share"].update_called


def test_a_run_logs_means_over_the_row_count_a_window(tmp_path):
    sink = Sink(tmp_path)
    fit(
        tmp_path,
        fake_module(tasks={"a": Measuring()}),
        UnevenData(),
        logger=sink,
        log_every_n_steps=3,
        max_steps=6,
        **RUN,
    )
    assert [row["step"] for row in sink.rows] == [2, 5]
    for row, batches in zip(sink.rows, (uneven()[:3], uneven()[3:6]), strict=True):
        above = torch.cat([batch["targets"] for batch in batches]) > 1.5
        names = ("share", "plain", "accuracy")
        assert [row[f"train/coco/a_{name}"] for name in names] == pytest.approx([above.float().mean().item()] * 3)


def test_the_last_window_is_logged_where_a_callback_ends_the_run(tmp_path):
    sink = Sink(tmp_path)
    module = fake_module(tasks={"a": Measuring()})
    fit(tmp_path, module, UnevenData(), logger=sink, log_every_n_steps=3, max_steps=5, callbacks=[StopAfter()], **RUN)
    assert [row["step"] for row in sink.rows if "train/coco/a_share" in row] == [2, 4]
    above = torch.cat([batch["targets"] for batch in uneven()[3:5]]) > 1.5
    last = next(row for row in sink.rows if row["step"] == 4 and "train/coco/a_share" in row)
    assert last["train/coco/a_share"] == pytest.approx(above.float().mean().item())


class Losses(FakeTask):
    """Its loss is what the batch says."""

    def forward(self, model, batch, encoded, teacher=None):
        output = super().forward(model, batch, encoded, teacher)
        return output._replace(loss=output.loss * 0 + len(batch["image_ids"]))


def test_the_loss_of_a_window_is_that_of_its_rows_and_the_balanced_one_that_of_its_steps(tmp_path):
    sink = Sink(tmp_path)
    module = fake_module({"coco": {"a": 2.0}}, tasks={"a": Losses()})
    fit(tmp_path, module, UnevenData(), logger=sink, log_every_n_steps=3, max_steps=3, **RUN)
    (row,) = sink.rows
    assert row["train/coco/a_loss"] == pytest.approx((16 + 1 + 49) / 12)
    assert row["train/loss"] == pytest.approx(2 * (4 + 1 + 7) / 3)
    assert float(module.step_metrics["train/coco/a_loss"]) == 7  # the progress bar's


def test_a_step_that_is_left_out_is_no_measure(tmp_path):
    sink = Sink(tmp_path)
    module = fake_module(tasks={"a": Losses()})
    fit(tmp_path, module, UnevenData(), logger=sink, callbacks=[Spoil(2)], log_every_n_steps=3, max_steps=3, **RUN)
    assert sink.rows[0]["train/coco/a_loss"] == pytest.approx((16 + 1) / 5)
    assert sink.rows[0]["train/skipped_steps"] == 1


def test_micro_batches_are_logged_once_a_step(tmp_path):
    sink = Sink(tmp_path)
    options = RUN | {"accumulate_grad_batches": 2, "max_steps": 4, "log_every_n_steps": 2}
    fit(tmp_path, fake_module(tasks={"a": Measuring()}), UnevenData(), logger=sink, **options)
    assert [row["step"] for row in sink.rows] == [1, 3]
    above = torch.cat([batch["targets"] for batch in uneven()[:4]]) > 1.5
    assert sink.rows[0]["train/coco/a_share"] == pytest.approx(above.float().mean().item())


GAPS = [0.5, 0.25, -0.125, 1.0, 2.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("accumulate", "step"), [(1, 1), (1, 2), (1, 5), (2, 2), (2, 3)]
)  # in a window, and right behind a log
def test_an_interrupted_run_logs_what_a_whole_one_does(tmp_path, step, accumulate):
    options = {"max_epochs": 1, "limit_val_batches": 0, "log_every_n_steps": 2, "enable_checkpointing": True}
    options["accumulate_grad_batches"] = accumulate

    def run(name, gaps, ckpt=None, stop=None):
        torch.manual_seed(0)
        tasks = {"a": Measuring(), "b": Guessing(gaps)}
        last = LastCheckpoint(str(tmp_path / name))
        last._every_n_train_steps = 1
        sink, module = Sink(tmp_path / name), fake_module({"coco": {"a": 1.0, "b": 1.0}}, tasks=tasks)
        callbacks = [last, CollapseAlarm(window=8, every_n_steps=1), *([Interrupt(stop)] if stop else [])]
        with nullcontext() if stop is None else pytest.raises(KeyError, match="interrupted"):
            fit(tmp_path, module, FakeData(batches=8), ckpt, callbacks=callbacks, logger=sink, **options)
        return sink.rows

    whole, seen = run("whole", GAPS), run("part", GAPS, stop=step)
    rest = run("rest", GAPS[step * accumulate :], ckpt=tmp_path / "part" / "last.ckpt")
    assert len(whole) == 8 // accumulate // 2
    assert [*seen, *rest] == whole


def test_checkpoints_keep_metrics_beside_the_weights_and_old_ones_go_on(tmp_path):
    module = fake_module(tasks={"a": Measuring()})
    run = fit(tmp_path, module, max_steps=3, log_every_n_steps=2, **RUN)
    run.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if "metric" in name or "sums" in name]
    (kept,) = checkpoint["progress"]["metrics"]
    assert kept["train/coco/a_share"]["sums"][1] == 4  # rows of the step since the log
    assert set(kept) == {f"train/coco/a_{name}" for name in ("share", "plain", "accuracy", "loss")} | {"train/loss"}
    load_weights(fake_module(tasks={"a": Measuring()}), checkpoint, "x.ckpt")  # strictly
    del checkpoint["progress"]["metrics"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    sink, options = Sink(tmp_path), RUN | {"max_steps": 4, "log_every_n_steps": 2}
    fit(tmp_path, fake_module(tasks={"a": Measuring()}), None, tmp_path / "old.ckpt", logger=sink, **options)
    assert "train/coco/a_share" in sink.rows[-1]


def test_states_of_other_metrics_are_left_and_those_of_more_ranks_put_together(monkeypatch):
    task = FakeTask()
    task.metrics = MetricCollection({"accuracy": MulticlassAccuracy(2), "bleu": BLEUScore(), "share": Summed()})
    first, second, found = window(task), window(task), window(task)
    args = {"accuracy": (LOGITS[:2], TARGETS[:2]), "share": (1, 4)}
    for number, one in enumerate((first, second)):
        one.note({"coco/a": output(1.0, plain=float(number), bleu=(["a b c d"], [["a b c d"]]), **args)})
        one.count([1.0, 1.0], [2.0])
    found.load([first.state(), second.state()])
    assert found.compute() == pytest.approx(
        {"train/coco/a_plain": 0.5, "train/coco/a_accuracy": 0.25, "train/coco/a_share": 0.25, "train/coco/a_bleu": 1.0}
        | {"train/coco/a_loss": 1.0, "train/loss": 1.0}
    )
    state = first.state()
    state["train/coco/a_share"] = {"sums": torch.zeros(3)}
    state["train/coco/a_accuracy"] = {"hits": torch.zeros(1)}
    found.load([state])
    assert found.compute().keys() == {f"train/coco/a_{name}" for name in ("plain", "bleu", "loss")} | {"train/loss"}
    for module, numbers in (("rank", 1), ("world_size", 2)):
        monkeypatch.setattr(f"fusionkit.training.window.{module}", lambda numbers=numbers: numbers)
    found.load([first.state(), second.state()])
    monkeypatch.setattr("fusionkit.training.window.gather_objects", lambda items: items)
    assert found.compute()["train/coco/a_plain"] == 1
    found.load([first.state()])  # there are more ranks now
    assert found.compute() == {}


def test_a_metric_of_several_numbers_is_logged_by_their_names():
    class Two(Summed):
        def compute(self):
            return dict(zip(("one", "two"), self.sums, strict=True))

    task = FakeTask()
    task.metrics.add_metrics({"both": Two()})
    found = window(task)
    found.note({"coco/a": output(1.0, both=(1.0, 2.0))})
    found.count([1.0, 1.0], [2.0])
    measured = found.compute()
    assert (measured["train/coco/a_both_one"], measured["train/coco/a_both_two"]) == (1, 2)


def test_a_metric_that_is_no_number_is_named():
    task = FakeTask()
    task.metrics.add_metrics({"each": MulticlassAccuracy(3, average=None)})
    found = window(task)
    found.note({"coco/a": output(1.0, each=(torch.tensor([0, 1]), torch.tensor([0, 2])))})
    found.count([1.0, 1.0], [2.0])
    with pytest.raises(ConfigError, match=r"^train/coco/a_each is \(3,\) numbers, of which none can be logged"):
        found.compute()


def test_what_is_counted_hangs_on_no_number():
    """A number that is looked at is waited for on a device."""
    task = FakeTask()
    task.metrics = match_metrics()
    found = window(task)
    with FAKE_TENSORS():
        logits, targets = torch.randn(3, 2), torch.tensor([1, 0, 1])
        drawn = Drawn(targets[:, None], targets[:, None] > 0, torch.zeros(()))
        sums = match_sums(logits, targets, drawn, drawn)
        with pytest.raises(NEEDS_NUMBERS):
            float(sums["accuracy"][0])
        told = sums | {"hits": hits(logits, targets), "plain": logits.mean(), "number": 0.5}
        for metric in found._metrics.values():
            metric.sums = torch.zeros(len(metric.sums))
        for _ in range(2):
            found.note({"coco/a": TaskOutput(logits.mean(), logits, targets, told)})
            assert found.rows.shape == (1,)
            found.count([1.0, 1.0], [3.0])
    assert found._measured >= {f"train/coco/a_{name}" for name in told}


@pytest.mark.gpu
def test_no_step_waits_for_the_device():
    task = Measuring()
    found = window(task)
    found.to(torch.device("cuda"))
    args = (torch.ones((), device="cuda"), 4)
    outputs = {"coco/a": TaskOutput(args[0], LOGITS.cuda(), TARGETS.cuda(), {"share": args, "plain": args[0]})}
    for _ in range(2):
        torch.cuda.set_sync_debug_mode("error")
        try:
            found.note(outputs)
            found.count([1.0, 1.0], [4.0])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert found.compute()["train/coco/a_share"] == 0.25
