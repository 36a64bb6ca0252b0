"""Where the time of a training step goes: a profiler of Lightning's that knows the parts of a model and what a run waits for."""

import re
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.profilers import Profiler

from fusionkit.training.module import TrainingModule

DATA, LOOP = "waiting for data", "Lightning, logging"
LABELS = (  # of what Lightning tells of itself; the first that matches
    (r"\[Strategy\]\w+\.batch_to_device|transfer_batch_to_device|on_(before|after)_batch_transfer", "to the device"),
    (r"\[Strategy\]\w+\.backward", "backward pass"),
    (r"\[Strategy\]\w+\.training_step", "rest of the forward pass"),
    (r"\[LightningModule\]\w+\.(optimizer_step|optimizer_zero_grad|lr_scheduler_step)", "optimizer"),
    (r"\[LightningModule\]\w+\.configure_gradient_clipping", "optimizer"),
    (r"\[Callback\]CountedSteps", LOOP),
    (r"\[Callback\](\w+)", "callback {}"),
)


class StepClock(Profiler):
    """Wall-clock seconds by label, each without those of what it calls in turn; on a GPU, which is waited for at each change."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def start(self, action_name: str) -> None:
        self._charge()
        self._open.append(label_of(action_name) or (self._open[-1] if self._open else LOOP))

    def stop(self, action_name: str) -> None:
        self._charge()
        if self._open:
            self._open.pop()

    def reset(self) -> None:
        """Count from here on."""
        self._charge()
        self.seconds.clear()

    def read(self) -> dict[str, float]:
        """What was counted so far."""
        self._charge()
        return dict(self.seconds)

    def watch(self, owner: Any, method: str, label: str) -> None:
        """Count the calls of a method under a label of its own."""
        call: Callable[..., Any] = getattr(owner, method)

        @wraps(call)
        def timed(*args: Any, **options: Any) -> Any:
            self._charge()
            self._open.append(label)
            try:
                return call(*args, **options)
            finally:
                self.stop(label)

        owner.__dict__[method] = timed

    def watch_parts(self, module: TrainingModule) -> None:
        """Tell apart what the forward pass of a training is made of."""
        model = module.model
        self.watch(model, "encode_image", "image encoder")
        self.watch(model, "encode_text", "text encoder")
        for method in ("prepare", "forward", "extend"):
            if hasattr(model.fusion, method):
                self.watch(model.fusion, method, "fusion")
        for name, task in module.tasks.items():
            self.watch(task, "forward", f"task {name}")
        if module.teacher is not None:
            for method in ("encode", "update"):
                self.watch(module.teacher, method, "teacher")
        if module.distillation is not None:
            self.watch(module.distillation, "forward", "teacher")
        self.watch(module.balance, "forward", "balance of the losses")

    def _charge(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._open[-1] if self._open else LOOP] += now - self._since
        self._since = now


def label_of(action: str) -> str | None:
    """What a reader calls an action of Lightning's; None where it is a part of what goes on already."""
    for pattern, label in LABELS:
        if found := re.search(pattern, action):
            return label.format(*found.groups())
    return None


class CountedSteps(Callback):
    """Lets a clock count so many steps of the optimiser behind ``warmup`` others, then ends the training.

    ``found`` are seconds by label of all these steps together.
    """

    def __init__(self, clock: StepClock, warmup: int, steps: int) -> None:
        self.clock, self.warmup, self.steps = clock, warmup, steps
        self.found: dict[str, float] = {}
        self._step, self._waited = 0, 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._step:  # more batches belong to it
            return
        self._step, waited = trainer.global_step, trainer.datamodule.seconds_waited()  # type: ignore[attr-defined]
        if trainer.global_step == self.warmup:
            self.clock.reset()
            self._waited = waited
        elif trainer.global_step == self.warmup + self.steps:
            self.found = self.clock.read()
            self.found[DATA] = waited - self._waited
            self.found[LOOP] = max(0.0, self.found.get(LOOP, 0.0) - self.found[DATA])
            trainer.should_stop = True
