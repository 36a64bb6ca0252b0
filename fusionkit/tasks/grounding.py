"""Visual grounding: the box of a referring expression (X-VLM)."""

from torch import Tensor, nn

from fusionkit.losses import box_loss, to_corners
from fusionkit.model import VisionLanguageModel
from fusionkit.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.types import Batch, Dims, Encoded, TaskOutput, TextRows


class ExpressionRows(TextRows):
    boxes: Tensor  # (T, 4), cxcywh in 0..1


class ExpressionBatch(Batch):
    expressions: ExpressionRows


class Grounding(Task[ExpressionBatch]):
    """A box from the fused state by a three-layer perceptron and a sigmoid; L1 + (1 - GIoU), weights 1 : 1."""

    needs = frozenset({"pooled", "text"})  # read from the pooled state, but no place is left in two pooled vectors
    reads = "expressions"

    def __init__(self, dims: Dims, scorer: Scorer | None = None) -> None:
        super().__init__(scorer)
        size = dims.pooled_size
        self.head = nn.Sequential(
            nn.Linear(size, 2 * size), nn.LayerNorm(2 * size), nn.GELU(), nn.Linear(2 * size, 4), nn.Sigmoid()
        )

    def forward(
        self, model: VisionLanguageModel, batch: ExpressionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        boxes, targets = self._boxes(model, batch, encoded), batch["expressions"]["boxes"]
        l1, giou = box_loss(boxes, targets)
        return TaskOutput(l1 + giou, boxes, targets, {"l1": l1.detach(), "giou": giou.detach()})

    def _boxes(self, model: VisionLanguageModel, batch: ExpressionBatch, encoded: Encoded) -> Tensor:
        fused = model.fuse(encoded.memory, encoded.text[self.reads], batch["expressions"]["image_index"])
        return self.head(fused.pooled)  # (T, 4)

    def predict(self, model: VisionLanguageModel, batch: ExpressionBatch, encoded: Encoded) -> Records:
        """{"sent_id", "bbox"}: left, top, width, height in pixels of the annotation's image size."""
        rows = batch["expressions"]
        corners = to_corners(self._boxes(model, batch, encoded).float()).clamp(0, 1)
        scale = batch["image_sizes"][rows["image_index"]].repeat(1, 2)
        corners = corners * scale
        boxes = corners.clone()
        boxes[:, 2:] -= corners[:, :2]
        return [{"sent_id": i, "bbox": box} for i, box in zip(rows["ids"], boxes.tolist(), strict=True)]
