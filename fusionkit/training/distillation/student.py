"""Distillation from another checkpoint: what is added to the losses of a student (Hinton et al. 2015)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.distributed import mean_over_ranks
from fusionkit.errors import ConfigError
from fusionkit.losses import distillation_loss, feature_loss
from fusionkit.model.model import VisionLanguageModel
from fusionkit.tasks.base import Task
from fusionkit.tasks.metrics import row_count
from fusionkit.types import Asked, Batch, Encoded, TaskOutput

IMAGE, TEXT, PAIR = "image", "text", "pair"  # whose pooled states are features


@dataclass(frozen=True)
class FrozenTeacher:
    """Another network, which never trains; no module, so that neither checkpoints nor optimisers nor DDP hold it.

    ``origin``   the path that was given, and the hash of the content that was found there, as checkpoints keep both.
    ``pixels``   makes the pixels of its own normalisation of those of a batch.
    """

    model: VisionLanguageModel
    tasks: Mapping[str, Task[Any]]
    origin: Mapping[str, str]
    pixels: Callable[[Batch], Batch]

    @property
    def module(self) -> nn.ModuleDict:
        """All of it that has weights."""
        return nn.ModuleDict({"model": self.model, "tasks": nn.ModuleDict(dict(self.tasks))})

    @torch.no_grad()
    def encode(self, batch: Batch, kinds: Sequence[str]) -> Encoded:
        """Its view of a batch, made once for all tasks of its source."""
        return self.model.encode(self.pixels(batch), kinds)

    @torch.no_grad()
    def answer(self, name: str, asked: Asked, seen: Encoded) -> Tensor:
        """Its logits (R, C) where the student's task of this name has these. ConfigError for others' number or columns."""
        found = asked.read(self.model, self.tasks[name], seen)
        if found.shape != asked.logits.shape:
            raise ConfigError(
                f"teacher.checkpoint {self.origin['checkpoint']}: its task.{name} gives {tuple(found.shape)} numbers for a "
                f"batch, the run's {tuple(asked.logits.shape)}; leave {name} out of teacher.tasks"
            )
        return found


@dataclass(frozen=True)
class Weights:
    """hard * loss + soft * T^2 KL at ``temperature`` T for each task, and ``features`` times the distance of features.

    ``kind``  of that distance: "cosine" or "mse" (``losses.feature_loss``).
    """

    soft: float = 1.0
    hard: float = 1.0
    temperature: float = 2.0
    features: float = 1.0
    kind: str = "cosine"


class Distillation(nn.Module):
    """Adds to a student's losses what tells it from its teacher; its own parameters are the maps of features alone.

    ``taught``    the tasks that learn from the teacher.
    ``widths``    of each part whose features do, the student's and the teacher's; a linear map joins those that differ.
    """

    def __init__(
        self, teacher: FrozenTeacher, taught: Sequence[str], widths: Mapping[str, tuple[int, int]], weights: Weights
    ) -> None:
        super().__init__()
        self.teacher, self.taught, self.weights = teacher, frozenset(taught), weights
        self.maps = nn.ModuleDict(
            {part: nn.Identity() if own == other else nn.Linear(own, other) for part, (own, other) in widths.items()}
        )
        teacher.module.requires_grad_(False).eval()

    def begin(self, device: torch.device, convert: Callable[[nn.Module], nn.Module]) -> None:
        """Bring the teacher to where the student is, in the precision of the run."""
        convert(self.teacher.module.to(device)).eval()

    def require_same(self, origin: Mapping[str, str] | None) -> None:
        """ConfigError where a run goes on that was taught by another content."""
        now = self.teacher.origin
        if origin is not None and origin["hash"] != now["hash"]:
            raise ConfigError(
                f"teacher.checkpoint: {now['checkpoint']} is not what the run was taught by, which was {origin['checkpoint']} of "
                f"content {origin['hash']}, not {now['hash']}; give that one, or start a new run"
            )

    def forward(
        self, batch: Batch, model: VisionLanguageModel, encoded: Encoded, outputs: Mapping[str, TaskOutput]
    ) -> tuple[dict[str, TaskOutput], dict[str, Tensor]]:
        """The outputs of a source's tasks with the losses that are to be minimised, and losses of features by log key."""
        taught = [name for name in outputs if name in self.taught]
        if not taught and not self.maps:
            return dict(outputs), {}
        seen = self.teacher.encode(batch, list(encoded.text))
        changed = {name: self._join(name, outputs[name], seen) for name in taught}
        return {**outputs, **changed}, self._features(batch, model, encoded, seen)

    def _join(self, name: str, output: TaskOutput, seen: Encoded) -> TaskOutput:
        weights = self.weights
        losses = [
            distillation_loss(asked.logits, self.teacher.answer(name, asked, seen), weights.temperature, asked.kind)
            for asked in output.asked
        ]
        soft = torch.stack(losses).mean()
        loss = weights.hard * output.loss + weights.soft * soft
        rows = torch.zeros_like(soft.detach()) + row_count(output)
        logged = soft.detach() * mean_over_ranks(rows), rows  # a rank's part of a mean over the rows of all ranks
        return output._replace(loss=loss, metrics={**output.metrics, "soft_loss": logged})

    def _features(self, batch: Batch, model: VisionLanguageModel, encoded: Encoded, seen: Encoded) -> dict[str, Tensor]:
        found = {}
        for part, project in self.maps.items():
            own = pooled_states(part, batch, model, encoded)
            with torch.no_grad():
                other = pooled_states(part, batch, self.teacher.model, seen)
            if own:
                loss = feature_loss(project(torch.cat(own)), torch.cat(other), self.weights.kind)
                found[f"train/{batch['source']}/{part}_feature_loss"] = self.weights.features * loss
        return found


def pooled_states(part: str, batch: Batch, model: VisionLanguageModel, encoded: Encoded) -> list[Tensor]:
    """The pooled states of the images (I, D) of a batch, or of each kind of its encoded texts, alone or with their images."""
    if part == IMAGE:
        return [encoded.image.pooled]
    if part == TEXT:
        return [text.pooled for text in encoded.text.values()]
    found = []
    for kind, text in encoded.text.items():
        pooled = model.fuse(encoded.memory, text, batch[kind]["image_index"]).pooled  # type: ignore[literal-required]
        assert pooled is not None
        found.append(pooled)
    return found
