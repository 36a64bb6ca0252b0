"""The boxes of regions from their own captions, in the whole image (X-VLM's pre-training)."""

from collections.abc import Callable

from torch import Tensor

from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.grounding import BOX_METRICS, ImagePooling, box_head, box_output, box_records
from fusionkit.tasks.metrics import means
from fusionkit.types import Batch, Dims, Encoded, TaskOutput, TextRows, Whole


class RegionTextRows(TextRows):
    boxes: Tensor  # (T, 4), cxcywh in 0..1
    is_image: Tensor  # (T,) 1 = the text is about the whole image, and has no box


class RegionTextBatch(Batch):
    captions: RegionTextRows


class RegionGrounding(Task[RegionTextBatch]):
    """Grounding of the texts of views: each is fused with the whole image that its view is of, or with its image as it is.

    Options as of ``Grounding``.
    """

    needs = frozenset({"pooled", "text"})
    reads = "captions"
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
        self, model: VisionLanguageModel, batch: RegionTextBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        has_box = batch["captions"]["is_image"] == 0
        boxes = self._boxes(model, batch, encoded)[has_box]
        return box_output(boxes, batch["captions"]["boxes"][has_box], self.giou_all_or_nothing)

    def _boxes(self, model: VisionLanguageModel, batch: RegionTextBatch, encoded: Encoded) -> Tensor:
        whole, index = encoded.whole or Whole(encoded.image, encoded.memory), batch["captions"]["image_index"]
        if "views" in batch:
            index = batch["views"]["image_index"][index]
        pooled = model.fuse(whole.memory, encoded.text[self.reads], index).pooled
        assert pooled is not None
        boxes: Tensor = self.head(pooled if self.pooling is None else self.pooling(pooled, whole.image, index))
        return boxes  # (T, 4)

    def predict(self, model: VisionLanguageModel, batch: RegionTextBatch, encoded: Encoded) -> Records:
        """{"sent_id", "bbox"}: left, top, width, height in pixels of the annotation's image size."""
        return box_records(self._boxes(model, batch, encoded), batch["captions"], batch["image_sizes"])
