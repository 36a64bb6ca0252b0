"""Image-text matching with hard negatives (ALBEF)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection

from fusionkit.errors import ConfigError
from fusionkit.losses import global_mean, masked_cross_entropy
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.negatives import Candidates, Drawn, HardNegatives, Negatives
from fusionkit.negatives.pool import EMPTY
from fusionkit.tasks.alignment import Alignment
from fusionkit.tasks.base import Meaning, Records, Scorer, Task, leading_rows
from fusionkit.tasks.itc import CaptionBatch, scaled_cosines
from fusionkit.tasks.metrics import Summed, means
from fusionkit.types import Asked, Batch, Dims, Encoded, Fused, Memory, TaskOutput, TextRows, Tokens, at_least_fp32

LABELS = ("mismatch", "match")  # what the two logits of a pair stand for
MATCH = Meaning("match", LABELS, "softmax", "the probability of match is how likely the text describes the image")
Join = Callable[[Tensor, Tensor, Drawn, Drawn, Candidates], tuple[tuple[Tensor, Tensor], Tensor]]


def join_pairs(
    images: Tensor, texts: Tensor, wrong_image: Drawn, wrong_text: Drawn, candidates: Candidates
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Candidates' image rows and text rows (P,) of the true pairs, then (wrong image, caption), then (image, wrong caption).

    ``images`` and ``texts`` (R,) are the batch's own rows of the true pairs; the targets (P,) are 1 for these.
    """
    images, texts = images + candidates.first_image, texts + candidates.first_text
    own_text = texts[:, None].expand_as(wrong_image.columns)[wrong_image.is_valid]
    own_image = images[:, None].expand_as(wrong_text.columns)[wrong_text.is_valid]
    image_rows = torch.cat([images, wrong_image.columns[wrong_image.is_valid], own_image])
    text_rows = torch.cat([texts, own_text, wrong_text.columns[wrong_text.is_valid]])
    targets = torch.zeros_like(image_rows)
    targets[: len(images)] = 1
    return (image_rows, text_rows), targets


