"""Single answers to look at: a fair sample of what was asked, with what was said, what is true, and the score."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionkit.data.images import has_pixels
from fusionkit.data.sample import Sample, Text
from fusionkit.scoring.record_schema import RecordSchema, is_box
from fusionkit.scoring.records import Record
from fusionkit.scoring.sample_scores import Row
from fusionkit.scoring.sheet import GREEN, RED, Mark, Note, Panel, Picture, Sheet, worst_first

RIGHT = 50.0  # of a sample's score
SHOWN_TRUTHS = 3


@dataclass(frozen=True)
class Example:
    """One text, or an image as a whole, what the model made of it, and its ``score`` (0..100)."""

    id: Any
    image_id: Any
    image: Path | None  # None where the image is no picture
    text: str
    given: Any
    true: Any
    score: float
    size: tuple[int, int] | None = None  # what the boxes refer to; None: the file's own
    boxes: Mapping[str, Sequence[float]] = field(default_factory=dict)  # "given" and "true", (x, y, w, h) in pixels
    upright: bool = False


def examples_of(
    schema: Sequence[RecordSchema],
    records: Sequence[Record],
    samples: Sequence[Sample],
    rows: Sequence[Row],
    limit: int | None,
) -> list[Example]:
    """At most ``limit`` (None: all) of the texts or images that ``rows`` are about, evenly over the split.

    They are the same ones in every run on it.
    """
    form = next((form for form in schema if not form.of_images), next(iter(schema), None))
    if form is None or (limit is not None and limit < 1):
        return []
    scores: dict[Any, float] = {}
    for row in rows:
        scores.setdefault(row["id"], row["score"])
        scores.setdefault(asked_id(row), row["score"])
    given: dict[Any, Any] = {}
    for record in records:
        if form.key in record:
            given.setdefault(record[form.key], record.get(form.value))
    judged = [
        (sample, text, scores[key])
        for sample in samples
        for text, key in _asked(form, sample)
        for key in (key if key in scores else str(key),)
        if key in scores
    ]
    return [
        _example(form, sample, text, given.get(sample.image_id if text is None else text.id), score)
        for sample, text, score in evenly(judged, limit)
    ]


def evenly(items: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """At most ``limit`` (None: all) of the items, at equal distances."""
    if limit is None:
        return items
    return items[:: max(1, -(-len(items) // limit))] if limit > 0 else ()


def asked_id(row: Row) -> str:
    """The id of what a row is about, as text: behind the first slash where it is asked in several ways ("text_to_image/7")."""
    return str(row["id"]).partition("/")[2] or str(row["id"])


def gallery_of(examples: Sequence[Example]) -> Sheet:
    """Text and image with what was given and what is true, worst first; among equals one text of every image before its next."""
    turns: Counter[Any] = Counter()
    ordered = []
    for each in examples:
        if each.image is not None:
            ordered.append((each.score, turns[each.image_id], _panel(each)))
            turns[each.image_id] += 1
    return Sheet("what was given (green: at least half right), and what is true", worst_first(ordered))


def _panel(example: Example) -> Panel:
    assert example.image is not None
    color = GREEN if example.score >= RIGHT else RED
    marks = {name: example.boxes[name] for name in ("true", "given") if name in example.boxes}
    notes = [Note(f"given: {shown_value(example.given, '(nothing)')}", color)] if "given" not in marks else []
    notes += [Note(f"true: {shown_value(example.true, '')}")] if "true" not in marks else []
    boxes = tuple(Mark(box, GREEN if name == "true" else RED, name == "given") for name, box in marks.items())
    picture = Picture(example.image, example.size, boxes, notes=tuple(notes), upright=example.upright)
    return Panel(example.text, (picture,))


def shown_value(value: Any, nothing: str) -> str:
    """A value in a few words."""
    if value is None:
        return nothing
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def truth_of(text: Text) -> Any:
    """What is true of a text, whatever the data set calls it: its box, the commonest of several answers, its only fact.

    None where nothing but its own image is known.
    """
    facts = text.facts
    if facts.get("box") is not None:
        return facts["box"]
    if counts := answer_counts(facts):
        return next(iter(counts))
    named = [facts[name] for name in facts if "label" in name]
    return named[0] if named else next(iter(facts.values())) if len(facts) == 1 else dict(facts) or None


def answer_counts(facts: Mapping[str, Any]) -> dict[Any, int]:
    """The answers that several people gave, the commonest first, and of how many; none where there are no such."""
    answers = next((value for value in facts.values() if isinstance(value, list | tuple) and _is_words(value)), ())
    return dict(Counter(answers).most_common(SHOWN_TRUTHS))


def _is_words(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)


def _asked(form: RecordSchema, sample: Sample) -> list[tuple[Text | None, Any]]:
    texts = sample.texts.get(form.kind, ())
    if form.of_images:
        return [(None, sample.image_id)]
    return [(text, text.id) for text in texts]


def _example(form: RecordSchema, sample: Sample, text: Text | None, given: Any, score: float) -> Example:
    image = sample.image if has_pixels(sample.image) else None
    if text is None:
        true: Any = " / ".join(each.text for texts in sample.texts.values() for each in texts)
        return Example(sample.image_id, sample.image_id, image, "", given, true, score, sample.size)
    true = sample.image_id if form.lists else truth_of(text)
    boxes = {}
    if "box" in text.facts:
        boxes = {name: box for name, box in (("true", true), ("given", given)) if is_box(box)}
    elif form.lists and given is not None:  # the best first
        given = given[0] if given else None
    return Example(
        text.id, sample.image_id, image, text.text, given, true, score, sample.size, boxes, upright=sample.upright
    )
