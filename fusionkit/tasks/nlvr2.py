"""NLVR2: is a sentence true of two images?"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fusionkit.fusion.base import SupportsTwoImages
from fusionkit.losses import masked_cross_entropy, soft_cross_entropy
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task, hit_rate
from fusionkit.tasks.heads import gelu_norm
from fusionkit.types import Batch, Dims, Encoded, Memory, TaskOutput, TextRows, at_least_fp32

LABELS = ("False", "True")


class StatementRows(TextRows):
    label: Tensor  # (T,) 1 = true; other_index names the row of the second image


class StatementBatch(Batch):
    statements: StatementRows


def second_memory(model: VisionLanguageModel, encoded: Encoded) -> Memory:
    """The images prepared as second ones, where the fusion tells first and second apart; else as they are."""
    if isinstance(model.fusion, SupportsTwoImages) and model.fusion.image_types > 1:
        return model.fusion.prepare(encoded.image, place=1)
    return encoded.memory


class NLVR2(Task[StatementBatch]):
    """The sentence is fused with each of its images; the head reads both vectors, the left image's first (UNITER's "pair").

    Neither image sees the other before the head. Where the fusion has an embedding for the second of two images, it gets it.
    ``head`` makes the classifier of (2 * pooled_size, 2), fusionkit.tasks.heads. With a teacher, partly against its
    distribution (ALBEF).
    """

    needs = frozenset({"pooled"})
    reads = "statements"
    uses_teacher = True
    vectors = 2  # that the head reads of a statement

    def __init__(
        self, dims: Dims, scorer: Scorer | None = None, head: Callable[[int, int], nn.Module] = gelu_norm
    ) -> None:
        super().__init__(scorer)
        self.head = head(self.vectors * dims.pooled_size, len(LABELS))

    def forward(
        self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        logits, targets = self._logits(model, self.head, batch, encoded), batch["statements"]["label"].long()
        loss = masked_cross_entropy(logits, targets)
        if teacher is not None and teacher.alpha > 0:
            with torch.no_grad():
                soft = self._logits(teacher.model, teacher.head, batch, teacher.encoded)
            soft = at_least_fp32(soft).softmax(dim=1)
            loss = (1 - teacher.alpha) * loss + teacher.alpha * soft_cross_entropy(logits, soft)
        return TaskOutput(loss, logits, targets, hit_rate(logits, targets))

    def _logits(
        self, model: VisionLanguageModel, head: nn.Module | None, batch: StatementBatch, encoded: Encoded
    ) -> Tensor:
        assert head is not None
        logits: Tensor = head(self._vectors(model, batch["statements"], encoded))  # (T, 2)
        return logits

    def _vectors(self, model: VisionLanguageModel, rows: StatementRows, encoded: Encoded) -> Tensor:
        """What the head reads, (T, vectors * pooled_size)."""
        text = encoded.text[self.reads]
        left = model.fuse(encoded.memory, text, rows["image_index"])
        right = model.fuse(second_memory(model, encoded), text, rows["other_index"])
        assert left.pooled is not None
        assert right.pooled is not None
        return torch.cat([left.pooled, right.pooled], dim=1)

    def predict(self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded) -> Records:
        """{"statement_id", "label"}: the identifier and "True" or "False", the two columns of the official file."""
        best = self._logits(model, self.head, batch, encoded).argmax(dim=1).tolist()
        ids = batch["statements"]["ids"]
        return [{"statement_id": i, "label": LABELS[label]} for i, label in zip(ids, best, strict=True)]


class JointNLVR2(NLVR2):
    """The sentence is fused with both images at once, in a fusion that provides "pair" (ALBEF)."""

    needs = frozenset({"pooled", "pair"})
    vectors = 1

    def _vectors(self, model: VisionLanguageModel, rows: StatementRows, encoded: Encoded) -> Tensor:
        both = torch.stack([rows["image_index"], rows["other_index"]], dim=1)
        pooled = model.fuse(encoded.memory, encoded.text[self.reads], both).pooled
        assert pooled is not None
        return pooled
