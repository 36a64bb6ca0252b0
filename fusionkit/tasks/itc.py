"""Image-text contrast (CLIP, ALBEF)."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fusionkit.distributed import gather, gather_with_grad
from fusionkit.errors import ConfigError, suggest
from fusionkit.losses import contrastive_targets, soft_binary_cross_entropy, soft_cross_entropy
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.negatives import queue_ages
from fusionkit.negatives.pool import EMPTY, due, overwrite_oldest
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.metrics import means
from fusionkit.types import CHOICE, MARKS, Asked, Batch, Dims, Encoded, TaskOutput, TextRows, at_least_fp32

LOSSES = ("softmax", "sigmoid")


class CaptionBatch(Batch):
    captions: TextRows


class Change:
    """Rows of a queue as they were before they were overwritten, and what was overwritten after them.

    Only those who still need them hold them: a queue itself knows its last change alone.
    """

    def __init__(self, places: Tensor, rows: Tensor) -> None:
        self.places, self.rows = places, rows
        self.next: Change | None = None


class _Products(torch.autograd.Function):
    """Rows (R, E) times the features (Q, E) of a queue as they are now, (R, Q), with the gradient of the rows.

    Nothing is copied though the queue moves on before the backward pass: what is overwritten until then is kept, a batch's rows.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, queue: "FeatureQueue") -> Tensor:
        ctx.feats, ctx.change = queue.feats, queue.change
        return rows @ queue.feats.to(rows.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        feats = ctx.feats
        found = gradient @ feats.to(gradient.dtype)
        is_known = torch.zeros(len(feats), 1, dtype=torch.bool, device=feats.device)
        change = ctx.change.next
        while change is not None:  # the first change of a place tells what stood there
            gap = (change.rows - feats[change.places]).masked_fill(is_known[change.places], 0.0)
            found = found + gradient[:, change.places] @ gap.to(gradient.dtype)
            is_known[change.places] = True
            change = change.next
        return found, None


class FeatureQueue(nn.Module):
    """The last ``size`` features with the keys of their images; the length need not divide the batch."""

    def __init__(self, size: int, embed_size: int) -> None:
        super().__init__()
        self.register_buffer("feats", torch.zeros(size, embed_size))
        self.register_buffer("keys", torch.full((size,), EMPTY, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.feats: Tensor
        self.keys: Tensor
        self.pointer: Tensor
        self.change = Change(torch.zeros(0, dtype=torch.int64), torch.zeros(0, embed_size))  # the last one

    def cosines(self, rows: Tensor) -> Tensor:
        """Of normalised rows (R, E) to the features of now, (R, Q), whatever is pushed before the backward pass."""
        found: Tensor = _Products.apply(rows, self)
        return found

    def push(self, feats: Tensor, keys: Tensor) -> None:
        """Append feats (B, E) and keys (B,), overwriting the oldest; none of them where one is not finite."""
        places = due(self.pointer, len(feats), len(self.keys))
        change = Change(places, self.feats[places])
        self.change.next, self.change = change, change
        overwrite_oldest({"feats": self.feats, "keys": self.keys}, self.pointer, {"feats": feats, "keys": keys})


class Columns(NamedTuple):
    """What the rows of a batch are set against: the features (N, E) of all ranks, then the queue's; and the keys (C,) of all."""

    feats: Tensor
    keys: Tensor
    queue: FeatureQueue | None


class ITC(Task[CaptionBatch]):
    """Each image against all captions and each caption against all images, over every rank and, if there is one, the queue.

    Columns that show the row's own image are its positives, whichever caption they come from. With a teacher the columns
    are its features, and the targets are alpha * softmax(teacher's similarities) + (1 - alpha) * positives (ALBEF, eq. 6).

    ``loss`` "softmax" has the columns of a row compete; with "sigmoid" each pair is told alone to belong together or not, by its
    similarity and a learnt bias that starts at ``bias`` (SigLIP, Zhai et al. 2023), without a queue.
    """

    needs = frozenset({"feats"})
    reads = "captions"
    uses_teacher = True
    ranks = True
    replies_to = "text"

    def __init__(
        self,
        dims: Dims,
        queue_size: int = 0,
        loss: str = "softmax",
        bias: float = -10.0,
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__(scorer)
        if loss not in LOSSES:
            raise ConfigError(f"task.itc.loss is '{loss}'; {suggest(loss, LOSSES)}")
        if queue_size > 0 and loss == "sigmoid":
            raise ConfigError(
                f"task.itc.queue_size is {queue_size}, but the sigmoid loss has the pairs of the batch alone; set it to 0"
            )
        self.bias = nn.Parameter(torch.tensor(float(bias))) if loss == "sigmoid" else None
        self.metrics = means("image_to_text_r1", "text_to_image_r1", "modality_gap")
        if queue_size < 0:
            raise ConfigError(
                f"task.itc.queue_size is {queue_size}; give the number of features to keep, or 0 for none"
            )
        self.image_queue = FeatureQueue(queue_size, dims.embed_size) if queue_size else None
        self.text_queue = FeatureQueue(queue_size, dims.embed_size) if queue_size else None

    def forward(
        self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        image_keys, image_feats = batch["image_keys"], encoded.image_feats
        text_keys, text_feats = image_keys[batch["captions"]["image_index"]], encoded.text_feats[self.reads]
        view = teacher.encoded if teacher else encoded
        images = self._columns(view.image_feats, image_keys, self.image_queue, teacher)
        texts = self._columns(view.text_feats[self.reads], text_keys, self.text_queue, teacher)

        losses, sim_i2t, target_i2t = [], None, None
        asked = []
        metrics: dict[str, Any] = {}
        for name, feats, keys, own, columns in (
            ("image_to_text_r1", image_feats, image_keys, view.image_feats, texts),
            ("text_to_image_r1", text_feats, text_keys, view.text_feats[self.reads], images),
        ):
            similarity = _similarity(feats, columns, model.temperature)
            soft = None if teacher is None else _similarity(own, columns, model.temperature.detach())
            if self.bias is None:
                loss, targets = soft_cross_entropy, contrastive_targets(keys, columns.keys)
                soft = None if soft is None else soft.softmax(dim=1)
            else:
                loss, targets = soft_binary_cross_entropy, (columns.keys == keys[:, None]).to(similarity)
                soft = None if soft is None else (soft + self.bias.detach()).sigmoid()
                similarity = similarity + self.bias
            if teacher is not None and soft is not None:
                targets = teacher.mix(targets, soft)
            losses.append(loss(similarity, targets))
            read = partial(_read, rows=name.partition("_")[0], kind=self.reads)
            asked.append(Asked(similarity[:, : len(columns.feats)], read, CHOICE if self.bias is None else MARKS))
            has_partner = (columns.keys == keys[:, None]).any(dim=1)
            hits = columns.keys[similarity.detach().argmax(dim=1)] == keys if len(columns.keys) else has_partner
            metrics[name] = hits.sum(), has_partner.sum()
            if sim_i2t is None:
                sim_i2t, target_i2t = similarity.detach(), targets
        metrics["modality_gap"] = modality_gap(images.feats, texts.feats)
        if self.image_queue:
            metrics |= queue_ages(self.image_queue.keys, len(images.feats))
        if self.training and self.image_queue is not None and self.text_queue is not None:
            self.image_queue.push(gather(view.image_feats.detach()), gather(image_keys))
            self.text_queue.push(gather(view.text_feats[self.reads].detach()), gather(text_keys))
        assert sim_i2t is not None
        assert target_i2t is not None
        return TaskOutput((losses[0] + losses[1]) / 2, sim_i2t, target_i2t, metrics, tuple(asked))

    def columns(self) -> tuple[str, Any]:
        return "losses", "softmax" if self.bias is None else "sigmoid"

    def partners(self, images: int, ranks: int) -> int:
        return images * ranks - 1 + (len(self.image_queue.keys) if self.image_queue else 0)

    def _columns(self, feats: Tensor, keys: Tensor, queue: FeatureQueue | None, teacher: Teacher | None) -> Columns:
        feats, keys = (gather if teacher else gather_with_grad)(feats), gather(keys)
        return Columns(feats, keys if queue is None else torch.cat([keys, queue.keys]), queue)

    def predict(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Records:
        """One record an image and one a caption, with its features; ranking them is the evaluation's work."""
        images: list[dict[str, Any]] = [
            {"image_id": image_id, "feats": feats}
            for image_id, feats in zip(batch["image_ids"], encoded.image_feats.float().cpu(), strict=True)
        ]
        captions = [
            {"caption_id": caption_id, "feats": feats}
            for caption_id, feats in zip(
                batch["captions"]["ids"], encoded.text_feats[self.reads].float().cpu(), strict=True
            )
        ]
        return images + captions

    def reply(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, top: int) -> Records:
        """{"cosine"} of each text with its image, -1 to 1."""
        images = encoded.image_feats[batch["captions"]["image_index"]]
        cosines = (images.float() * encoded.text_feats[self.reads].float()).sum(dim=1)
        return [{"cosine": cosine} for cosine in cosines.tolist()]


def _read(model: VisionLanguageModel, task: ITC, seen: Encoded, rows: str, kind: str) -> Tensor:
    """The similarities of another model over the batches of all ranks, of images ("image") or of texts to the others."""
    feats = [seen.image_feats, seen.text_feats[kind]]
    own, others = feats if rows == "image" else feats[::-1]
    similarity = scaled_cosines(own, gather(others), model.temperature)
    return similarity if task.bias is None else similarity + task.bias


def _similarity(rows: Tensor, columns: Columns, temperature: Tensor) -> Tensor:
    """Cosines (R, C) over the temperature; -inf for empty queue slots."""
    if columns.queue is None:
        return scaled_cosines(rows, columns.feats, temperature)
    with torch.autocast(rows.device.type, enabled=False):
        exact = at_least_fp32(rows)
        found = torch.cat([exact @ at_least_fp32(columns.feats).T, columns.queue.cosines(exact)], dim=1) / temperature
    return found.masked_fill(columns.keys == EMPTY, float("-inf"))


def scaled_cosines(rows: Tensor, columns: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """Cosines (R, C) of normalised features over the temperature, in fp32: bf16 moves a loss over a long queue by 1e-2."""
    with torch.autocast(rows.device.type, enabled=False):
        return at_least_fp32(rows) @ at_least_fp32(columns).T / temperature


def modality_gap(image_feats: Tensor, text_feats: Tensor) -> tuple[Tensor, int]:
    """How far the means of image features (I, E) and text features (T, E) lie apart (Liang et al. 2022), times the number of
    pairs, and that number."""
    count = min(len(image_feats), len(text_feats))
    if not count:
        return image_feats.new_zeros(()), 0
    gap = image_feats.detach().mean(dim=0) - text_feats.detach().mean(dim=0)
    return gap.norm() * count, count
