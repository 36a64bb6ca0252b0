"""NLVR2 with two fused pairs that attend to each other before they are read (UNITER's paired attention)."""

from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.fusion.layers import Attention
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.metrics import means
from fusionkit.tasks.nlvr2 import LABELS, StatementBatch, second_memory, statement_output, statement_records
from fusionkit.types import Dims, Encoded, TaskOutput, at_least_fp32


class AttentionPooling(nn.Module):
    """A mean over states, weighted by the softmax of one rectified score each."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """States (P, M, D), mask (P, M) -> (P, D)."""
        scores = at_least_fp32(self.score(states).squeeze(2).relu()).masked_fill(~mask.bool(), -1e4)
        return (scores.softmax(dim=1).to(states.dtype)[:, None] @ states).squeeze(1)


class PairedHead(nn.Module):
    """Each side attends to the other with weights of its own, is joined with what it saw, and pooled; both are classified."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.left, self.right = Attention(hidden_size, num_heads), Attention(hidden_size, num_heads)
        self.join = nn.Sequential(nn.Linear(2 * hidden_size, hidden_size), nn.ReLU())
        self.pool = AttentionPooling(hidden_size)
        self.classify = nn.Linear(2 * hidden_size, len(LABELS))

    def forward(self, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
        """States (P, M, D) with their masks (P, M), of the left and of the right pair -> logits (P, 2)."""
        sides = (self.left, left, right), (self.right, right, left)
        pooled = [self.read(attention, own, other) for attention, own, other in sides]
        logits: Tensor = self.classify(torch.cat(pooled, dim=1))
        return logits

    def read(self, attention: Attention, own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
        """(P, D) of one side that looks at the other."""
        states, mask = own
        seen = attention(states, attention.project(*other))
        pooled: Tensor = self.pool(self.join(torch.cat([seen, states], dim=2)), mask)
        return pooled


class PairedNLVR2(Task[StatementBatch]):
    """As NLVR2, but the states of the two pairs, words and image tokens, attend to each other before the head."""

    needs = frozenset({"text", "image"})
    reads = "statements"
    distribution = "softmax"

    def __init__(self, dims: Dims, num_heads: int = 12, scorer: Scorer | None = None) -> None:
        super().__init__(scorer)
        self.metrics = means("accuracy")
        self.head = PairedHead(dims.hidden_size, num_heads)

    def forward(
        self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        return statement_output(self._logits, model, self.head, batch, encoded, None)

    def _logits(self, model: VisionLanguageModel, head: nn.Module, batch: StatementBatch, encoded: Encoded) -> Tensor:
        rows, text = batch["statements"], encoded.text[self.reads]
        sides = []
        for memory, index in (
            (encoded.memory, rows["image_index"]),
            (second_memory(model, encoded), rows["other_index"]),
        ):
            fused = model.fuse(memory, text, index)
            assert fused.text is not None
            assert fused.image is not None
            assert text.mask is not None
            shown = torch.ones_like(fused.image[..., 0]) if encoded.image.mask is None else encoded.image.mask[index]
            sides.append((torch.cat([fused.image, fused.text], dim=1), torch.cat([shown, text.mask], dim=1)))
        logits: Tensor = head(*sides)
        return logits

    def columns(self) -> tuple[str, Any]:
        return "labels", LABELS

    def predict(self, model: VisionLanguageModel, batch: StatementBatch, encoded: Encoded) -> Records:
        """{"statement_id", "label"}, as NLVR2."""
        return statement_records(self._logits(model, self.head, batch, encoded), batch)
