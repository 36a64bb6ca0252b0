"""Callbacks of a process that trains, by which they are named in a configuration."""

import json
import os
from pathlib import Path
from typing import Any

from lightning import Callback


class SendSignal(Callback):
    """Sends this process a signal in a hook ("train", "validation" or "save"), on one rank, when ``step`` steps are made."""

    def __init__(self, number: int, step: int, hook: str = "train", rank: int = 0) -> None:
        self.number, self.step, self.hook, self.rank = number, step, hook, rank

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._send(trainer, "train")

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        self._send(trainer, "validation")

    def on_save_checkpoint(self, trainer: Any, *args: Any) -> None:
        self._send(trainer, "save")

    def _send(self, trainer: Any, hook: str) -> None:
        if (hook, trainer.global_step, trainer.global_rank) == (self.hook, self.step, self.rank):
            self.step = -1
            os.kill(os.getpid(), self.number)


class WriteImages(Callback):
    """Appends the images of each batch that is trained on to a file of each rank: a line a source and batch, with the step."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"images_{trainer.global_rank}.jsonl").open("a") as file:
            for part in batch.values():
                file.write(json.dumps([trainer.global_step, part["image_ids"]]) + "\n")
