"""NLVR2: is a sentence true of two images?"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.fusion.base import SupportsTwoImages
from fusionkit.losses import masked_cross_entropy
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.distillation import distil
from fusionkit.tasks.heads import gelu_norm
from fusionkit.tasks.metrics import hits, means
from fusionkit.types import Asked, Batch, Dims, Encoded, Memory, TaskOutput, TextRows

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


Read = Callable[[VisionLanguageModel, nn.Module, StatementBatch, Encoded], Tensor]
"""The logits (T, 2) of a model with a head, for the statements of an encoded batch."""


class NLVR2(Task[StatementBatch]):
    """The sentence is fused with each of its images; the head reads both vectors, the left image's first (UNITER's "pair").

    Neither image sees the other before the head. Where the fusion has an embedding for the second of two images, it gets it.
    ``head`` makes the classifier of (2 * pooled_size, 2), fusionkit.tasks.heads. With a teacher, partly against its
    distribution (ALBEF).
    """

    needs = frozenset({"pooled"})
    reads = "statements"
    distribution = "softmax"
    uses_teacher = True

    def __init__(
        self, dims: Dims, scorer: Scorer | None = None, head: Callable[[int, int], nn.Module] = gelu_norm
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("accuracy")
        self.head = head(2 * dims.pooled_size, len(LABELS))

    def forward(
        self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        return statement_output(self._logits, model, self.head, batch, encoded, teacher)

    def _logits(self, model: VisionLanguageModel, head: nn.Module, batch: StatementBatch, encoded: Encoded) -> Tensor:
        rows, text = batch["statements"], encoded.text[self.reads]
        left = model.fuse(encoded.memory, text, rows["image_index"])
        right = model.fuse(second_memory(model, encoded), text, rows["other_index"])
        assert left.pooled is not None
        assert right.pooled is not None
        logits: Tensor = head(torch.cat([left.pooled, right.pooled], dim=1))  # (T, 2)
        return logits

    def columns(self) -> tuple[str, Any]:
        return "labels", LABELS

    def predict(self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded) -> Records:
        """{"statement_id", "label"}: the identifier and "True" or "False", the two columns of the official file."""
        return statement_records(self._logits(model, self.head, batch, encoded), batch)


class JointNLVR2(Task[StatementBatch]):
    """The sentence is fused with both images at once, in a fusion that provides "pair" (ALBEF).

    ``head`` makes the classifier of (pooled_size, 2), fusionkit.tasks.heads. With a teacher, partly against its distribution.
    """

    needs = frozenset({"pooled", "pair"})
    reads = "statements"
    distribution = "softmax"
    uses_teacher = True

    def __init__(
        self, dims: Dims, scorer: Scorer | None = None, head: Callable[[int, int], nn.Module] = gelu_norm
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("accuracy")
        self.head = head(dims.pooled_size, len(LABELS))

    def forward(
        self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        return statement_output(self._logits, model, self.head, batch, encoded, teacher)

    def _logits(self, model: VisionLanguageModel, head: nn.Module, batch: StatementBatch, encoded: Encoded) -> Tensor:
        rows = batch["statements"]
        both = torch.stack([rows["image_index"], rows["other_index"]], dim=1)
        logits: Tensor = head(model.fuse(encoded.memory, encoded.text[self.reads], both).pooled)  # (T, 2)
        return logits

    def columns(self) -> tuple[str, Any]:
        return "labels", LABELS

    def predict(self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded) -> Records:
        """{"statement_id", "label"}, as NLVR2."""
        return statement_records(self._logits(model, self.head, batch, encoded), batch)


def statement_output(
    read: Read,
    model: VisionLanguageModel,
    head: nn.Module,
    batch: StatementBatch,
    encoded: Encoded,
    teacher: Teacher | None,
) -> TaskOutput:
    """Cross entropy of what ``read`` makes of the statements, with a teacher partly against its distribution."""
    logits, targets = read(model, head, batch, encoded), batch["statements"]["label"].long()
    loss = masked_cross_entropy(logits, targets)
    loss = distil(loss, logits, teacher, lambda t: read(t.model, t.own_head, batch, t.encoded))
    asked = Asked(logits, lambda m, task, seen: task._logits(m, task.head, batch, seen))
    return TaskOutput(loss, logits, targets, {"accuracy": hits(logits, targets)}, (asked,))


def statement_records(logits: Tensor, batch: StatementBatch) -> Records:
    """Records of logits (T, 2)."""
    ids, best = batch["statements"]["ids"], logits.argmax(dim=1).tolist()
    return [{"statement_id": i, "label": LABELS[label]} for i, label in zip(ids, best, strict=True)]
