"""What a training that is to be killed writes of itself: the samples of each step, at once; and it takes its time."""

import json
import time
from pathlib import Path
from typing import Any

from lightning import Callback


class SampleLog(Callback):
    """Writes a line a batch into ``folder/samples_RANK.jsonl``: the number of the batch, and the images and texts in it.

    ``pause``  seconds after each batch, in which a kill may fall
    """

    def __init__(self, folder: str, pause: float = 0.0) -> None:
        self.folder, self.pause = Path(folder), pause

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        number = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        found = {
            source: [
                part["image_ids"],
                {kind: list(map(str, rows["ids"])) for kind, rows in part.items() if _is_texts(rows)},
            ]
            for source, part in batch.items()
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"samples_{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([number, found]) + "\n")

    def on_train_batch_end(self, *args: Any) -> None:
        time.sleep(self.pause)


def _is_texts(rows: Any) -> bool:
    return isinstance(rows, dict) and "ids" in rows