def bernoulli_pairs(
    images: Tensor, texts: Tensor, wrong_image: Drawn, wrong_text: Drawn, candidates: Candidates
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Each caption once, by a fair coin with its own image or with a wrong one (UNITER, ViLT, METER); as ``join_pairs``."""
    is_wrong = (torch.rand(len(images), device=images.device) < 0.5) & wrong_image.is_valid.any(dim=1)
    image_rows = torch.where(is_wrong, wrong_image.columns[:, 0], images + candidates.first_image)
    return (image_rows, texts + candidates.first_text), (~is_wrong).long()


@dataclass(frozen=True)
class Matching:
    """What tasks of matching have in common: true pairs of image and text, told from false ones by a head.

    ``kind``  of the texts; the other options are those of ``ITM``.
    """

    kind: str
    texts_per_image: int | None = None
    join: Join = join_pairs
    alignment: Alignment | None = None

    def __call__(
        self,
        model: VisionLanguageModel,
        head: nn.Module,
        negatives: Negatives,
        batch: Batch,
        encoded: Encoded,
        teacher: Teacher | None,
    ) -> TaskOutput:
        """The loss on one batch: draw wrong partners, fuse true and false pairs, tell them apart."""
        keys, index = batch["image_keys"], rows_of(batch, self.kind)["image_index"]
        rows = leading_rows(index, self.texts_per_image)
        candidates = negatives.pool(encoded, self.kind, keys, keys[index])
        wrong_image, wrong_text = draw(negatives, self.kind, model, batch, encoded, candidates, rows, teacher)
        (images, texts), targets = self.join(index[rows], rows, wrong_image, wrong_text, candidates)
        text, (memory, places) = candidates.text.take(texts), prepared(model, candidates, images)
        fused = model.fuse(memory, text, places)
        logits: Tensor = head(fused.pooled)
        loss = masked_cross_entropy(logits, targets) + only_nan(wrong_image.entropy + wrong_text.entropy)
        metrics = match_sums(logits, targets, wrong_image, wrong_text) | candidates.metrics
        if self.alignment is not None:
            assert text.mask is not None
            image_mask = None if candidates.image.mask is None else candidates.image.mask[images]
            aligned = self.alignment(fused, text.mask, image_mask, targets)
            loss = loss + global_mean(aligned.sum(), len(aligned))
            metrics["alignment_loss"] = aligned.detach().sum(), len(aligned)

        def read(other: VisionLanguageModel, task: Any, seen: Encoded) -> Tensor:
            theirs = negatives.pool(seen, self.kind, keys, keys[index])
            memory, places = prepared(other, theirs, images)
            return pair_logits(task.head, other, memory, theirs.text.take(texts), places)

        return TaskOutput(loss, logits, targets, metrics, (Asked(logits, read),))

    @staticmethod
    def columns(negatives: Negatives) -> tuple[str, Any] | None:
        """As ``Task.columns``: another model knows no state of a queue."""
        return ("labels", LABELS) if negatives.pool.has_teacher else None


class ITM(Task[CaptionBatch]):
    """Does the caption describe the image? One true pair to 2k false ones: (wrong image, caption) and (image, wrong caption).

    ``negatives``      draws the k wrong partners of each side from the contrastive similarities (fusionkit.negatives).
    ``texts_per_image`` how many captions of an image are matched; None: all in the batch.
    ``join``           makes the pairs of true and wrong partners: ``join_pairs``, or ``bernoulli_pairs``.
    ``alignment``      also aligns words with image tokens (fusionkit.tasks.alignment); it needs a fusion that gives both.
    ``head``           builds the classifier from (size, 2).
    """

    needs = frozenset({"pooled"})  # the contrastive features only draw the negatives: matching does not train them
    reads = "captions"
    matches = True
    replies_to = "text"

    def __init__(
        self,
        dims: Dims,
        negatives: Negatives | None = None,
        texts_per_image: int | None = None,
        join: Join | None = None,
        alignment: Alignment | None = None,
        head: Callable[[int, int], nn.Module] = nn.Linear,
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__(scorer)
        self.metrics = match_metrics()
        self.negatives = checked(negatives)
        self.matching = Matching(self.reads, texts_per_image, join or join_pairs, alignment)
        if alignment is not None:
            self.needs = self.needs | {"text", "image"}  # type: ignore[misc]
        self.head = head(dims.pooled_size, len(LABELS))
        self.uses_teacher = self.negatives.asks_teacher  # type: ignore[misc]  # only the negatives ask it

    def forward(
        self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        return self.matching(model, self.head, self.negatives, batch, encoded, teacher)

    def columns(self) -> tuple[str, Any] | None:
        return self.matching.columns(self.negatives)

    def partners(self, images: int, ranks: int) -> int:
        return self.negatives.pool.partners(images, ranks)

    def score_pairs(self, model: VisionLanguageModel, memory: Memory, text: Tokens, image_index: Tensor) -> Tensor:
        """Logits (P, 2), [:, 1] for a match, of P captions with the image rows that image_index (P,) names."""
        return pair_logits(self.head, model, memory, text, image_index)

    def pair_scores(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Tensor:
        """Logits (T, 2) of each caption with its own image."""
        return own_logits(self.head, model, batch, encoded)

    def meaning(self) -> Meaning:
        return MATCH

    def predict(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Records:
        """Each caption with its own image (label 1) and with the next other image of the batch (label 0)."""
        return match_records(self.head, model, batch, encoded)

    def reply(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, top: int) -> Records:
        """{"match"}, the probability that each text describes its image."""
        return match_replies(self.head, model, batch, encoded)

    def evidence(self, fused: Fused) -> Tensor:
        """The logit of a match, (T,)."""
        return match_evidence(self.head, fused)


def checked(negatives: Negatives | None) -> Negatives:
    """The distribution of negatives, hard ones by default; ConfigError for what is none."""
    if not (negatives is None or callable(negatives)):
        raise ConfigError(f"task.itm.negatives is {negatives!r}, but has to be built of a class; choose negatives=NAME")
    return negatives or HardNegatives()


def rows_of(batch: Batch, kind: str) -> TextRows:
    """The texts of a kind."""
    rows: TextRows = batch[kind]  # type: ignore[literal-required]
    return rows


@torch.no_grad()
def draw(
    negatives: Negatives,
    kind: str,
    model: VisionLanguageModel,
    batch: Batch,
    encoded: Encoded,
    candidates: Candidates,
    rows: Tensor,
    teacher: Teacher | None,
) -> tuple[Drawn, Drawn]:
    """Wrong images and wrong texts, as candidates' rows, for the true pairs of text rows (R,) of a kind."""
    index, columns = rows_of(batch, kind)["image_index"], negatives.pool.columns
    images, keys = index[rows], batch["image_keys"][index[rows]]
    feats, text_feats = encoded.image_feats, encoded.text_feats[kind]
    image_columns, text_columns = candidates.image_feats, candidates.text_feats
    if negatives.by_teacher and teacher is not None:
        image_columns = columns(teacher.encoded.image_feats)
        text_columns = columns(teacher.encoded.text_feats[kind])
    to_image = scaled_cosines(text_feats[rows], image_columns, model.temperature)  # (R, C_i)
    to_text = scaled_cosines(feats, text_columns, model.temperature)[images]  # (R, C_t)
    no_image, no_text = (
        (keys[:, None] == others[None, :]) | (others == EMPTY)
        for others in (candidates.image_keys, candidates.text_keys)
    )
    if negatives.teacher_threshold is not None:  # what the teacher takes for a match is none either
        if teacher is None:
            raise ConfigError("negatives.teacher_threshold needs a teacher; choose teacher=momentum, or set it to null")
        feats, text_feats = teacher.encoded.image_feats, teacher.encoded.text_feats[kind]
        no_image = no_image | (scaled_cosines(text_feats[rows], columns(feats)) >= negatives.teacher_threshold)
        no_text = no_text | (scaled_cosines(feats, columns(text_feats)) >= negatives.teacher_threshold)[images]
    listed = negatives.mined(batch)
    if listed is None:
        return negatives(to_image, no_image), negatives(to_text, no_text)
    named = listed.to(images.device)[images]  # (R, I)
    return negatives(to_image, no_image, named), negatives(to_text, no_text, named[:, index])


def match_metrics() -> MetricCollection:
    """What is measured of matching while it trains."""
    metrics = means("accuracy", "positive_logit", "negative_logit", "negatives_entropy", "alignment_loss")
    metrics.add_metrics({"logit_gap": Summed(gap_of_means, 4), "chance_gap": Summed(gap_to_chance, 3)})
    return metrics


def match_sums(logits: Tensor, targets: Tensor, wrong_image: Drawn, wrong_text: Drawn) -> dict[str, Any]:
    """What ``match_metrics`` is updated with, of logits (P, 2) and the negatives among the pairs."""
    logits, pairs = at_least_fp32(logits.detach()), len(targets)
    if not pairs:
        return {}
    gap, matches = logits.diff(dim=1).squeeze(1), targets.sum()
    positive, negative = ((gap * targets).sum(), matches), ((gap * (1 - targets)).sum(), pairs - matches)
    return {
        "accuracy": (((gap > 0) == targets).sum(), pairs),
        "positive_logit": positive,
        "negative_logit": negative,
        "logit_gap": (*positive, *negative),
        "chance_gap": (F.cross_entropy(logits, targets, reduction="sum"), matches, pairs),
        "negatives_entropy": entropy_of(wrong_image, wrong_text),
    }


def entropy_of(*drawn: Drawn) -> tuple[Tensor, Tensor]:
    """The entropies of what partners were drawn by, summed over the rows that have one, and how many these are."""
    rows = torch.stack([each.is_valid.any(dim=1).sum() for each in drawn])
    return (torch.stack([each.entropy for each in drawn]) * rows).sum(), rows.sum()


def gap_of_means(total: Tensor, count: Tensor, other: Tensor, other_count: Tensor) -> Tensor:
    """The mean of one thing above that of another."""
    return total / count - other / other_count


def gap_to_chance(loss: Tensor, matches: Tensor, pairs: Tensor) -> Tensor:
    """The mean loss above that of one who knows only how many of the pairs match."""
    return loss / pairs - prior_entropy(matches / pairs)


def pair_logits(
    head: nn.Module, model: VisionLanguageModel, memory: Memory, text: Tokens, image_index: Tensor
) -> Tensor:
    """Logits (P, 2), [:, 1] for a match, of P texts with the image rows that image_index (P,) names."""
    logits: Tensor = head(model.fuse(memory, text, image_index).pooled)
    return logits


def own_logits(head: nn.Module, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Tensor:
    """Logits (T, 2), [:, 1] for a match, of each caption with its own image."""
    return pair_logits(head, model, encoded.memory, encoded.text["captions"], batch["captions"]["image_index"])


def match_records(head: nn.Module, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Records:
    """Each caption with its own image (label 1) and with the next other image of the batch (label 0)."""
    captions, keys, text = batch["captions"], batch["image_keys"], encoded.text["captions"]
    index, records = captions["image_index"], []
    for label, images in ((1, index), (0, (index + 1) % len(keys))):
        scores = pair_logits(head, model, encoded.memory, text, images).float().softmax(dim=1)[:, 1].tolist()
        records += [
            {"caption_id": caption_id, "image_id": batch["image_ids"][image], "score": score, "label": label}
            for caption_id, image, score in zip(captions["ids"], images.tolist(), scores, strict=True)
        ]
    return records if len(keys) > 1 else records[: len(index)]


def match_replies(head: nn.Module, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Records:
    """{"match"}, the probability that each caption describes its image."""
    logits = own_logits(head, model, batch, encoded)
    return [{"match": match} for match in logits.float().softmax(dim=1)[:, 1].tolist()]


def match_evidence(head: nn.Module, fused: Fused) -> Tensor:
    """The logits of a match (T,) of fused pairs."""
    logits: Tensor = head(fused.pooled)
    return logits[:, 1]


def only_nan(entropy: Tensor) -> Tensor:
    """NaN where there was no distribution to draw negatives from, else 0: as part of a loss it has the step left out."""
    return 0 * entropy.detach()


def prior_entropy(share: Tensor) -> Tensor:
    """The loss (nats) of one who knows only which share of the targets is 1: .6365 for one true pair to two false ones."""
    entropy: Tensor = torch.special.entr(torch.stack([share, 1 - share])).sum()
    return entropy


def prepared(model: VisionLanguageModel, candidates: Candidates, rows: Tensor) -> tuple[Memory, Tensor]:
    """The memory of the candidates' images that rows (P,) name, and the rows (P,) in it; foreign images are prepared once.

    Without rows it is that of the first image, so that every parameter is part of the graph (``model.fuse``).
    """
    if candidates.memory is not None:
        return candidates.memory, rows
    used, places = rows.unique(return_inverse=True) if len(rows) else (rows.new_zeros(1), rows)
    return model.prepare(candidates.image.take(used)), places
