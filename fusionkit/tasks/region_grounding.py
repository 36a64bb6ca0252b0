"""The boxes of regions from their own captions, in the whole image (X-VLM's pre-training)."""

from torch import Tensor

from fusionkit.losses import box_loss
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.grounding import Grounding
from fusionkit.types import Batch, Encoded, TaskOutput, TextRows, Whole


class RegionTextRows(TextRows):
    boxes: Tensor  # (T, 4), cxcywh in 0..1
    is_image: Tensor  # (T,) 1 = the text is about the whole image, and has no box


class RegionTextBatch(Batch):
    captions: RegionTextRows


class RegionGrounding(Grounding):
    """Grounding of the texts of views: each is fused with the whole image that its view is of, or with its image as it is."""

    reads = "captions"

    def forward(  # type: ignore[override]  # its batch has the boxes beside the captions
        self, model: VisionLanguageModel, batch: RegionTextBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        rows = batch["captions"]
        boxes = self._boxes(model, batch, encoded)[rows["is_image"] == 0]
        targets = rows["boxes"][rows["is_image"] == 0]
        l1, giou = box_loss(boxes, targets, self.giou_all_or_nothing)
        return TaskOutput(l1 + giou, boxes, targets, {"l1": l1.detach(), "giou": giou.detach()})

    def _boxes(self, model: VisionLanguageModel, batch: RegionTextBatch, encoded: Encoded) -> Tensor:  # type: ignore[override]
        whole, index = encoded.whole or Whole(encoded.image, encoded.memory), batch["captions"]["image_index"]
        if "views" in batch:
            index = batch["views"]["image_index"][index]
        pooled = model.fuse(whole.memory, encoded.text[self.reads], index).pooled
        assert pooled is not None
        boxes: Tensor = self.head(pooled if self.pooling is None else self.pooling(pooled, whole.image, index))
        return boxes
