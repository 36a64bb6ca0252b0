"""Image-text matching with hard negatives (ALBEF)."""

import torch
from torch import Tensor, nn

from fusionkit.losses import masked_cross_entropy
from fusionkit.model import VisionLanguageModel
from fusionkit.momentum import Teacher
from fusionkit.negatives import HardNegatives, Negatives
from fusionkit.tasks.base import Records, Scorer, Task, leading_rows
from fusionkit.tasks.itc import CaptionBatch
from fusionkit.types import Dims, Encoded, TaskOutput, Tokens


class ITM(Task[CaptionBatch]):
    """Does the caption describe the image? One true pair to two false ones: (wrong image, caption) and (image, wrong caption).

    ``negatives``      draws the wrong partner from the contrastive similarities.
    ``texts_per_image`` how many captions of an image are matched; None: all in the batch.
    """

    needs = frozenset({"pooled"})  # the contrastive features only draw the negatives: matching does not train them
    reads = "captions"

    def __init__(
        self,
        dims: Dims,
        negatives: Negatives | None = None,
        texts_per_image: int | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__(scorer)
        self.negatives = negatives or HardNegatives()
        self.texts_per_image = texts_per_image
        self.head = nn.Linear(dims.pooled_size, 2)

    def forward(
        self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        index = batch["captions"]["image_index"]
        rows = leading_rows(index, self.texts_per_image)
        pairs, targets = self._pairs(batch["image_keys"], index, rows, self._similarity(model, encoded))
        logits = self.score_pairs(model, encoded.memory, _take(encoded.text[self.reads], pairs[1]), pairs[0])
        gap = logits.detach().diff(dim=1).squeeze(1).float()
        metrics = {}
        if len(rows):
            metrics = {"accuracy": ((gap > 0) == targets).float().mean(), "positive_logit": gap[: len(rows)].mean()}
        if len(gap) > len(rows):
            metrics["negative_logit"] = gap[len(rows) :].mean()
        return TaskOutput(masked_cross_entropy(logits, targets), logits, targets, metrics)

    def score_pairs(self, model: VisionLanguageModel, memory: object, text: Tokens, image_index: Tensor) -> Tensor:
        """Logits (P, 2), [:, 1] for a match, of P captions with the image rows that image_index (P,) names."""
        return self.head(model.fuse(memory, text, image_index).pooled)

    @torch.no_grad()
    def _similarity(self, model: VisionLanguageModel, encoded: Encoded) -> Tensor:
        with torch.autocast(encoded.image_feats.device.type, enabled=False):
            return encoded.image_feats.float() @ encoded.text_feats[self.reads].float().T / model.temperature  # (I, T)

    def _pairs(
        self, keys: Tensor, index: Tensor, rows: Tensor, similarity: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Image rows and text rows (P,) of the true pairs, then (wrong image, caption), then (image, wrong caption)."""
        same = keys[:, None] == keys[index][None, :]  # (I, T)
        images = index[rows]
        wrong_image, has_image = self.negatives(similarity[:, rows].T, same[:, rows].T)
        wrong_text, has_text = self.negatives(similarity[images], same[images])
        image_rows = torch.cat([images, wrong_image[has_image], images[has_text]])
        text_rows = torch.cat([rows, rows[has_image], wrong_text[has_text]])
        targets = torch.zeros_like(image_rows)
        targets[: len(rows)] = 1
        return (image_rows, text_rows), targets

    def predict(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Records:
        """Each caption with its own image (label 1) and with the next other image of the batch (label 0)."""
        captions, keys = batch["captions"], batch["image_keys"]
        index, text = captions["image_index"], encoded.text[self.reads]
        shifted = (index + 1) % len(keys)
        records = []
        for label, images in ((1, index), (0, shifted)):
            scores = self.score_pairs(model, encoded.memory, text, images).float().softmax(dim=1)[:, 1].tolist()
            records += [
                {"caption_id": caption_id, "image_id": batch["image_ids"][image], "score": score, "label": label}
                for caption_id, image, score in zip(captions["ids"], images.tolist(), scores, strict=True)
            ]
        has_other = len(keys) > 1
        return records if has_other else records[: len(index)]


def _take(text: Tokens, rows: Tensor) -> Tokens:
    assert text.mask is not None
    return Tokens(text.embeds[rows], text.mask[rows], text.pooled[rows])
