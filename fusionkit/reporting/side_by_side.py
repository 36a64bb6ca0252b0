"""The same samples as several runs answered them, right and wrong: what the report page shows side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionkit.reporting.comparison import Comparison
from fusionkit.reporting.record import RunRecord
from fusionkit.scoring.examples import RIGHT, answer_counts, asked_id, shown_value, truth_of
from fusionkit.scoring.record_schema import is_box
from fusionkit.scoring.records import Record, read_records
from fusionkit.scoring.sample_scores import Row
from fusionkit.scoring.scorers import OURS

if TYPE_CHECKING:
    from fusionkit.data.sample import Sample, Text

Load = Callable[
    [RunRecord, str], Sequence["Sample"]
]  # the samples that a file of rows is about; empty where they are gone
Box = Sequence[float]  # x, y, w, h in pixels of the example's size
FORMS = [form for scorer in OURS for form in scorer.schema]
KINDS = {form.key: form.kind for form in FORMS if not form.of_images}  # what records are about, by the key of its id
TURNED = {form.value for form in FORMS if form.of_images and form.lists}  # rankings of texts, which no card shows


@dataclass(frozen=True)
class Answer:
    """What one run said: a text, a box, or the image that it ranked first."""

    entry: str
    text: str
    is_right: bool
    box: Box | None = None
    image: Path | None = None
    is_words: bool = False  # the text is what it said


@dataclass(frozen=True)
class Example:
    """One sample: its image, what was asked, what is true, and what each run said."""

    image: Path
    asked: str
    truth: str
    answers: Sequence[Answer]
    box: Box | None = None
    size: tuple[int, int] | None = None  # that boxes refer to; None: the image's own


def examples(comparison: Comparison, load: Load, count: int) -> dict[str, dict[str, list[Example]]]:
    """By file of rows, then by who is right, at most ``count`` examples; of seeds the first stands for all."""
    runs = {entry.name: entry.runs[0] for entry in comparison.entries}
    labels = list(dict.fromkeys(label for run in runs.values() for label in run.samples))
    found = {label: _of_label(label, runs, load, count) for label in labels} if count else {}
    return {label: groups for label, groups in found.items() if groups}


def said_by_all(label: str, runs: Mapping[str, RunRecord], load: Load) -> dict[str, tuple[Any, Example]]:
    """By id, the image_id and the example of each sample of a file of rows to which every run replied in words."""
    rows, show = _answered(label, runs, load)
    if len(rows) < len(runs):
        return {}
    found: dict[str, tuple[Any, Example]] = {}
    for key, row in next(iter(rows.values())).items():  # which has a row under two names
        if str(row["id"]) not in found and all(key in each for each in rows.values()) and show.knows(key):
            example = show(key)
            if all(answer.is_words for answer in example.answers):
                found[str(row["id"])] = row["image_id"], example
    return found


def _answered(label: str, runs: Mapping[str, RunRecord], load: Load) -> tuple[dict[str, dict[str, Row]], "_Shower"]:
    """By run that kept its predictions, its rows; and what makes an example of an id."""
    answered = {name: run for name, run in runs.items() if label in run.samples and run.samples[label].predictions}
    rows = {name: _by_id(run.samples[label].rows) for name, run in answered.items()}
    samples = next((found for run in answered.values() if (found := load(run, label))), [])
    kinds = _kinds_of_ids(samples)
    records = {name: _records(run.samples[label].predictions, kinds) for name, run in answered.items()}
    return rows, _Shower(samples, rows, records)


def _of_label(label: str, runs: Mapping[str, RunRecord], load: Load, count: int) -> dict[str, list[Example]]:
    rows, show = _answered(label, runs, load)
    if not rows:
        return {}
    shared = [key for key in next(iter(rows.values())) if all(key in each for each in rows.values())]
    return {
        heading: shown
        for heading, keys in _grouped(rows, [key for key in shared if show.knows(key)]).items()
        if (shown := [show(key) for key in _spread(keys, rows, count)])
    }


def _by_id(rows: Sequence[Row]) -> dict[str, Row]:
    """The rows, also by the id of what they are about; of several about one the first."""
    found = {str(row["id"]): row for row in rows}
    for row in rows:
        found.setdefault(asked_id(row), row)
    return found


def _kinds_of_ids(samples: Sequence["Sample"]) -> dict[str, list[str]]:
    """The kinds of text that have an id."""
    kinds: dict[str, list[str]] = {}
    for sample in samples:
        for kind, texts in sample.texts.items():
            for text in texts:
                kinds.setdefault(str(text.id), []).append(kind)
    return kinds


def _records(path: Path | None, kinds: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, Record]]:
    """The predictions by id, each with the kind of the text that it is about ("" for the image as a whole)."""
    found: dict[str, tuple[str, Record]] = {}
    for record in read_records(path) if path else []:
        if about := _asked(record, kinds):
            kind, key = about
            found.setdefault(key, (kind, record))
    return found


def _asked(record: Record, kinds: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
    """The kind and the id of the text that a record is about: one whose name is the kind's is preferred to another."""
    keys = [key for key in record if key.endswith("_id") and key != "image_id"]
    for key in keys:
        named = KINDS.get(key)
        known = [named] if named else sorted(kinds.get(str(record[key]), ()), key=lambda kind: key[:3] != kind[:3])
        if known:
            return known[0], str(record[key])
    is_of_image = not keys and "image_id" in record and not TURNED & record.keys()
    return ("", str(record["image_id"])) if is_of_image else None


