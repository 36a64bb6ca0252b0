"""What tells a run that learns from one that does not: gradient norms by part, collapse of a task to guessing, answers."""

import math
from collections import deque
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from fusionkit.scoring.base import as_scorer
from fusionkit.scoring.retrieval import has_features
from fusionkit.training.callbacks import require_counts
from fusionkit.training.loggers import Watch


class GradientNorms(Callback):
    """Logs ``train/gradient_norm/<part>`` (image_encoder, fusion, a task's name, ...) and ``total``, before any clipping.

    Over the ranks' mean gradient, on the steps that are logged alone; not where a strategy splits parameters.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        require_counts("gradient_norms", every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        is_whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        if not is_whole or (trainer.global_step + 1) % self.every_n_steps:
            return
        gradients: dict[str, list[Tensor]] = {}
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None:
                room, _, rest = name.partition(".")
                part = rest.partition(".")[0] if room in ("model", "tasks") else room
                gradients.setdefault(part, []).append(parameter.grad)
        norms = {part: nn.utils.get_total_norm(found) for part, found in gradients.items()}
        norms["total"] = nn.utils.get_total_norm(list(norms.values()))
        pl_module.log_dict({f"train/gradient_norm/{part}": norm for part, norm in norms.items()}, on_step=True)


class CollapseAlarm(Callback):
    """Logs ``train/<source>/<task>_collapse``, the mean over ``window`` steps of |loss - loss of guessing|, and warns.

    A task that tells ``chance_gap``, how far its loss lies above that of one who knows only how often each answer is right,
    has collapsed where that stays within ``tolerance`` (nats): a matching head that sees nothing stays at the entropy of one
    true pair to two false ones, .6365. Every step counts, but the numbers are looked at every ``every_n_steps``.
    """

    def __init__(self, window: int = 300, tolerance: float = 0.01, every_n_steps: int = 10) -> None:
        require_counts("collapse_alarm", window=window, every_n_steps=every_n_steps)
        self.window, self.tolerance, self.every_n_steps = window, tolerance, every_n_steps
        self._gaps: dict[str, deque[Tensor]] = {}
        self._collapsed: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        return {"gaps": {task: [float(gap) for gap in gaps] for task, gaps in self._gaps.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for task, gaps in state_dict["gaps"].items():
            self._gaps[task] = deque(map(torch.tensor, gaps), maxlen=self.window)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        for name, gap in pl_module.window.last("_chance_gap").items():
            task = name.removesuffix("_chance_gap")
            self._gaps.setdefault(task, deque(maxlen=self.window)).append(gap.abs())
        if trainer.global_step % self.every_n_steps == 0:
            for task, gaps in self._gaps.items():
                self._judge(trainer, pl_module, task, gaps)

    def _judge(self, trainer: Trainer, pl_module: Any, task: str, gaps: deque[Tensor]) -> None:
        distance = float(torch.stack([gap.cpu() for gap in gaps]).mean())
        pl_module.log(f"{task}_collapse", distance, on_step=True, on_epoch=False)
        if distance > self.tolerance:
            self._collapsed.discard(task)
        elif len(gaps) == self.window and task not in self._collapsed:
            self._collapsed.add(task)
            self._warn(trainer, task.removeprefix("train/"), distance)

    def _warn(self, trainer: Trainer, task: str, distance: float) -> None:
        text = (
            f"objective {task}: for {self.window} steps the loss has stayed within {distance:.4f} of guessing (step "
            f"{trainer.global_step}), so it learns nothing from its inputs; lower optimizer.lr, lengthen the warm-up, start "
            "from pretrained encoders, or make its negatives easier (negatives=random)"
        )
        if trainer.is_global_zero:
            print(f"warning: {text}", flush=True)
            for logger in trainer.loggers:
                if hasattr(logger, "alert"):
                    logger.alert(f"{task} has collapsed", text)


class AnswerTables(Callback):
    """Shows single answers of the validations number 1, 2, 4, 8, ... to the loggers that can show them."""

    def __init__(self) -> None:
        self._count = 0

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        self._count += 1
        is_shown = any(hasattr(logger, "log_examples") for logger in trainer.loggers)
        if trainer.is_global_zero and is_shown and math.log2(self._count).is_integer():
            watch = Watch(trainer.loggers, "val", trainer.global_step)
            for (source, name), (records, samples) in pl_module.validation.answers.items():
                task = pl_module.tasks[name]
                scorer = as_scorer(task.scorer, task.reads)
                if not has_features(records):
                    watch.log_answers(f"{source}_{name}", scorer, records, samples, scorer.rows(records, samples).rows)
