"""Retrieval trained through the fusion: an image's caption has to score above wrong ones (UNITER, ViLT, METER)."""

import torch
from torch import Tensor, nn

from fusionkit.losses import global_mean, masked_cross_entropy
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.negatives import Candidates, Drawn, Negatives
from fusionkit.tasks.base import Meaning, Records, Scorer, Task, leading_rows
from fusionkit.tasks.itc import CaptionBatch
from fusionkit.tasks.itm import (
    LABELS,
    MATCH,
    checked,
    draw,
    entropy_of,
    match_evidence,
    match_records,
    match_replies,
    only_nan,
    own_logits,
    pair_logits,
    prepared,
)
from fusionkit.tasks.metrics import hits, means
from fusionkit.types import Dims, Encoded, Fused, Memory, TaskOutput, Tokens, at_least_fp32


class Ranking(Task[CaptionBatch]):
    """Each true pair beside its image with the k wrong captions of ``negatives``, scored by the logit of a match.

    ``margin`` None  cross entropy of the true one among 1 + k (ViLT, METER: k = 15).
    ``margin`` m     mean of max(0, m + sigmoid(wrong) - sigmoid(true)) (UNITER: 0.2).
    ``hardest``      only so many of the k, those that the model itself scores highest (UNITER: 31 of 399); None: all.
    """

    needs = frozenset({"pooled"})
    reads = "captions"
    matches = True
    replies_to = "text"
    init_from = "itm"

    def __init__(
        self,
        dims: Dims,
        negatives: Negatives | None = None,
        texts_per_image: int | None = None,
        margin: float | None = None,
        hardest: int | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("accuracy", "negatives_entropy")
        self.negatives, self.texts_per_image = checked(negatives), texts_per_image
        self.head = nn.Linear(dims.pooled_size, len(LABELS))
        self.uses_teacher = self.negatives.asks_teacher  # type: ignore[misc]  # only the negatives ask it
        self.margin, self.hardest = margin, hardest

    def forward(
        self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        keys, index = batch["image_keys"], batch["captions"]["image_index"]
        rows = leading_rows(index, self.texts_per_image)
        candidates = self.negatives.pool(encoded, self.reads, keys, keys[index])
        with torch.no_grad():
            _, wrong = draw(self.negatives, self.reads, model, batch, encoded, candidates, rows, teacher)
            if self.hardest is not None:
                scores = self._scores(model, candidates, index[rows], wrong.columns)
                wrong = hardest_of(wrong, scores, self.hardest)
        texts = torch.cat([(rows + candidates.first_text)[:, None], wrong.columns], dim=1)  # (R, 1 + k)
        scores = self._scores(model, candidates, index[rows], texts)
        targets = torch.zeros_like(rows)
        logits = torch.cat([scores[:, :1], scores[:, 1:].masked_fill(~wrong.is_valid, float("-inf"))], dim=1)
        loss = masked_cross_entropy(logits, targets) if self.margin is None else triplet_loss(logits, self.margin)
        loss = loss + only_nan(wrong.entropy)
        metrics = {"accuracy": hits(logits, targets), "negatives_entropy": entropy_of(wrong)}
        return TaskOutput(loss, logits, targets, metrics)

    def partners(self, images: int, ranks: int) -> int:
        return self.negatives.pool.partners(images, ranks)

    def score_pairs(self, model: VisionLanguageModel, memory: Memory, text: Tokens, image_index: Tensor) -> Tensor:
        """As ``ITM.score_pairs``."""
        return pair_logits(self.head, model, memory, text, image_index)

    def pair_scores(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Tensor:
        """As ``ITM.pair_scores``."""
        return own_logits(self.head, model, batch, encoded)

    def meaning(self) -> Meaning:
        return MATCH

    def predict(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Records:
        """As ITM: each caption with its own image (label 1) and with the next other image of the batch (label 0)."""
        return match_records(self.head, model, batch, encoded)

    def reply(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, top: int) -> Records:
        """{"match"}, the probability that each text describes its image."""
        return match_replies(self.head, model, batch, encoded)

    def evidence(self, fused: Fused) -> Tensor:
        """The logit of a match, (T,)."""
        return match_evidence(self.head, fused)

    def _scores(self, model: VisionLanguageModel, candidates: Candidates, images: Tensor, texts: Tensor) -> Tensor:
        """The logit of a match (R, N) of the batch's images (R,) with the candidates' texts (R, N)."""
        pairs = (images + candidates.first_image)[:, None].expand_as(texts).flatten()
        memory, places = prepared(model, candidates, pairs)
        return self.score_pairs(model, memory, candidates.text.take(texts.flatten()), places)[:, 1].view(texts.shape)


def hardest_of(wrong: Drawn, scores: Tensor, count: int) -> Drawn:
    """The ``count`` columns a row that score highest of those drawn, with scores (R, k)."""
    best = scores.masked_fill(~wrong.is_valid, float("-inf")).topk(min(count, scores.shape[1]), dim=1).indices
    return Drawn(wrong.columns.gather(1, best), wrong.is_valid.gather(1, best), wrong.entropy)


def triplet_loss(logits: Tensor, margin: float) -> Tensor:
    """Mean of max(0, margin + sigmoid(wrong) - sigmoid(true)), for logits (R, 1 + k), the true one's first; -inf is none."""
    scores, is_there = at_least_fp32(logits).sigmoid(), ~logits[:, 1:].isneginf()
    apart = (margin + scores[:, 1:] - scores[:, :1]).clamp(min=0) * is_there
    return global_mean(apart.sum(), is_there.sum())
