"""NLVR2: is a sentence true of two images?"""

import torch
from torch import Tensor, nn

from fusionkit.losses import masked_cross_entropy
from fusionkit.model import VisionLanguageModel
from fusionkit.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task, hit_rate
from fusionkit.types import Batch, Dims, Encoded, TaskOutput, TextRows, Tokens

LABELS = ("False", "True")


class StatementRows(TextRows):
    label: Tensor  # (T,) 1 = true; other_index names the row of the second image


class StatementBatch(Batch):
    statements: StatementRows


class NLVR2(Task[StatementBatch]):
    """The sentence is fused with each of its images; the head reads both vectors, the left image's first (UNITER's "pair").

    Neither image sees the other before the head.
    """

    needs = frozenset({"pooled"})
    reads = "statements"

    def __init__(self, dims: Dims, scorer: Scorer | None = None) -> None:
        super().__init__(scorer)
        size = 2 * dims.pooled_size
        self.head = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size), nn.Linear(size, len(LABELS)))

    def forward(
        self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        logits, targets = self._logits(model, batch, encoded), batch["statements"]["label"].long()
        return TaskOutput(masked_cross_entropy(logits, targets), logits, targets, hit_rate(logits, targets))

    def _logits(self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded) -> Tensor:
        rows, text = batch["statements"], encoded.text[self.reads]
        assert text.mask is not None
        twice = Tokens(text.embeds.repeat(2, 1, 1), text.mask.repeat(2, 1), text.pooled.repeat(2, 1))
        fused = model.fuse(encoded.memory, twice, torch.cat([rows["image_index"], rows["other_index"]]))
        assert fused.pooled is not None
        left, right = fused.pooled.chunk(2)
        return self.head(torch.cat([left, right], dim=1))  # (T, 2)

    def predict(self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded) -> Records:
        """{"statement_id", "label"}: the identifier and "True" or "False", the two columns of the official file."""
        best = self._logits(model, batch, encoded).argmax(dim=1).tolist()
        ids = batch["statements"]["ids"]
        return [{"statement_id": i, "label": LABELS[label]} for i, label in zip(ids, best, strict=True)]
