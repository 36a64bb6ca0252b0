"""What the terminal shows while a run trains: the losses of every objective, the speed and the time left."""

import time
from collections import deque
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from fusionkit.training.callbacks import StopAfter
from fusionkit.training.module import TrainingModule
from fusionkit.visual.console import can_redraw

WINDOW = 30.0  # seconds that the speed is measured over


class TrainingProgress(Callback):
    """A live line where it can be redrawn, elsewhere a plain one every ``every_seconds``; the scores after each validation."""

    def __init__(self, every_seconds: float = 10.0, console: Console | None = None) -> None:
        self.console = console or Console(soft_wrap=True)
        self.is_live = can_redraw(self.console)
        self.every_seconds = 0.5 if self.is_live else every_seconds
        self._bar: Progress | None = None
        self._row = TaskID(0)
        self._shown = self._began = self._paused = 0.0
        self._start_fraction = 0.0
        self._steps: deque[tuple[float, int]] = deque()  # (seconds of training, step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shown = self._began = time.monotonic()
        self._start_fraction = fraction_done(trainer)
        self._steps = deque([(self._began, trainer.global_step)])
        if self.is_live and trainer.is_global_zero:
            self._bar = Progress(TextColumn("{task.description}"), BarColumn(bar_width=None), console=self.console)
            self._row = self._bar.add_task("", total=1.0)
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        now = time.monotonic()
        if trainer.is_global_zero and (now - self._shown >= self.every_seconds or trainer.should_stop):
            self._shown = now
            self._show(trainer, pl_module, now)

    def on_validation_start(self, *args: Any) -> None:
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        pause = time.monotonic() - self._paused  # no steps are made meanwhile
        self._steps = deque((moment + pause, step) for moment, step in self._steps)
        if trainer.is_global_zero:
            scores = {
                name[4:]: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
            }
            text = ", ".join(f"{name} {value:.1f}" for name, value in scores.items())
            self.console.print(f"validation at step {trainer.global_step} ({pause:.0f} s): {text}", highlight=False)

    def on_train_end(self, *args: Any) -> None:
        self._close()

    def on_exception(self, *args: Any) -> None:
        self._close()

    def _show(self, trainer: Trainer, module: TrainingModule, now: float) -> None:
        self._steps.append((now, trainer.global_step))
        while len(self._steps) > 2 and now - self._steps[0][0] > WINDOW:
            self._steps.popleft()
        (then, before), done = self._steps[0], fraction_done(trainer)
        speed = (trainer.global_step - before) / max(1e-9, now - then)
        gained = done - self._start_fraction
        left = (now - self._began) * (1 - done) / gained if gained > 0 else None
        line = describe(module, trainer.estimated_stepping_batches, speed, left)
        if self._bar is not None:
            self._bar.update(self._row, description=line, completed=done)
        else:
            self.console.print(line, highlight=False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe(module: TrainingModule, total_steps: float, speed: float, seconds_left: float | None) -> str:
    """One line: step, loss by objective, steps a second, time left."""
    parts = [f"step {module.global_step}/{total_steps}"]
    parts += [f"{name} {float(module.step_metrics[f'train/{name}_loss']):.3f}" for name in module.weights]
    parts += [f"{speed:.2f} it/s"] + ([f"{clock(seconds_left)} left"] if seconds_left is not None else [])
    return "  ".join(parts)


def fraction_done(trainer: Trainer) -> float:
    """How much of the run is over, by steps or by time, whichever is further."""
    limits = [callback.fraction() for callback in trainer.callbacks if isinstance(callback, StopAfter)]  # type: ignore[attr-defined]
    return min(1.0, max(trainer.global_step / trainer.estimated_stepping_batches, *limits, 0.0))


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
