"""NLVR2: is a sentence true of two images?"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fusionkit.losses import masked_cross_entropy
from fusionkit.model import VisionLanguageModel
from fusionkit.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task, hit_rate
from fusionkit.tasks.heads import gelu_norm
from fusionkit.types import Batch, Dims, Encoded, TaskOutput, TextRows

LABELS = ("False", "True")


class StatementRows(TextRows):
    label: Tensor  # (T,) 1 = true; other_index names the row of the second image


class StatementBatch(Batch):
    statements: StatementRows


def second_memory(model: VisionLanguageModel, encoded: Encoded) -> object:
    """The images prepared as second ones, where the fusion tells first and second apart; else as they are."""
    if getattr(model.fusion, "image_types", 1) == 1:
        return encoded.memory
    return model.fusion.prepare(encoded.image, place=1)


class NLVR2(Task[StatementBatch]):
    """The sentence is fused with each of its images; the head reads both vectors, the left image's first (UNITER's "pair").

    Neither image sees the other before the head. Where the fusion has an embedding for the second of two images, it gets it.
    ``head`` makes the classifier of (2 * pooled_size, 2), fusionkit.tasks.heads.
    """

    needs = frozenset({"pooled"})
    reads = "statements"

    def __init__(
        self, dims: Dims, scorer: Scorer | None = None, head: Callable[[int, int], nn.Module] = gelu_norm
    ) -> None:
        super().__init__(scorer)
        self.head = head(2 * dims.pooled_size, len(LABELS))

    def forward(
        self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        logits, targets = self._logits(model, batch, encoded), batch["statements"]["label"].long()
        return TaskOutput(masked_cross_entropy(logits, targets), logits, targets, hit_rate(logits, targets))

    def _logits(self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded) -> Tensor:
        rows, text = batch["statements"], encoded.text[self.reads]
        left = model.fuse(encoded.memory, text, rows["image_index"])
        right = model.fuse(second_memory(model, encoded), text, rows["other_index"])
        assert left.pooled is not None
        assert right.pooled is not None
        return self.head(torch.cat([left.pooled, right.pooled], dim=1))  # (T, 2)

    def predict(self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded) -> Records:
        """{"statement_id", "label"}: the identifier and "True" or "False", the two columns of the official file."""
        best = self._logits(model, batch, encoded).argmax(dim=1).tolist()
        ids = batch["statements"]["ids"]
        return [{"statement_id": i, "label": LABELS[label]} for i, label in zip(ids, best, strict=True)]