def _grouped(rows: Mapping[str, Mapping[str, Row]], keys: Sequence[str]) -> dict[str, list[str]]:
    """Who is right: those that tell runs apart come first."""
    groups: dict[str, list[str]] = {"right by some": [], "wrong by all": [], "right by all": []}
    if len(rows) == 1:
        groups = {"wrong": [], "right": []}
    for key in keys:
        right = sum(each[key]["score"] >= RIGHT for each in rows.values())
        if len(rows) == 1:
            groups["right" if right else "wrong"].append(key)
        else:
            groups["wrong by all" if not right else "right by all" if right == len(rows) else "right by some"].append(
                key
            )
    return groups


def _spread(keys: Sequence[str], rows: Mapping[str, Mapping[str, Row]], count: int) -> list[str]:
    """``count`` of the keys from all over the file, in turns of every pattern of right and wrong, one of an image."""
    patterns: dict[tuple[bool, ...], dict[Any, str]] = {}
    first, seen = next(iter(rows.values())), set()
    for key in keys:
        if (image := first[key]["image_id"]) not in seen:
            patterns.setdefault(tuple(each[key]["score"] >= RIGHT for each in rows.values()), {})[image] = key
            seen.add(image)
    lists = [list(of_image.values()) for of_image in patterns.values()]
    spread = [found[:: max(1, len(found) // count)] for found in lists]
    return [key for key in chain.from_iterable(zip_longest(*spread)) if key is not None][:count]


class _Shower:
    """Makes an example of an id."""

    def __init__(
        self,
        samples: Sequence["Sample"],
        rows: Mapping[str, Mapping[str, Row]],
        records: Mapping[str, Mapping[str, tuple[str, Record]]],
    ) -> None:
        self.rows, self.records = rows, records
        self.images = {str(sample.image_id): sample for sample in samples}
        self.texts = {
            (kind, str(text.id)): (sample, text)
            for sample in samples
            for kind in sample.texts
            for text in sample.texts[kind]
        }

    def knows(self, key: str) -> bool:
        """Whether there is a sample for the id, and a prediction of someone."""
        return self._about(key) is not None

    def _about(self, key: str) -> tuple["Sample", "Text | None"] | None:
        kind = next((each[key][0] for each in self.records.values() if key in each), None)
        if kind == "" and key in self.images:
            return self.images[key], None
        return self.texts.get((kind, key)) if kind else None

    def __call__(self, key: str) -> Example:
        about = self._about(key)
        assert about is not None
        sample, text = about
        answers = [
            self._answer(name, self.records[name].get(key, ("", {}))[1], rows[key]) for name, rows in self.rows.items()
        ]
        if text is None:
            captions = " / ".join(each.text for each in sample.texts.get("captions", ()))
            return Example(sample.image, "", captions, answers, size=sample.size)
        return Example(sample.image, text.text, _truth(text), answers, text.facts.get("box"), sample.size)

    def _answer(self, name: str, record: Record, row: Row) -> Answer:
        is_right = row["score"] >= RIGHT
        listed = next((value for value in record.values() if isinstance(value, list) and value), [])
        if listed and all(str(item) in self.images for item in listed):
            rank = next(iter(row.get("ranks", {}).values()), None)
            first = self.images[str(listed[0])]
            return Answer(name, f"rank {rank:g}" if rank else "", is_right, image=None if is_right else first.image)
        if is_box(listed):
            overlap = next((value for metric, value in row["values"].items() if metric.endswith("iou")), None)
            return Answer(name, "" if overlap is None else f"IoU {floor(overlap) / 100:.2f}", is_right, listed)
        return Answer(name, next(_said(record), "(nothing)"), is_right, is_words=True)


def _said(record: Record) -> Iterator[str]:
    """What is given in a record, as its schema says; of one that is not ours all besides ids, scores last."""
    given = [form.value for form in FORMS if form.key in record and form.value in record]
    others = sorted(
        (key for key in record if not key.endswith("_id")), key=lambda key: key.endswith(("score", "scores"))
    )
    return (shown_value(record[key], "") for key in given or others)


def _truth(text: "Text") -> str:
    if counts := answer_counts(text.facts):
        return ", ".join(f"{answer} ({count})" for answer, count in counts.items())
    return "" if "box" in text.facts else shown_value(truth_of(text), "")
