"""Weak grounding: boxes from matching alone, which no box label has taught (ALBEF)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.encoders.base import SupportsGrids, unsupported
from fusionkit.errors import ConfigError, DataError
from fusionkit.files.plain import read_json
from fusionkit.model import saliency
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.negatives import Negatives
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.grounding import ExpressionBatch, corner_boxes
from fusionkit.tasks.itm import ITM, LABELS, Matching, checked, match_evidence, match_metrics
from fusionkit.tasks.ranking import Ranking
from fusionkit.types import Dims, Encoded, Fused, Regions, TaskOutput


class GradCAMGrounding(Task[ExpressionBatch]):
    """Trains matching of referring expressions with their images; the box is where GradCAM finds the reasons of a match.

    A box is scored by its sum of the map / area ** ``alpha``. The boxes are those of ``proposals``, a json file {image id:
    [[x, y, w, h], ...]} in pixels (a detector's, as ALBEF takes); None: all rectangles of grid cells. Region features bring
    their own boxes, of which the one with the highest value is given.
    ``layer``  of those in which the text looks at the image, from 0; None: the middle one.
    """

    needs = frozenset({"pooled", "attention"})
    reads = "expressions"
    replies_to = "phrase"
    init_from = "itm"

    def __init__(
        self,
        dims: Dims,
        negatives: Negatives | None = None,
        texts_per_image: int | None = None,
        layer: int | None = None,
        alpha: float = 0.5,
        proposals: str | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__(scorer)
        self.metrics = match_metrics()
        self.negatives, self.matching = checked(negatives), Matching(self.reads, texts_per_image)
        self.head: nn.Module = nn.Linear(dims.pooled_size, len(LABELS))
        self.uses_teacher = self.negatives.asks_teacher  # type: ignore[misc]  # only the negatives ask it
        self.layer, self.alpha = layer, alpha
        self.proposals = None if proposals is None else _read_proposals(Path(proposals))

    def forward(
        self, model: VisionLanguageModel, batch: ExpressionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        return self.matching(model, self.head, self.negatives, batch, encoded, teacher)

    def columns(self) -> tuple[str, Any] | None:
        return self.matching.columns(self.negatives)

    def partners(self, images: int, ranks: int) -> int:
        return self.negatives.pool.partners(images, ranks)

    def evidence(self, fused: Fused) -> Tensor:
        """The logit of a match, (T,)."""
        return match_evidence(self.head, fused)

    def predict(self, model: VisionLanguageModel, batch: ExpressionBatch, encoded: Encoded) -> Records:
        """{"sent_id", "bbox"}: left, top, width, height in pixels of the annotation's image size."""
        rows = batch["expressions"]
        if not rows["ids"]:
            return []
        text, index = encoded.text[self.reads], rows["image_index"]
        maps = saliency.gradcam(model, self.evidence, encoded.image, text, index, self.layer)
        assert text.mask is not None
        boxes = self._boxes(model, batch, saliency.over_words(maps, text.mask))
        return [{"sent_id": i, "bbox": box} for i, box in zip(rows["ids"], boxes.tolist(), strict=True)]

    def _boxes(self, model: VisionLanguageModel, batch: ExpressionBatch, maps: Tensor) -> Tensor:
        """xywh in pixels (T, 4), for maps (T, N) over the image tokens."""
        images, index = model.images_of(batch), batch["expressions"]["image_index"]
        sizes = batch["image_sizes"][index]
        if isinstance(images, Regions):
            return corner_boxes(images.positions[index, maps.argmax(dim=1), :4], sizes)
        encoder = model.image_encoder
        if not isinstance(encoder, SupportsGrids):
            raise unsupported(encoder, "grids", "task grounding_gradcam")
        if self.proposals is not None:
            return self._proposed(batch, encoder.grids(images, index, maps), index, sizes)
        return corner_boxes(saliency.best_rectangles(encoder.grids(images, index, maps), self.alpha), sizes)

    def _proposed(self, batch: ExpressionBatch, maps: Sequence[Tensor], index: Tensor, sizes: Tensor) -> Tensor:
        assert self.proposals is not None
        chosen = []
        for map, image, (width, height) in zip(maps, index.tolist(), sizes.int().tolist(), strict=True):
            image_id = batch["image_ids"][image]
            if not (boxes := self.proposals.get(str(image_id))):
                raise DataError(f"the proposals of task.grounding_gradcam have no box for image {image_id}; add some")
            boxes = torch.tensor(boxes, device=map.device)[:, :4]
            chosen.append(boxes[saliency.best_proposal(map, boxes, (width, height), self.alpha)])
        return torch.stack(chosen)


def by_matching(itm: ITM | Ranking, dims: Dims, layer: int | None = None) -> GradCAMGrounding:
    """Weak grounding by a matching task that was trained on captions, with its head: nothing more is to be learnt."""
    task = GradCAMGrounding(dims, layer=layer)
    task.head = itm.head
    return task


def _read_proposals(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"task.grounding_gradcam.proposals: no such file {path}; give a json file, or null")
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; expected {{image id: [[x, y, width, height], ...]}}")
    for image_id, boxes in content.items():
        if wrong := [box for box in boxes if not _is_box(box)] if isinstance(boxes, list) else [boxes]:
            raise DataError(
                f"{path} has {str(wrong[0])[:60]} for image {image_id}, but a box is [x, y, width, height] in pixels, and has an "
                "area; correct or remove it"
            )
    return {image_id: [box[:4] for box in boxes] for image_id, boxes in content.items()}


def _is_box(value: Any) -> bool:
    """Whether it begins with the four numbers of a box; a detector's confidence may follow."""
    return (
        isinstance(value, list)
        and len(value) >= 4
        and all(type(number) in (int, float) and math.isfinite(number) for number in value[:4])
        and min(value[2:4]) > 0
    )
