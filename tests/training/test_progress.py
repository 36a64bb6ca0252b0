"""What the terminal shows."""

import io
import re

from rich.console import Console

from fusionkit.training.callbacks import StopAfter
from fusionkit.training.progress import TrainingProgress, clock, fraction_done
from tests.training.fakes import FakeData, FakeTask, fake_module
from tests.training.test_module import fit

TWO = {"coco": {"a": 1.0, "b": 2.0}, "vqa": {"a": 0.5}}


def shown(path, is_terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=is_terminal, width=200)
    progress = TrainingProgress(every_seconds=0, console=console)
    progress.every_seconds = 0
    tasks = {"a": FakeTask(lambda records, samples: {"accuracy": 81.26}), "b": FakeTask()}
    data = FakeData(("coco", "vqa"))
    fit(path, fake_module(TWO, tasks=tasks), data, callbacks=[progress, StopAfter()], max_steps=3, max_epochs=-1)
    return text.getvalue()


def test_plain_lines_where_the_output_is_no_terminal(tmp_path):
    lines = shown(tmp_path, is_terminal=False).splitlines()
    assert len(lines) == 4
    loss = r"\d+\.\d{3}"
    expected = rf"step 2/3  coco/a {loss}  coco/b {loss}  vqa/a {loss}  \d+\.\d\d it/s  \d:\d\d left"
    assert re.fullmatch(expected, lines[1])
    assert re.fullmatch(r"validation at step 3 \(\d s\): coco/accuracy 81.3, vqa/accuracy 81.3, mean 81.3", lines[3])


def test_a_live_line_on_a_terminal(tmp_path):
    text = shown(tmp_path, is_terminal=True)
    assert "step 3/3  coco/a" in text
    assert "━" in text
    assert "mean 81.3" in text


def test_the_fraction_is_of_steps_or_of_time_whichever_is_further(tmp_path):
    stop = StopAfter(minutes=1)
    run = fit(tmp_path, fake_module(), callbacks=[stop], max_steps=2, limit_val_batches=0)
    assert fraction_done(run) == 1
    run.fit_loop.epoch_loop.max_steps = 8
    stop.load_state_dict({"seconds": 45.0})
    assert 0.75 <= fraction_done(run) < 0.8


def test_clock():
    assert [clock(seconds) for seconds in (5.2, 65, 3725)] == ["0:05", "1:05", "1:02:05"]
