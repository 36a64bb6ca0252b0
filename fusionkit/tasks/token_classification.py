"""A label for each word of a text that stands with an image, such as the entities that a post names (multimodal NER)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.errors import ConfigError, suggest
from fusionkit.losses import IGNORE, masked_cross_entropy
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.metrics import hits, means
from fusionkit.types import Asked, Batch, Dims, Encoded, TaskOutput, TextRows


class TaggedRows(TextRows):
    word_labels: list[list[str]]  # of each text the labels of its words
    word_spans: list[list[tuple[int, int]]]  # and their characters
    label_words: Tensor  # (T, L) int64, the number of the word that begins at a token; -1: none


class TaggedBatch(Batch):
    tagged: TaggedRows


class TokenClassification(Task[TaggedBatch]):
    """Cross entropy of the label of each word, at its first token (ViltForTokenClassification).

    ``labels``   those there are, in the order of the outputs.
    ``dropout``  of the fused states, before the linear map.
    """

    needs = frozenset({"text"})
    reads = "tagged"
    distribution = "softmax"

    def __init__(self, dims: Dims, labels: Sequence[str], dropout: float = 0.0, scorer: Scorer | None = None) -> None:
        super().__init__(scorer)
        self.labels = tuple(labels)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ConfigError(f"task.token_classification.labels is {list(labels)}; name each label once")
        self.metrics = means("accuracy")
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(dims.hidden_size, len(self.labels))

    def forward(
        self, model: VisionLanguageModel, batch: TaggedBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        words = batch["tagged"]["label_words"]
        logits = self.logits(model, batch, encoded)[words >= 0]
        targets = self._targets(batch["tagged"])[words >= 0]
        asked = Asked(logits, lambda m, task, seen: task.logits(m, batch, seen)[words >= 0])
        loss, metrics = masked_cross_entropy(logits, targets), {"accuracy": hits(logits, targets)}
        return TaskOutput(loss, logits, targets, metrics, (asked,))

    def columns(self) -> tuple[str, Any]:
        return "labels", self.labels

    def logits(self, model: VisionLanguageModel, batch: TaggedBatch, encoded: Encoded) -> Tensor:
        """(T, L, labels) at every token."""
        fused = model.fuse(encoded.memory, encoded.text[self.reads], batch["tagged"]["image_index"])
        out: Tensor = self.head(self.dropout(fused.text))
        return out

    def _targets(self, rows: TaggedRows) -> Tensor:
        """(T, L) numbers of labels, IGNORE where no word begins."""
        words = rows["label_words"]
        targets = torch.full_like(words, IGNORE)
        for target, places, labels in zip(targets, words, rows["word_labels"], strict=True):
            numbers = torch.tensor([self._number(label) for label in labels], device=words.device)
            target[places >= 0] = numbers[places[places >= 0]]
        return targets

    def _number(self, label: str) -> int:
        if label not in self.labels:
            raise ConfigError(
                f"task.token_classification.labels lacks '{label}', which a word has; {suggest(label, self.labels)}"
            )
        return self.labels.index(label)

    def predict(self, model: VisionLanguageModel, batch: TaggedBatch, encoded: Encoded) -> Records:
        """{"text_id", "labels"}: of each word that was read its characters and label, {"start", "end", "label"}."""
        rows, found = batch["tagged"], list[dict[str, Any]]()
        best = self.logits(model, batch, encoded).argmax(dim=2).tolist()
        for id, spans, words, labels in zip(
            rows["ids"], rows["word_spans"], rows["label_words"].tolist(), best, strict=True
        ):
            told = [(spans[word], label) for word, label in zip(words, labels, strict=True) if word >= 0]
            said = [{"start": start, "end": end, "label": self.labels[label]} for (start, end), label in told]
            found.append({"text_id": id, "labels": said})
        return found
