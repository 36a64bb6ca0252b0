"""Winoground: two images and two captions of the same words, of which each image has its own (Thrush et al. 2022)."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fusionkit.data.images import has_pixels
from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.foils import CAPTION, FOIL, LABEL, PAIR, SUBSET
from fusionkit.errors import ConfigError, suggest
from fusionkit.files.unicode import metric_words
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.examples import Example, evenly
from fusionkit.scoring.probes.pairs import HOW, LOG_ODDS, captions_of, given_scores, pair_schema, records_of
from fusionkit.scoring.records import Record
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.sheet import GREEN, RED, Note, Panel, Picture, Sheet, worst_first
from fusionkit.scoring.text_only_models import guesses

METRICS = ("text_score", "image_score", "group_score")
CHANCE = (25.0, 25.0, 100 / 6)  # of scores that are drawn: of their 24 orders 6, 6 and 4 are right
Grid = list[tuple[Sample, dict[str, Text]]]  # of one example: each image with its own caption and the other's, by label


class Winoground(BaseScorer):
    """Text, image and group scores in percent, and those of each collapsed tag, by the authors' strict inequalities.

    With s(c, i) for caption c and image i an example's text score is 1 where s(0, 0) > s(1, 0) and s(1, 1) > s(0, 1), its image
    score where s(0, 0) > s(0, 1) and s(1, 1) > s(1, 0), its group score where all four hold; one that lacks a score has 0. What
    is resampled for an interval is an example.
    """

    metrics = MappingProxyType(dict.fromkeys(METRICS, True))
    headlines = METRICS

    def __init__(self, value: str = LOG_ODDS) -> None:
        if value not in HOW:
            raise ConfigError(f"value of the scorer of Winoground is '{value}'; {suggest(value, HOW)}")
        self.value, self.schema = value, (pair_schema(value),)

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row an example, called as the first caption with its image."""
        given, grids = given_scores(records, samples, self.value), grids_of(samples)
        words = metric_words(tag for grid in grids.values() if (tag := _tag(grid)))
        rows = []
        for pair, grid in grids.items():
            found = dict(zip(METRICS, (100.0 * right for right in _judged(grid, given)), strict=True))
            names = ["", f"/{words[_tag(grid)]}"] if _tag(grid) else [""]
            values = {f"{metric}{name}": score for metric, score in found.items() for name in names}
            row = {"id": grid[0][1][CAPTION].id, "score": found["group_score"], "image_id": pair, "values": values}
            rows.append(row)
        text_only = "a model that sees no image gives both images the same scores, and so none of the three"
        return SampleScores(rows, {"scored by": HOW[self.value], "text only": text_only} if rows else {})

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """What any model scores that sees no image; and what drawn scores do."""
        lengths = {text.id: float(len(text.text)) for sample in samples for text in captions_of(sample)}
        by_text = score(records_of(lengths, self.value), samples)
        chance = dict(zip(METRICS, CHANCE, strict=True))
        return guesses(by_text, {name: chance[name.partition("/")[0]] for name in by_text})

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """Each example with its first image, the caption that scored higher for it, and its own."""
        given, grids = given_scores(records, samples, self.value), grids_of(samples)
        found = []
        for row in evenly(rows, limit):
            sample, texts = grids[str(row["image_id"])][0]
            best = max(texts.values(), key=lambda text: given.get(text.id, float("-inf")))
            image = sample.image if has_pixels(sample.image) else None
            asked = f"group score {row['score']:.0f}"
            truth = texts[CAPTION].text
            found.append(
                Example(
                    row["id"],
                    row["image_id"],
                    image,
                    asked,
                    best.text,
                    truth,
                    row["score"],
                    sample.size,
                    upright=sample.upright,
                )
            )
        return found

    def sheet(self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row]) -> Sheet:
        """Both images of an example with what each caption scores there."""
        given, grids = given_scores(records, samples, self.value), grids_of(samples)
        ordered = []
        for row in rows:
            grid = grids[str(row["image_id"])]
            if all(has_pixels(sample.image) for sample, _ in grid):
                heading = " / ".join(texts[CAPTION].text for _, texts in grid)
                ordered.append((row["score"], 0, Panel(heading, tuple(_picture(*each, given) for each in grid))))
        legend = "two images, and what their own caption (green where it is higher) and the other's score"
        return Sheet(legend, worst_first(ordered))


def grids_of(samples: Sequence[Sample]) -> dict[str, Grid]:
    """The examples that have both images, by their ids."""
    found: dict[str, Grid] = {}
    for sample in samples:
        texts = {text.facts[LABEL]: text for text in captions_of(sample)}
        if len(texts) == 2:
            found.setdefault(str(texts[CAPTION].facts[PAIR]), []).append((sample, texts))
    return {pair: grid for pair, grid in found.items() if len(grid) == 2}


def _judged(grid: Grid, given: Mapping[Any, float]) -> tuple[bool, bool, bool]:
    """Whether text, image and group are right."""
    (_, first), (_, second) = grid
    if any(text.id not in given for texts in (first, second) for text in texts.values()):
        return False, False, False
    own = [given[texts[CAPTION].id] for texts in (first, second)]
    other = [given[texts[FOIL].id] for texts in (first, second)]  # each image with the other's caption
    text = own[0] > other[0] and own[1] > other[1]
    image = own[0] > other[1] and own[1] > other[0]
    return text, image, text and image


def _tag(grid: Grid) -> str:
    return str(grid[0][1][CAPTION].facts[SUBSET])


def _picture(sample: Sample, texts: Mapping[str, Text], given: Mapping[Any, float]) -> Picture:
    own, other = (given.get(texts[label].id) for label in (CAPTION, FOIL))
    is_right = own is not None and other is not None and own > other
    told = " and ".join("nothing" if score is None else f"{score:.3g}" for score in (own, other))
    note = Note(f"own and other caption: {told}", GREEN if is_right else RED)
    return Picture(sample.image, sample.size, notes=(note,), upright=sample.upright)
