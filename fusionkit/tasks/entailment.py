"""Visual entailment: does the image entail the sentence, contradict it, or neither? (SNLI-VE)"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.losses import soft_cross_entropy
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Meaning, Records, Scorer, Task
from fusionkit.tasks.distillation import distil
from fusionkit.tasks.heads import gelu_norm
from fusionkit.tasks.metrics import hits, means
from fusionkit.types import Asked, Batch, Dims, Encoded, Fused, TaskOutput, TextRows

LABELS = ("contradiction", "neutral", "entailment")


class HypothesisRows(TextRows):
    contradiction: Tensor  # (T,) share of each label, together 1: a one for the gold one, or the annotators' shares
    neutral: Tensor
    entailment: Tensor


class HypothesisBatch(Batch):
    hypotheses: HypothesisRows


class Entailment(Task[HypothesisBatch]):
    """Cross entropy against the shares of the three labels, hard or soft as the reader gives them.

    ``head`` makes the classifier of (pooled_size, labels), fusionkit.tasks.heads. With a teacher, partly against its shares
    (ALBEF).
    """

    needs = frozenset({"pooled"})
    reads = "hypotheses"
    distribution = "softmax"
    uses_teacher = True
    replies_to = "text"

    def __init__(
        self, dims: Dims, scorer: Scorer | None = None, head: Callable[[int, int], nn.Module] = gelu_norm
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("accuracy")
        self.head = head(dims.pooled_size, len(LABELS))

    def forward(
        self, model: VisionLanguageModel, batch: HypothesisBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        rows = batch["hypotheses"]
        targets = torch.stack([rows["contradiction"], rows["neutral"], rows["entailment"]], dim=1).float()
        logits = self._logits(model, self.head, batch, encoded)
        loss = soft_cross_entropy(logits, targets)
        loss = distil(loss, logits, teacher, lambda t: self._logits(t.model, t.own_head, batch, t.encoded))
        asked = Asked(logits, lambda m, task, seen: task._logits(m, task.head, batch, seen))
        return TaskOutput(loss, logits, targets, {"accuracy": hits(logits, targets.argmax(dim=1))}, (asked,))

    def columns(self) -> tuple[str, Any]:
        return "labels", LABELS

    def pair_scores(self, model: VisionLanguageModel, batch: HypothesisBatch, encoded: Encoded) -> Tensor:
        """Logits (T, 3) of each hypothesis."""
        return self._logits(model, self.head, batch, encoded)

    def meaning(self) -> Meaning:
        return Meaning("label", LABELS, "softmax", "the label is that of the highest number")

    def _logits(self, model: VisionLanguageModel, head: nn.Module, batch: HypothesisBatch, encoded: Encoded) -> Tensor:
        fused = model.fuse(encoded.memory, encoded.text[self.reads], batch["hypotheses"]["image_index"])
        logits: Tensor = head(fused.pooled)  # (T, 3)
        return logits

    def predict(self, model: VisionLanguageModel, batch: HypothesisBatch, encoded: Encoded) -> Records:
        """{"pair_id", "label"}, the label in words."""
        best = self._logits(model, self.head, batch, encoded).argmax(dim=1).tolist()
        ids = batch["hypotheses"]["ids"]
        return [{"pair_id": i, "label": LABELS[label]} for i, label in zip(ids, best, strict=True)]

    def reply(self, model: VisionLanguageModel, batch: HypothesisBatch, encoded: Encoded, top: int) -> Records:
        """{"label", "labels"}: the likeliest label, and the probability of each."""
        shares = self._logits(model, self.head, batch, encoded).float().softmax(dim=1).tolist()
        labels = [dict(zip(LABELS, row, strict=True)) for row in shares]
        return [{"label": max(row, key=row.__getitem__), "labels": row} for row in labels]

    def evidence(self, fused: Fused) -> Tensor:
        """The logit of the label that is given, (T,)."""
        logits: Tensor = self.head(fused.pooled)
        return logits.amax(dim=1)
