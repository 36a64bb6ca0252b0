"""Single answers to look at: a fair sample of what was asked, with what was said, what is true, and the score."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionkit.data.images import has_pixels
from fusionkit.data.sample import Sample, Text
from fusionkit.scoring.records import Record
from fusionkit.scoring.sample_scores import Measure, Row

TRUTHS = ("answers", "box", "gold_label", "label")  # the fact that a text was asked about; none: its own image


@dataclass(frozen=True)
class Example:
    """One text, what the model made of it, and its ``score`` (0..100)."""

    id: Any
    image_id: Any
    image: Path | None  # None where the image is no picture
    text: str
    given: Any
    true: Any
    score: float
    size: tuple[int, int] | None = None  # what the boxes refer to; None: the file's own
    boxes: Mapping[str, Sequence[float]] = field(default_factory=dict)  # "given" and "true", (x, y, w, h) in pixels


def examples_of(
    measure: Measure, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int
) -> list[Example]:
    """At most ``limit`` of the texts that ``rows`` judge, evenly over the split: the same ones in every run on it."""
    form = next((form for form in measure.forms if not form.of_images), None)
    if form is None or limit < 1:
        return []
    scores = {row["id"]: row["score"] for row in rows}
    given = {record[form.key]: record[form.value] for record in records if form.key in record}
    judged = [
        (sample, text, scores[key])
        for sample in samples
        for text in sample.texts.get(form.kind, ())
        for key in (text.id, f"text_to_image/{text.id}")  # retrieval is judged both ways
        if key in scores
    ]
    step = max(1, -(-len(judged) // limit))
    return [_example(sample, text, given.get(text.id), score) for sample, text, score in judged[::step]]


def _example(sample: Sample, text: Text, given: Any, score: float) -> Example:
    true: Any = next((text.facts[name] for name in TRUTHS if name in text.facts), sample.image_id)
    boxes = {}
    if "box" in text.facts:
        boxes = {name: box for name, box in (("true", true), ("given", given)) if box is not None}
    elif isinstance(given, list):  # images, the best first
        given = given[0] if given else None
    elif "answers" in text.facts:
        true = Counter(true).most_common(1)[0][0]
    image = sample.image if has_pixels(sample.image) else None
    return Example(text.id, sample.image_id, image, text.text, given, true, score, sample.size, boxes)
