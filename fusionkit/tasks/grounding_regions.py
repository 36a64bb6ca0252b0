"""Grounding by choosing among the regions of an image (UNITER)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.encoders.base import SupportsCorners, unsupported
from fusionkit.errors import ConfigError, suggest
from fusionkit.losses import IGNORE, global_mean
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.grounding import ExpressionBatch, corner_boxes
from fusionkit.tasks.metrics import hits, means
from fusionkit.types import Asked, Dims, Encoded, TaskOutput, at_least_fp32

NONE = -1e4  # the score of padding (UNITER)


class GroundingRegions(Task[ExpressionBatch]):
    """A score for each fused image token; the one that overlaps the true box most is to have the highest.

    An expression whose box no token overlaps teaches nothing. Best where the regions hold the true boxes, as UNITER trains it.
    ``loss`` "choice"  is the cross entropy over the tokens of an image,
           "ranking"   max(0, margin + sigmoid(other) - sigmoid(true)), the other drawn by ``draw``.
    ``hard_share``     how often the other is the highest false one, not any (UNITER: 0.3).
    ``head``           makes the scorer of (hidden_size, 1): linear, or fusionkit.tasks.heads.gelu_norm.
    """

    needs = frozenset({"image"})  # what has seen the text; the text states themselves are not read
    reads = "expressions"
    distribution = "softmax"
    replies_to = "phrase"

    def __init__(
        self,
        dims: Dims,
        loss: str = "choice",
        margin: float = 0.2,
        hard_share: float = 0.3,
        head: Callable[[int, int], nn.Module] = nn.Linear,
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("accuracy")
        if loss not in ("choice", "ranking"):
            raise ConfigError(f"task.grounding_regions.loss is '{loss}'; {suggest(loss, ['choice', 'ranking'])}")
        self.loss, self.margin, self.hard_share = loss, margin, hard_share
        self.head = head(dims.hidden_size, 1)

    def forward(
        self, model: VisionLanguageModel, batch: ExpressionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        scores, corners = self.score_tokens(model, batch, encoded)
        overlaps = overlap(corners, batch["expressions"]["boxes"])
        best, targets = overlaps.max(dim=1)
        taught = best > 0
        losses = self.losses(scores, targets)[taught]
        loss = global_mean(losses.sum(), len(losses))
        targets = targets.masked_fill(~taught, IGNORE)
        asked = Asked(scores, lambda m, task, seen: task.score_tokens(m, batch, seen)[0])
        return TaskOutput(loss, scores, targets, {"accuracy": hits(scores, targets)}, (asked,))

    def columns(self) -> tuple[str, Any]:
        return "losses", self.loss

    def score_tokens(
        self, model: VisionLanguageModel, batch: ExpressionBatch, encoded: Encoded
    ) -> tuple[Tensor, Tensor]:
        """Scores (T, N) of the image tokens for each expression, and their corners (T, N, 4) in parts of the image."""
        index = batch["expressions"]["image_index"]
        fused = model.fuse(encoded.memory, encoded.text[self.reads], index)
        assert fused.image is not None
        encoder = model.image_encoder
        if not isinstance(encoder, SupportsCorners):
            raise unsupported(encoder, "corners", "task grounding_regions")
        corners = encoder.corners(model.images_of(batch), encoded.image)
        is_place = corners.sum(dim=2) > 0
        return at_least_fp32(self.head(fused.image).squeeze(2)).masked_fill(~is_place[index], NONE), corners[index]

    def losses(self, scores: Tensor, targets: Tensor, others: Tensor | None = None) -> Tensor:
        """Of scores (T, N) and the true tokens (T,): (T,). ``others`` are drawn where they are not given."""
        if self.loss == "choice":
            return F.cross_entropy(scores, targets, reduction="none")
        others = self.draw(scores.detach(), targets) if others is None else others
        true, false = (scores.gather(1, column[:, None]).squeeze(1).sigmoid() for column in (targets, others))
        return (self.margin + false - true).clamp(min=0)

    def draw(self, scores: Tensor, targets: Tensor) -> Tensor:
        """A false token for each expression (T,), the highest or any."""
        false = scores.scatter(1, targets[:, None], 2 * NONE)
        noise = torch.rand_like(false).masked_fill(false <= NONE, -1.0)
        is_hard = torch.rand(len(false), device=false.device) < self.hard_share
        return torch.where(is_hard, false.argmax(dim=1), noise.argmax(dim=1))

    def predict(self, model: VisionLanguageModel, batch: ExpressionBatch, encoded: Encoded) -> Records:
        """{"sent_id", "bbox"}: left, top, width, height in pixels of the annotation's image size."""
        rows = batch["expressions"]
        scores, corners = self.score_tokens(model, batch, encoded)
        chosen = corners[torch.arange(len(scores), device=scores.device), scores.argmax(dim=1)]
        boxes = corner_boxes(chosen, batch["image_sizes"][rows["image_index"]])
        return [{"sent_id": i, "bbox": box} for i, box in zip(rows["ids"], boxes.tolist(), strict=True)]


def overlap(corners: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union (T, N) of corners (T, N, 4) with one box (T, 4), cxcywh, each."""
    own = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)[:, None]
    shared = (torch.minimum(corners[..., 2:], own[..., 2:]) - torch.maximum(corners[..., :2], own[..., :2])).clamp(
        min=0
    )
    areas = (corners[..., 2:] - corners[..., :2]).prod(dim=2) + (own[..., 2:] - own[..., :2]).prod(dim=2)
    return shared.prod(dim=2) / (areas - shared.prod(dim=2)).clamp(min=1e-9)
