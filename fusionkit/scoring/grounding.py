"""Referring expressions: does the predicted box cover the true one? Boxes are (x, y, w, h) in pixels of the image."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fusionkit.data.frames import framed
from fusionkit.data.images import decode
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError, suggest
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.box_units import note_on_units
from fusionkit.scoring.record_schema import RecordSchema, is_box
from fusionkit.scoring.records import Record, index_records
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.sheet import GREEN, RED, Mark, Note, Panel, Picture, Sheet, worst_first
from fusionkit.scoring.text_only_models import guesses, ridge

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


@dataclass(frozen=True)
class Grounding(BaseScorer):
    """Percentage of expressions whose box has an IoU of at least .5 and .75 with the true one, and the mean IoU.

    An expression without a prediction counts as IoU 0; one without a true box is left out. ``boxes`` says where the boxes come
    from, since scores of the three protocols are not comparable: "regressed", the model's own; "ground-truth", chosen among
    the annotated boxes of the image; "detected", chosen among those of a detector.
    """

    boxes: str = "regressed"
    prefix: str = "grounding_"

    schema = (RecordSchema("expressions", "sent_id", "bbox", "four numbers [x, y, width, height] in pixels", is_box),)
    metrics = MappingProxyType({"acc50": True, "acc75": True, "mean_iou": True})

    def __post_init__(self) -> None:
        if self.boxes not in BOXES:
            raise ConfigError(f"there is no box protocol '{self.boxes}'; {suggest(self.boxes, BOXES)}")

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row an expression that has a true box."""
        overlaps = expression_overlaps(records, samples)
        rows = []
        for sample, expression in boxed_expressions(samples):
            overlap = overlaps[expression.id]
            values = {f"acc{percent}": 100.0 * (overlap >= percent / 100) for percent in (50, 75)}
            values["mean_iou"] = 100 * overlap
            rows.append({"id": expression.id, "score": values["acc50"], "image_id": sample.image_id, "values": values})
        note = note_on_units(*_columns(records, samples), box_iou)
        return SampleScores(rows, {"boxes": self.boxes} | ({"coordinates": note} if note else {}))

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """Ridge regression from the words of an expression to its box, relative to the image; and the mean training box."""
        known = list(boxed_expressions(train))
        if not known:
            return {}
        boxes = np.array([_relative_box(*each) for each in known])
        regress = ridge([text.text for _, text in known], boxes)
        asked = list(boxed_expressions(samples))
        by_text = [_box_record(sample, text, regress(text.text)) for sample, text in asked]
        by_chance = [_box_record(sample, text, boxes.mean(axis=0)) for sample, text in asked]
        return guesses(score(by_text, samples), score(by_chance, samples))

    def sheet(self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row]) -> Sheet:
        """Phrase, and the image with the given box (red, dashed) and the true one (green)."""
        overlaps = expression_overlaps(records, samples)
        given = {record["sent_id"]: record["bbox"] for record in records}
        turns: Counter[Any] = Counter()
        ordered: list[tuple[float, int, Panel]] = []
        for sample, text in boxed_expressions(samples):
            overlap = overlaps[text.id]
            marks = [Mark(text.facts["box"], GREEN)]
            marks += [Mark(given[text.id], RED, True)] if text.id in given else []
            note = Note(f"IoU {overlap:.2f}", GREEN if overlap >= 0.5 else RED)
            picture = Picture(sample.image, sample.size, tuple(marks), notes=(note,), upright=sample.upright)
            ordered.append((overlap, turns[sample.image_id], Panel(text.text, (picture,))))
            turns[sample.image_id] += 1
        return Sheet("true box: green; given box: red, dashed; right from IoU 0.50 on", worst_first(ordered))


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


def _size(sample: Sample) -> tuple[int, int]:
    if sample.size is not None:
        return sample.size
    return framed(decode(sample.image, 1), None, sample.upright).size


def _relative_box(sample: Sample, text: Text) -> list[float]:
    """(x, y, w, h) in 0..1 of the image."""
    width, height = _size(sample)
    return [value / side for value, side in zip(text.facts["box"], (width, height, width, height), strict=True)]


def _box_record(sample: Sample, text: Text, relative: NDArray[np.float64]) -> Record:
    width, height = _size(sample)
    return {"sent_id": text.id, "bbox": (relative * (width, height, width, height)).tolist()}
