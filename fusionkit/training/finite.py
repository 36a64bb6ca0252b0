"""Steps that are not finite are left out on all ranks alike, counted and told; weights that are not finite are never saved."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fusionkit.distributed import gather_objects, mean_over_ranks
from fusionkit.errors import ConfigError, UserError
from fusionkit.internals import copy_all
from fusionkit.negatives import Queue
from fusionkit.tasks.itc import FeatureQueue
from fusionkit.types import Batch

NAMED = 20  # images that a sentence names
ADVICE = "lower optimizer.lr, clip with trainer.gradient_clip_val, or set trainer.precision=32-true"
Images = dict[str, list[Any]]  # ids by source


class Finding(NamedTuple):
    """What a rank knows of a step that is not finite."""

    objectives: list[str]  # whose loss is not finite
    suspects: Images  # of the sources of these objectives
    damaged: Images  # whose pixels or features are not finite themselves
    everything: Images


class FiniteSteps:
    """Watches the losses and the gradient of each optimiser step: one small collective, and one wait for the device.

    A step that is not finite changes nothing but its number: no weight, no moment of the optimiser, no statistics of a batch
    norm, no state of a balancer. A queue takes no features that are not finite, and a teacher follows weights that are. The
    step counts as one of the run, the schedule goes on, and its samples are not seen again before the next epoch.

    ``most``  the run ends at so many such steps in a row: it is the weights then, not the samples.
    """

    def __init__(self, most: int, objectives: Sequence[str]) -> None:
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ConfigError(f"max_skipped_steps is {most}; give a whole number from 1 (end at the first) on")
        self.most, self.objectives = most, list(objectives)
        self.count = self.in_a_row = 0  # steps left out, of the run and up to now
        self.is_finite = True  # of the last step
        self._buffers: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._parts: list[tuple[Tensor, Images]] = []  # of the micro-batches: losses, and the images of each source
        self._batches: Mapping[str, Batch] = {}

    def state_dict(self) -> dict[str, int]:
        """The counts, as a checkpoint keeps them."""
        return {"count": self.count, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """What ``state_dict`` gave."""
        self.count, self.in_a_row = state["count"], state["in_a_row"]

    def watch(self, *modules: nn.Module) -> None:
        """Put back the buffers of these modules where a step is left out; queues see to themselves."""
        parts = [part for module in modules for part in module.modules() if not isinstance(part, Queue | FeatureQueue)]
        self._buffers = [buffer for part in parts for buffer in part.buffers(recurse=False)]
        self._kept = [buffer.clone() for buffer in self._buffers]

    def begin(self) -> None:
        """Before the first micro-batch of a step."""
        self._parts = []
        if self._buffers:
            copy_all(self._kept, self._buffers)

    def add(self, losses: Tensor, batches: Mapping[str, Batch]) -> Tensor:
        """Note the losses (K + 1,), the balanced one last, of a micro-batch; gives 1, or NaN where one is not finite.

        The loss times this has a gradient that says so on every rank, whatever the tasks made of the NaN.
        """
        self._batches = batches
        self._parts.append((losses, {source: list(batch["image_ids"]) for source, batch in batches.items()}))
        return torch.where(losses.isfinite().all(), 1.0, torch.nan)

    def end(self, norm: Tensor, rows: Tensor) -> tuple[list[float], list[float], bool]:
        """Mean losses (K + 1) over ranks and micro-batches, mean rows (K) over ranks, and whether all is finite."""
        losses = torch.stack([losses for losses, _ in self._parts]).mean(dim=0)
        found = mean_over_ranks(torch.cat([losses, rows.to(losses), norm.to(losses).reshape(1)])).tolist()
        means, counts = found[: len(losses)], found[len(losses) : -1]
        self.is_finite = all(map(math.isfinite, [*means, found[-1]]))
        if self.is_finite:
            self.in_a_row = 0
        return means, counts, self.is_finite

    @torch.no_grad()
    def leave_out(self, step: int) -> str:
        """Put everything back and count; gives the sentence, or raises UserError with it where these are too many in a row."""
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(kept)
        self.count, self.in_a_row = self.count + 1, self.in_a_row + 1
        told = f"step {step}: {describe(gather_objects([self._find()]))}"
        if self.in_a_row >= self.most:
            row = f", as at the {self.in_a_row - 1} before it" if self.in_a_row > 1 else ""
            raise UserError(f"{told}{row}; {ADVICE}; the checkpoints from before are kept")
        return f"{told}; the step is left out ({self.count} so far)"

    def _find(self) -> Finding:
        everything: Images = {}
        suspects: Images = {}
        faulty: set[str] = set()
        for losses, images in self._parts:
            finite = losses[:-1].isfinite().tolist()
            names = [name for name, is_finite in zip(self.objectives, finite, strict=True) if not is_finite]
            faulty |= set(names)
            for source, ids in images.items():
                everything.setdefault(source, []).extend(ids)
                if any(name.rpartition("/")[0] == source for name in names):
                    suspects.setdefault(source, []).extend(ids)
        damaged = {source: ids for source, batch in self._batches.items() if (ids := damaged_images(batch))}
        return Finding(sorted(faulty), suspects, damaged, everything)


def damaged_images(batch: Batch) -> list[Any]:
    """The ids of the images whose pixels or features are not finite."""
    values = batch["regions"].features if "regions" in batch else batch.get("pixel_values")
    if "frames" in batch or "sounds" in batch:
        values = (batch["frames"] if "frames" in batch else batch["sounds"]).values
    if values is None or len(values) != len(batch["image_ids"]):  # inputs of one's own; views of images
        return []
    is_finite = values.isfinite().flatten(1).all(dim=1).tolist()
    return [image for image, fine in zip(batch["image_ids"], is_finite, strict=True) if not fine]


def describe(findings: Sequence[Finding]) -> str:
    """What all ranks found, in words: whose loss, and the images that it may be due to, as few as are known."""
    objectives = sorted({name for finding in findings for name in finding.objectives})
    what = f"the loss of {', '.join(objectives)} is not finite" if objectives else "the gradient is not finite"
    for part, of in (("damaged", "pixels or features that are not finite in images"), ("suspects", "images")):
        if images := _joined([getattr(finding, part) for finding in findings]):
            return f"{what} ({of} {images})"
    return f"{what} (images {_joined([finding.everything for finding in findings])})"


def _joined(parts: Sequence[Images]) -> str:
    told = []
    for source in sorted({source for part in parts for source in part}):
        ids = list(dict.fromkeys(image for part in parts for image in part.get(source, ())))
        more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        told.append(f"{', '.join(map(str, ids[:NAMED]))}{more} of {source}")
    return "; ".join(told)
