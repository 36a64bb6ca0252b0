"""Masked region or patch modelling with the text in view (UNITER's MRFR, MRC and MRC-KL)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.encoders.base import SupportsMasking, unsupported
from fusionkit.errors import ConfigError
from fusionkit.losses import global_mean
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task, leading_rows
from fusionkit.tasks.itc import CaptionBatch
from fusionkit.tasks.metrics import means
from fusionkit.tasks.mlm import fixed_choice
from fusionkit.types import Dims, Encoded, TaskOutput, Tokens, at_least_fp32


class HiddenHead(nn.Module):
    """Dense, GELU and norm, to the width of the image tokens (UNITER)."""

    def __init__(self, hidden_size: int, image_size: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, image_size)
        self.norm = nn.LayerNorm(image_size, eps=eps)

    def forward(self, states: Tensor) -> Tensor:
        """(M, hidden_size) -> (M, image_size)."""
        out: Tensor = self.norm(F.gelu(self.dense(states)))
        return out


class MRM(Task[CaptionBatch]):
    """Hide some regions or patches of an image, and tell from the rest of it and its caption what is there.

    The loss is the mean squared error of the hidden features: a detector's, or with pixels the normalised token states that
    the image encoder gives where nothing is hidden. An image token is hidden with ``probability``, at least one an image.

    ``texts_per_image``  how many captions an image is fused with; it is encoded once more for all of them.
    ``num_classes``      the detector's classes, its background included: also tell the class; None: do not.
    ``is_soft``          the class loss is the divergence from the detector's probabilities, mean over regions and classes
                         (MRC-KL); else the cross entropy with its likeliest class, which is never the background (MRC).
    """

    needs = frozenset({"image"})
    reads = "captions"
    reads_images = True

    def __init__(
        self,
        dims: Dims,
        probability: float = 0.15,
        texts_per_image: int | None = 1,
        num_classes: int | None = None,
        is_soft: bool = True,
        scorer: Scorer | None = None,
        eps: float = 1e-12,
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("regression", "class_loss")
        if not 0 < probability < 1:
            raise ConfigError(f"task.mrm.probability is {probability}; give a number between 0 and 1")
        self.probability, self.texts_per_image, self.is_soft = probability, texts_per_image, is_soft
        self.filling = nn.Parameter(torch.zeros(dims.mask_token_size))
        self.head = HiddenHead(dims.hidden_size, dims.image_size, eps)
        self.bias = nn.Parameter(torch.zeros(dims.feature_size))
        self.classify = None
        if num_classes is not None:
            self.classify = nn.Sequential(
                HiddenHead(dims.hidden_size, dims.hidden_size, eps), nn.Linear(dims.hidden_size, num_classes)
            )

    def forward(
        self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        rows = leading_rows(batch["captions"]["image_index"], self.texts_per_image)
        draw, encoder = torch.rand(encoded.image.embeds.shape[:2], device=rows.device), maskable(model)
        chosen = choose(draw, self.probability, can_hide(encoded.image, encoder.num_prefix_tokens))
        states, at = self._hidden_states(model, batch, encoded, rows, chosen)
        features = self.regress(model, states)
        targets = encoder.features(model.images_of(batch), encoded.image)[at]
        parts = {"regression": (squared_error(features, targets).sum(), targets.numel())}
        if self.classify is not None:
            parts["class_loss"] = self.class_loss(self.classify(states), self._class_scores(model, batch)[at])
        loss = torch.stack([global_mean(*part) for part in parts.values()]).sum()
        return TaskOutput(loss, features, targets, {name: (part.detach(), n) for name, (part, n) in parts.items()})

    def _hidden_states(
        self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, rows: Tensor, chosen: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Fused states (M, hidden_size) of the tokens that are hidden, and their places: image rows and token numbers (M,)."""
        hidden = maskable(model).hide(model.images_of(batch), chosen, self.filling)
        memory = model.fusion.prepare(model.encode_image(hidden))
        index = batch["captions"]["image_index"][rows]
        fused = model.fuse(memory, encoded.text[self.reads].take(rows), index).image
        assert fused is not None
        text, token = chosen[index].nonzero(as_tuple=True)
        return fused[text, token], (index[text], token)

    def regress(self, model: VisionLanguageModel, states: Tensor) -> Tensor:
        """Fused states (M, hidden_size) -> features (M, feature_size)."""
        return maskable(model).decode(self.head(states)) + self.bias

    def class_loss(self, logits: Tensor, scores: Tensor) -> tuple[Tensor, int]:
        """Of logits (M, C) against the detector's probabilities (M, C): its sum, and over how many numbers the mean is."""
        if self.is_soft:
            log_probs = F.log_softmax(at_least_fp32(logits), dim=1)
            return F.kl_div(log_probs, scores.to(log_probs), reduction="sum"), scores.numel()
        best = scores[:, 1:].argmax(dim=1) + 1
        return F.cross_entropy(at_least_fp32(logits), best, reduction="sum"), len(best)

    def _class_scores(self, model: VisionLanguageModel, batch: CaptionBatch) -> Tensor:
        scores: Tensor | None = getattr(model.images_of(batch), "class_scores", None)
        assert self.classify is not None
        wanted = self.classify[-1].out_features
        if scores is None or scores.shape[2] != wanted:
            found = "no class scores" if scores is None else f"scores of {scores.shape[2]} classes"
            raise ConfigError(
                f"task.mrm.num_classes is {wanted}, but the images of source '{batch['source']}' come with {found}; set "
                "task.mrm.num_classes=null, or give region features with soft_labels and set class_scores=true"
            )
        return scores

    def predict(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Records:
        """One record an image: squared error of its hidden features, and that of guessing the mean of those in sight.

        What is hidden hangs on the image's id alone, so that every run is asked the same.
        """
        rows = leading_rows(batch["captions"]["image_index"], 1)
        images = batch["captions"]["image_index"][rows].tolist()
        encoder = maskable(model)
        can = can_hide(encoded.image, encoder.num_prefix_tokens)
        draw = (~fixed_choice(batch["image_ids"], can.shape[1], self.probability)).float().to(can.device)
        chosen = choose(draw, 0.5, can)
        states, at = self._hidden_states(model, batch, encoded, rows, chosen)
        told = self.regress(model, states)
        features = encoder.features(model.images_of(batch), encoded.image)
        seen = (can & ~chosen)[..., None].to(features.dtype)
        mean = (features * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)
        error, guess = squared_error(told, features[at]).sum(dim=1), squared_error(mean[at[0]], features[at]).sum(dim=1)
        return [
            {
                "image_id": batch["image_ids"][image],
                "error": error[at[0] == image].sum().item(),
                "mean_error": guess[at[0] == image].sum().item(),
            }
            for image in images
        ]


def maskable(model: VisionLanguageModel) -> SupportsMasking:
    """The image encoder, whose tokens can be hidden."""
    encoder = model.image_encoder
    if not isinstance(encoder, SupportsMasking):
        raise unsupported(encoder, "hide, features and decode", "task mrm")
    return encoder


def can_hide(image: Tokens, prefix: int) -> Tensor:
    """Which image tokens stand for a place of the image, bool (I, N): neither padding nor one of the ``prefix`` first."""
    can = torch.ones_like(image.embeds[..., 0], dtype=torch.bool) if image.mask is None else image.mask.bool()
    return can & (torch.arange(can.shape[1], device=can.device) >= prefix)


def choose(draw: Tensor, probability: float, can: Tensor) -> Tensor:
    """Where numbers (I, N) drawn from 0..1 are below the probability, and in each row where they are least; bool (I, N)."""
    draw = draw.masked_fill(~can, 2.0)
    least = F.one_hot(draw.argmin(dim=1), draw.shape[1]).bool()
    return ((draw < probability) | least) & can


def squared_error(first: Tensor, second: Tensor) -> Tensor:
    """By element, in fp32."""
    first = at_least_fp32(first)
    return F.mse_loss(first, second.to(first), reduction="none")
