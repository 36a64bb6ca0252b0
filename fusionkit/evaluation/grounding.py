"""Referring expressions: does the predicted box cover the true one? Boxes are (x, y, w, h) in pixels of the image."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fusionkit.data.sample import Sample, Text
from fusionkit.evaluation.records import Record, index_records


def box_iou(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union (N,) of boxes (N, 4) xywh in continuous coordinates; 0 if the union is empty or NaN."""
    first, second = np.asarray(first, float).reshape(-1, 4), np.asarray(second, float).reshape(-1, 4)
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    shared = (high - low).clip(min=0).prod(axis=1)
    union = first[:, 2:].clip(min=0).prod(axis=1) + second[:, 2:].clip(min=0).prod(axis=1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def score_grounding(records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
    """Percentage of expressions with IoU >= .5 and >= .75 and the mean IoU, from ``{"sent_id", "bbox"}`` records.

    An expression without a prediction counts as IoU 0; expressions without a true box are left out.
    """
    overlaps = np.array(list(expression_overlaps(records, samples).values()))
    if not len(overlaps):
        return {}
    return {
        "grounding_acc50": 100 * float((overlaps >= 0.5).mean()),
        "grounding_acc75": 100 * float((overlaps >= 0.75).mean()),
        "grounding_mean_iou": 100 * float(overlaps.mean()),
    }


def expression_overlaps(records: Sequence[Record], samples: Sequence[Sample]) -> dict[int | str, float]:
    """IoU in 0..1 of every expression that has a true box, by sentence id."""
    known = {text.id for sample in samples for text in sample.texts.get("expressions", ())}
    given = index_records(records, "sent_id", known)
    true = {text.id: text.facts["box"] for _, text in boxed_expressions(samples)}
    nothing = {"bbox": (0.0, 0.0, 0.0, 0.0)}
    overlaps = box_iou([given.get(key, nothing)["bbox"] for key in true], list(true.values()))
    return dict(zip(true, overlaps.tolist(), strict=True))


def boxed_expressions(samples: Sequence[Sample]) -> Iterator[tuple[Sample, Text]]:
    """The expressions that have a true box, each with its sample."""
    for sample in samples:
        for text in sample.texts.get("expressions", ()):
            if text.facts.get("box") is not None:
                yield sample, text
