"""Gradient norms by part, the alarm of a task that guesses, and answers to look at."""

from types import SimpleNamespace

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger

from fusionkit.scoring.base import BaseScorer
from fusionkit.scoring.record_schema import RecordSchema, is_text
from fusionkit.scoring.sample_scores import SampleScores
from fusionkit.tasks.base import Task
from fusionkit.training.diagnostics import AnswerTables, CollapseAlarm, GradientNorms
from tests.training.fakes import FakeTask, count_records, fake_module
from tests.training.test_module import fit


class Sink(CSVLogger):
    """Keeps what a logger of more than numbers is given."""

    def __init__(self, folder, tables: int = 2) -> None:
        super().__init__(folder)
        self.tables, self.alerts, self.shown, self.rows = tables, [], [], []

    def alert(self, title: str, text: str) -> None:
        self.alerts.append((title, text))

    def log_examples(self, name, examples, step) -> None:
        self.shown.append((name, step, len(examples)))

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.append(metrics | {"step": step})


class Gradients(Callback):
    """Every gradient as the optimiser is about to get it."""

    def __init__(self) -> None:
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        named = {name: p.grad.flatten().clone() for name, p in pl_module.named_parameters() if p.grad is not None}
        self.steps.append(named)


def test_gradient_norms_are_those_of_the_parts_before_clipping(tmp_path):
    sink, seen = Sink(tmp_path), Gradients()
    options = {"max_steps": 4, "max_epochs": -1, "limit_val_batches": 0, "log_every_n_steps": 2}
    module = fake_module({"coco": {"a": 1.0, "b": 2.0}}, tasks={"a": FakeTask(), "b": FakeTask()})
    fit(tmp_path, module, callbacks=[GradientNorms(2), seen], logger=sink, gradient_clip_val=1e-3, **options)
    assert [row["step"] for row in sink.rows] == [1, 3]
    for row, gradients in zip(sink.rows, seen.steps[1::2], strict=True):
        parts = {
            part: torch.cat([g for name, g in gradients.items() if name.startswith(prefix)]).norm().item()
            for part, prefix in (("image_encoder", "model.image_encoder"), ("a", "tasks.a"), ("total", ""))
        }
        assert {part: row[f"train/gradient_norm/{part}"] for part in parts} == pytest.approx(parts)
        assert "train/gradient_norm/b" in row
        assert parts["total"] > 0.01


class Guessing(FakeTask):
    """As far from guessing at each step as ``gaps`` says."""

    def __init__(self, gaps) -> None:
        super().__init__()
        self.gaps = iter(gaps)

    def forward(self, model, batch, encoded, teacher=None):
        output = super().forward(model, batch, encoded, teacher)
        return output._replace(metrics={"chance_gap": torch.tensor(next(self.gaps))})


def alarms(tmp_path, capsys, gaps) -> tuple[list[dict], list, list[str]]:
    sink = Sink(tmp_path)
    options = {"max_steps": len(gaps), "max_epochs": -1, "limit_val_batches": 0}
    module = fake_module(tasks={"a": Guessing(gaps)})
    fit(tmp_path, module, callbacks=[CollapseAlarm(window=3, tolerance=0.01, every_n_steps=1)], logger=sink, **options)
    return sink.rows, sink.alerts, [line for line in capsys.readouterr().out.splitlines() if "warning" in line]


def test_a_task_that_stays_at_guessing_is_told_once_until_it_recovers(tmp_path, capsys):
    gaps = [0.5, -0.001, 0.001, 0.0, 0.002, -0.9, 0.0, 0.0, 0.0, 0.0]
    rows, alerts, lines = alarms(tmp_path, capsys, gaps)
    assert rows[3]["train/coco/a_collapse"] == pytest.approx(0.002 / 3)
    assert rows[5]["train/coco/a_collapse"] == pytest.approx(0.902 / 3)
    assert [title for title, _ in alerts] == ["coco/a has collapsed"] * 2
    assert len(lines) == 2
    assert "objective coco/a: for 3 steps the loss has stayed within 0.0007 of guessing (step 4)" in lines[0]
    assert "(step 9)" in lines[1]


def test_a_short_stay_or_a_crossing_is_no_collapse(tmp_path, capsys):
    _, alerts, lines = alarms(tmp_path, capsys, [0.0, 0.0, 0.3, 0.1, -0.1, 0.1, -0.1])
    assert (alerts, lines) == ([], [])


class Said(BaseScorer):
    """A scorer of one kind of answers, which there are none of."""

    schema = (RecordSchema("captions", "image_id", "answer", "a text", is_text),)

    def rows(self, records, samples) -> SampleScores:
        return SampleScores(
            [{"id": record["image_id"], "score": 100.0, "image_id": 1, "values": {}} for record in records]
        )

    def __call__(self, records, samples):
        return count_records(records, samples)


def test_answers_are_shown_ever_less_often_and_only_where_they_can_be(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Said, "examples", lambda self, records, *rest: shown.append(len(records)) or records)
    tasks: dict[str, Task] = {"a": FakeTask(Said()), "b": FakeTask(count_records)}
    options = {"callbacks": [AnswerTables()], "max_epochs": 1, "val_check_interval": 1}
    module = fake_module({"coco": {"a": 1.0, "b": 1.0}}, tasks=tasks)
    fit(tmp_path, module, **options, logger=CSVLogger(tmp_path))
    assert shown == []
    sink = Sink(tmp_path)
    fit(tmp_path, module, **options | {"callbacks": [AnswerTables()], "num_sanity_val_steps": 1}, logger=sink)
    told = [(name, step) for name, step, examples in sink.shown if examples]
    assert told == [(f"val/coco_{name}", step) for step in (1, 2, 4) for name in "ab"]  # a plain function's too
    assert shown == [8, 8, 8]


def test_a_scorer_that_judges_no_samples_shows_none(tmp_path):
    answers = {("coco", "a"): ([{"image_id": 1}], [])}
    module = SimpleNamespace(
        validation=SimpleNamespace(answers=answers),
        tasks={"a": SimpleNamespace(scorer=lambda records, samples: {}, reads="captions")},
    )
    sink = Sink(tmp_path)
    trainer = SimpleNamespace(sanity_checking=False, is_global_zero=True, loggers=[sink], global_step=1)
    AnswerTables().on_validation_end(trainer, module)
    assert [count for *_, count in sink.shown] == [0]
