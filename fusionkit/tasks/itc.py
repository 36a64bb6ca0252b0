"""Image-text contrast (CLIP, ALBEF)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.distributed import gather, gather_with_grad
from fusionkit.errors import ConfigError, suggest
from fusionkit.losses import contrastive_targets, soft_binary_cross_entropy, soft_cross_entropy
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.negatives import queue_ages
from fusionkit.negatives.pool import EMPTY, overwrite_oldest
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.metrics import means
from fusionkit.types import CHOICE, MARKS, Asked, Batch, Dims, Encoded, TaskOutput, TextRows, at_least_fp32

LOSSES = ("softmax", "sigmoid")


class CaptionBatch(Batch):
    captions: TextRows


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

    def push(self, feats: Tensor, keys: Tensor) -> None:
        """Append feats (B, E) and keys (B,), overwriting the oldest; none of them where one is not finite."""
        overwrite_oldest({"feats": self.feats, "keys": self.keys}, self.pointer, {"feats": feats, "keys": keys})


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
            similarity = _similarity(feats, *columns, model.temperature)
            soft = None if teacher is None else _similarity(own, *columns, model.temperature.detach())
            if self.bias is None:
                loss, targets = soft_cross_entropy, contrastive_targets(keys, columns[1])
                soft = None if soft is None else soft.softmax(dim=1)
            else:
                loss, targets = soft_binary_cross_entropy, (columns[1] == keys[:, None]).to(similarity)
                soft = None if soft is None else (soft + self.bias.detach()).sigmoid()
                similarity = similarity + self.bias
            if teacher is not None and soft is not None:
                targets = teacher.mix(targets, soft)
            losses.append(loss(similarity, targets))
            others = columns[0].shape[0] - (len(self.image_queue.keys) if self.image_queue else 0)
            read = partial(_read, rows=name.partition("_")[0], kind=self.reads)
            asked.append(Asked(similarity[:, :others], read, CHOICE if self.bias is None else MARKS))
            has_partner = (columns[1] == keys[:, None]).any(dim=1)
            hits = columns[1][similarity.detach().argmax(dim=1)] == keys if len(columns[1]) else has_partner
            metrics[name] = hits.sum(), has_partner.sum()
            if sim_i2t is None:
                sim_i2t, target_i2t = similarity.detach(), targets
        queued = len(self.image_queue.keys) if self.image_queue else 0
        metrics["modality_gap"] = modality_gap(*(feats[: len(feats) - queued] for feats, _ in (images, texts)))
        if self.image_queue:
            metrics |= queue_ages(self.image_queue.keys, len(images[1]) - queued)
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

    def _columns(
        self, feats: Tensor, keys: Tensor, queue: FeatureQueue | None, teacher: Teacher | None
    ) -> tuple[Tensor, Tensor]:
        feats, keys = (gather if teacher else gather_with_grad)(feats), gather(keys)
        if queue is None:
            return feats, keys
        # copies: the queue moves on before the backward pass
        return torch.cat([feats, queue.feats]), torch.cat([keys, queue.keys])

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


def _similarity(rows: Tensor, columns: Tensor, column_keys: Tensor, temperature: Tensor) -> Tensor:
    """Cosines (R, C) over the temperature; -inf for empty queue slots."""
    return scaled_cosines(rows, columns, temperature).masked_fill(column_keys == EMPTY, float("-inf"))


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
