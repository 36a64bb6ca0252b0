"""Referring expressions: does the predicted box cover the true one? Boxes are (x, y, w, h) in pixels of the image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError, suggest
from fusionkit.scoring.box_units import note_on_units
from fusionkit.scoring.record_schema import Form, is_box
from fusionkit.scoring.records import Record, index_records
from fusionkit.scoring.sample_scores import SampleScores, scores_of

BOXES = ("regressed", "ground-truth", "detected")


def box_iou(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union (N,) of boxes (N, 4) xywh in continuous coordinates; 0 if the union is empty or NaN.

    It has 12 decimals, so that boxes in hundredths of a pixel that share exactly one half are not below it.
    """
    first, second = np.asarray(first, float).reshape(-1, 4), np.asarray(second, float).reshape(-1, 4)
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    shared = (high - low).clip(min=0).prod(axis=1)
    union = first[:, 2:].clip(min=0).prod(axis=1) + second[:, 2:].clip(min=0).prod(axis=1) - shared
    ious: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0).round(12)
    return ious


def score_grounding(records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
    """Percentage of expressions with IoU >= .5 and >= .75 and the mean IoU, from ``{"sent_id", "bbox"}`` records.

    An expression without a prediction counts as IoU 0; expressions without a true box are left out.
    """
    scores = scores_of(GroundingMeasure()(records, samples).rows)
    return {f"grounding_{name}": value for name, value in scores.items()}


@dataclass(frozen=True)
class GroundingMeasure:
    """Judges boxes; ``boxes`` says where they come from, since scores of the three protocols are not comparable.

    "regressed": the model's own. "ground-truth": chosen among the annotated boxes of the image. "detected": chosen among
    those of a detector.
    """

    boxes: str = "regressed"

    def __post_init__(self) -> None:
        if self.boxes not in BOXES:
            raise ConfigError(f"there is no box protocol '{self.boxes}'; {suggest(self.boxes, BOXES)}")

    @property
    def forms(self) -> tuple[Form, ...]:
        return (Form("expressions", "sent_id", "bbox", "four numbers [x, y, width, height] in pixels", is_box),)

    def __call__(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        overlaps = expression_overlaps(records, samples)
        rows = []
        for sample, expression in boxed_expressions(samples):
            overlap = overlaps[expression.id]
            values = {f"acc{percent}": 100.0 * (overlap >= percent / 100) for percent in (50, 75)}
            values["mean_iou"] = 100 * overlap
            rows.append({"id": expression.id, "score": values["acc50"], "image_id": sample.image_id, "values": values})
        note = note_on_units(*_columns(records, samples), box_iou)
        return SampleScores(rows, {"boxes": self.boxes} | ({"coordinates": note} if note else {}))


def expression_overlaps(records: Sequence[Record], samples: Sequence[Sample]) -> dict[int | str, float]:
    """IoU in 0..1 of every expression that has a true box, by sentence id."""
    known = {text.id for sample in samples for text in sample.texts.get("expressions", ())}
    given = index_records(records, "sent_id", known)
    true = {text.id: text.facts["box"] for _, text in boxed_expressions(samples)}
    nothing = {"bbox": [0.0] * 4}
    overlaps = box_iou([given.get(key, nothing)["bbox"] for key in true], list(true.values()))
    return dict(zip(true, overlaps.tolist(), strict=True))


def _columns(
    records: Sequence[Record], samples: Sequence[Sample]
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[tuple[int, int] | None]]:
    """Predicted and true boxes (N, 4) of the expressions that have both, and the sizes of their images."""
    given = {record["sent_id"]: record["bbox"] for record in records}
    rows = [(sample, text) for sample, text in boxed_expressions(samples) if text.id in given]
    boxes = np.array([(given[text.id], text.facts["box"]) for _, text in rows], dtype=float).reshape(-1, 2, 4)
    return boxes[:, 0], boxes[:, 1], [sample.size for sample, _ in rows]


def boxed_expressions(samples: Sequence[Sample]) -> Iterator[tuple[Sample, Text]]:
    """The expressions that have a true box, each with its sample."""
    for sample in samples:
        for text in sample.texts.get("expressions", ()):
            if text.facts.get("box") is not None:
                yield sample, text
