"""Whether a model looks at its images: what each objective's loss gains by the true image over another."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fusionkit.distributed import largest_of_ranks, mean_by_name
from fusionkit.encoders.probe import undisturbed
from fusionkit.training.callbacks import require_counts
from fusionkit.training.module import TrainingModule, seed_batch
from fusionkit.types import Batch

IMAGES = (
    "pixel_values",
    "pixel_mask",
    "regions",
    "frames",
    "sounds",
    "stored",
)  # what a batch has a row an image of, for the encoder to read


class ImageGain(Callback):
    """Logs ``train/<source>/<task>_image_gain``: the loss of a batch whose images have changed places, less its loss, in nats.

    Both are computed without dropout and against the data's own targets, every ``every_n_steps`` at a step that is logged.
    0: the image is of no use, as where a language model goes by the words alone; warns where the mean of ``window`` of them is
    below ``tolerance``. Not of a source that has one sample a step, nor where a strategy splits parameters, nor of a task that
    ``draws_texts``.
    """

    def __init__(self, every_n_steps: int = 50, window: int = 10, tolerance: float = 0.01) -> None:
        require_counts("image_gain", every_n_steps=every_n_steps, window=window)
        self.every_n_steps, self.window, self.tolerance = every_n_steps, window, tolerance
        self._gains: dict[str, deque[float]] = {}
        self._ignored: set[str] = set()
        self._single: set[str] = set()  # sources of one sample a step

    def state_dict(self) -> dict[str, Any]:
        gains = {objective: list(gains) for objective, gains in self._gains.items()}
        return {"gains": gains, "ignored": sorted(self._ignored)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for objective, gains in state_dict["gains"].items():
            self._gains[objective] = deque(gains, maxlen=self.window)
        self._ignored = set(state_dict["ignored"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Mapping[str, Batch], batch_idx: int
    ) -> None:
        logged = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        every = -(-self.every_n_steps // logged) * logged
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        is_whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        if not is_whole or not is_step or trainer.global_step % every:
            return
        with torch.no_grad(), undisturbed(pl_module), trainer.precision_plugin.forward_context():
            found = {source: image_gains(pl_module, source, each) for source, each in batch.items()}
        for source, measured in found.items():
            if measured is None and source not in self._single:
                self._single.add(source)
                rank_zero_warn(
                    f"callbacks.image_gain: source {source} has one sample a step, but whether it is looked at is measured by "
                    f"another: raise data.sources.{source}.batch_size, or leave it out with ~callbacks.image_gain"
                )
        gains = {objective: gain for each in found.values() if each for objective, gain in each.items()}
        for objective, gain in mean_by_name(gains).items():
            pl_module.log(f"train/{objective}_image_gain", float(gain), on_step=True, on_epoch=False)
            if math.isfinite(gain):
                self._judge(trainer, objective, float(gain))

    def _judge(self, trainer: Trainer, objective: str, gain: float) -> None:
        gains = self._gains.setdefault(objective, deque(maxlen=self.window))
        gains.append(gain)
        if (mean := fmean(gains)) >= self.tolerance:
            self._ignored.discard(objective)
        elif len(gains) == self.window and objective not in self._ignored:
            self._ignored.add(objective)
            if trainer.is_global_zero:
                self._warn(trainer, objective, mean)

    def _warn(self, trainer: Trainer, objective: str, mean: float) -> None:
        text = (
            f"objective {objective} ignores the image: with another one its loss is {mean:.4f} nats higher, the mean of the last "
            f"{self.window} times it was measured (step {trainer.global_step}); train longer, raise the rate of the fusion "
            "(optimizer.rules), start from a pretrained image encoder, or give it texts that need the image"
        )
        print(f"warning: {text}", flush=True)
        for logger in trainer.loggers:
            if hasattr(logger, "alert"):
                logger.alert(f"{objective} ignores the image", text)


def image_gains(module: TrainingModule, source: str, batch: Batch) -> dict[str, Tensor] | None:
    """By objective "source/task" the loss with other images less the loss; None where a rank has a batch of one sample.

    Against the data's own targets: a momentum teacher would see the other images too, and want what is true of them.
    """
    fewest = -largest_of_ranks(-len(rows_by_sample(batch)), module.device)
    if fewest < 2:  # on all ranks or on none, since losses put ranks together
        return None
    losses = []
    for images in (batch, with_other_images(batch)):
        seed_batch(0)  # so that both have the same words masked and the same negatives drawn
        outputs = module.outputs(source, images, alpha=0.0)
        losses.append({name: out.loss for name, out in outputs.items() if not module.tasks[name].draws_texts})
    own, other = losses
    return {f"{source}/{name}": other[name] - loss for name, loss in own.items()}


def with_other_images(batch: Batch) -> Batch:
    """The batch with the images of the sample before in the place of each sample's own, whose keys and texts stay.

    Of a sample with several images none is then its own; where the one before has fewer, some of these come again.
    """
    samples = rows_by_sample(batch)
    rows = list(range(len(batch["image_ids"])))
    for own, before in zip(samples, samples[-1:] + samples[:-1], strict=True):
        for place, row in enumerate(own):
            rows[row] = before[place % len(before)]
    moved = {name: _taken(part, rows) for name, part in batch.items() if name in IMAGES}
    return {**batch, **moved}  # type: ignore[typeddict-item]


def rows_by_sample(batch: Batch) -> list[list[int]]:
    """The rows of images that stand together, as the texts name them: those of a sample."""
    first = list(range(len(batch["image_ids"])))
    for texts in (part for part in batch.values() if isinstance(part, dict)):
        index = texts["image_index"]
        further: Any = texts.get("other_index", index)
        named = texts["images"][..., 0] if "images" in texts else further
        for own, rows in zip(index.tolist(), named[..., None].flatten(1).tolist(), strict=True):
            for row in rows:
                if row >= 0:  # else none
                    first[row] = own
    samples = dict[int, list[int]]()
    for row, own in enumerate(first):
        samples.setdefault(own, []).append(row)
    return list(samples.values())


def _taken(part: Any, rows: list[int]) -> Any:
    if isinstance(part, Tensor):
        return part[rows]
    if part is None:
        return None
    taken = [_taken(value, rows) for value in part]
    return type(part)(*taken) if hasattr(part, "_fields") else type(part)(taken)
