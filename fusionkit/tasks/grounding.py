"""Visual grounding: the box of a referring expression (X-VLM)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.losses import box_loss, iou_and_giou, to_corners
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Meaning, Records, Scorer, Task
from fusionkit.tasks.metrics import means
from fusionkit.types import NUMBERS, Asked, Batch, Dims, Encoded, TaskOutput, TextRows, Tokens, at_least_fp32

BOX_METRICS = ("l1", "giou", "iou")  # the two parts of the loss, giou being 1 - GIoU, and how well boxes overlap


class ExpressionRows(TextRows):
    boxes: Tensor  # (T, 4), cxcywh in 0..1


class ExpressionBatch(Batch):
    expressions: ExpressionRows


class ImagePooling(nn.Module):
    """Adds to each fused vector the image tokens that it asks for: one attention over the tokens of its image."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.query = nn.Linear(dims.pooled_size, dims.pooled_size)
        self.key = nn.Linear(dims.image_size, dims.pooled_size)
        self.value = nn.Linear(dims.image_size, dims.pooled_size)

    def forward(self, pooled: Tensor, image: Tokens, image_index: Tensor) -> Tensor:
        """pooled (T, pooled_size), image tokens (I, N, image_size) and the row of each text's image -> pooled's shape."""
        weights = self.weights(pooled, image, image_index)
        seen: Tensor = weights[:, None] @ self.value(image.embeds)[image_index]
        return pooled + seen.squeeze(1)

    def weights(self, pooled: Tensor, image: Tokens, image_index: Tensor) -> Tensor:
        """Where each text looks (T, N), sum 1."""
        query = self.query(pooled) * pooled.shape[1] ** -0.5
        scores = at_least_fp32((self.key(image.embeds)[image_index] @ query[..., None]).squeeze(2))
        if image.mask is not None:
            scores = scores.masked_fill(~image.mask[image_index].bool(), float("-inf"))
        return scores.softmax(dim=1).to(pooled.dtype)


def corner_boxes(corners: Tensor, sizes: Tensor) -> Tensor:
    """Corners (T, 4) in 0..1 of images of sizes (T, 2) -> left, top, width, height in pixels."""
    corners = corners * sizes.repeat(1, 2)
    return torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)


def box_head(size: int) -> nn.Sequential:
    """(T, size) -> boxes (T, 4), cxcywh in 0..1 (X-VLM)."""
    return nn.Sequential(
        nn.Linear(size, 2 * size), nn.LayerNorm(2 * size), nn.GELU(), nn.Linear(2 * size, 4), nn.Sigmoid()
    )


def box_output(boxes: Tensor, targets: Tensor, giou_all_or_nothing: bool) -> TaskOutput:
    """The loss of boxes (T, 4), L1 + (1 - GIoU), and the metrics of ``BOX_METRICS``."""
    l1, giou = box_loss(boxes, targets, giou_all_or_nothing)
    distances = (at_least_fp32(boxes.detach()) - at_least_fp32(targets)).abs()
    iou, generalized = iou_and_giou(boxes.detach(), targets)
    parts = zip(BOX_METRICS, (distances, 1 - generalized, iou), strict=True)
    return TaskOutput(l1 + giou, boxes, targets, {name: (part.sum(), len(boxes)) for name, part in parts})


def box_records(boxes: Tensor, rows: TextRows, sizes: Tensor) -> Records:
    """{"sent_id", "bbox"} of boxes (T, 4) in images of sizes (I, 2), cut off at their edges."""
    placed = corner_boxes(to_corners(boxes.float()).clamp(0, 1), sizes[rows["image_index"]])
    return [{"sent_id": i, "bbox": box} for i, box in zip(rows["ids"], placed.tolist(), strict=True)]


class Grounding(Task[ExpressionBatch]):
    """A box from the fused state by a three-layer perceptron and a sigmoid; L1 + (1 - GIoU), weights 1 : 1.

    ``pooling`` (such as ``ImagePooling``, built from the dims) adds to the fused state what it reads off the image tokens.
    ``giou_all_or_nothing`` is X-VLM's mistake, to reproduce it (``losses.box_loss``).
    """

    needs = frozenset({"pooled", "text"})  # read from the pooled state, but no place is left in two pooled vectors
    reads = "expressions"
    replies_to = "phrase"

    def __init__(
        self,
        dims: Dims,
        pooling: Callable[[Dims], ImagePooling] | None = None,
        giou_all_or_nothing: bool = False,
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__(scorer)
        self.metrics = means(*BOX_METRICS)
        self.giou_all_or_nothing = giou_all_or_nothing
        self.pooling = pooling(dims) if pooling is not None else None
        self.head = box_head(dims.pooled_size)

    def forward(
        self, model: VisionLanguageModel, batch: ExpressionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        boxes = self.pair_scores(model, batch, encoded)
        output = box_output(boxes, batch["expressions"]["boxes"], self.giou_all_or_nothing)
        return output._replace(asked=(Asked(boxes, lambda m, task, seen: task.pair_scores(m, batch, seen), NUMBERS),))

    def columns(self) -> tuple[str, Any]:
        return "boxes", "cxcywh"

    def meaning(self) -> Meaning:
        says = "the box of what the text is about: its centre and its sides, in parts of the image's width and height"
        return Meaning("bbox", ("center_x", "center_y", "width", "height"), None, says)

    def pair_scores(self, model: VisionLanguageModel, batch: ExpressionBatch, encoded: Encoded) -> Tensor:
        """Boxes (T, 4), cxcywh in 0..1, of the expressions."""
        index = batch["expressions"]["image_index"]
        pooled = model.fuse(encoded.memory, encoded.text[self.reads], index).pooled
        assert pooled is not None
        boxes: Tensor = self.head(
            pooled if self.pooling is None else self.pooling(pooled, encoded.image, index)
        )  # (T, 4)
        return boxes

    def predict(self, model: VisionLanguageModel, batch: ExpressionBatch, encoded: Encoded) -> Records:
        """{"sent_id", "bbox"}: left, top, width, height in pixels of the annotation's image size."""
        return box_records(self.pair_scores(model, batch, encoded), batch["expressions"], batch["image_sizes"])
