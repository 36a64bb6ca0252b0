"""NLVR2: is a sentence true of two images?"""

import torch
from torch import Tensor, nn

from fusionkit.losses import masked_cross_entropy, soft_cross_entropy
from fusionkit.model import VisionLanguageModel
from fusionkit.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task, hit_rate
from fusionkit.tasks.heads import Head, gelu_head
from fusionkit.types import Batch, Dims, Encoded, TaskOutput, TextRows, Tokens

LABELS = ("False", "True")


class StatementRows(TextRows):
    label: Tensor  # (T,) 1 = true; other_index names the row of the second image


class StatementBatch(Batch):
    statements: StatementRows


class NLVR2(Task[StatementBatch]):
    """The sentence is fused with each of its images; the head reads both vectors, the left image's first (UNITER's "pair").

    Neither image sees the other before the head, which ``head`` builds from (size, labels). With a teacher, partly against
    its distribution (ALBEF).
    """

    needs = frozenset({"pooled"})
    reads = "statements"
    distils = True
    vectors = 2  # that the head reads of a statement

    def __init__(self, dims: Dims, head: Head = gelu_head, scorer: Scorer | None = None) -> None:
        super().__init__(scorer)
        self.head = head(self.vectors * dims.pooled_size, len(LABELS))

    def forward(
        self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        logits, targets = self._logits(model, self.head, batch, encoded), batch["statements"]["label"].long()
        loss = masked_cross_entropy(logits, targets)
        if teacher is not None and teacher.alpha > 0:
            with torch.no_grad():
                soft = self._logits(teacher.model, teacher.head, batch, teacher.encoded).float().softmax(dim=1)
            loss = (1 - teacher.alpha) * loss + teacher.alpha * soft_cross_entropy(logits, soft)
        return TaskOutput(loss, logits, targets, hit_rate(logits, targets))

    def _logits(
        self, model: VisionLanguageModel, head: nn.Module | None, batch: StatementBatch, encoded: Encoded
    ) -> Tensor:
        assert head is not None
        return head(self._vectors(model, batch["statements"], encoded))  # (T, 2)

    def _vectors(self, model: VisionLanguageModel, rows: StatementRows, encoded: Encoded) -> Tensor:
        """What the head reads, (T, vectors * pooled_size)."""
        text = encoded.text[self.reads]
        assert text.mask is not None
        twice = Tokens(text.embeds.repeat(2, 1, 1), text.mask.repeat(2, 1), text.pooled.repeat(2, 1))
        fused = model.fuse(encoded.memory, twice, torch.cat([rows["image_index"], rows["other_index"]]))
        assert fused.pooled is not None
        return torch.cat(fused.pooled.chunk(2), dim=1)

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
