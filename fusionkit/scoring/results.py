"""What is written about scores: metrics, their intervals and directions, and the rows of each sample."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionkit.data.sample import Sample
from fusionkit.errors import DataError
from fusionkit.files.atomic import write_text
from fusionkit.scoring.base import BaseScorer
from fusionkit.scoring.bootstrap import LEVEL, RESAMPLES, check_draws, intervals
from fusionkit.scoring.records import Record, write_metrics
from fusionkit.scoring.sample_scores import SampleScores, scores_of

DECIMALS = 7  # of a benchmark's score: pycocoevalcap's constants leave 2e-8 of 100 off the BLEU of a perfect caption


@dataclass(frozen=True)
class Draws:
    """How often images are drawn for an interval, and the seed; ConfigError where nothing can be drawn so."""

    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        check_draws(self.resamples, self.seed)


@dataclass(frozen=True)
class Scored:
    """What one scorer says of one task's records on one split, and under which circumstances.

    ``label``      of the scores, such as "refcoco/testA", or "coco_vqa" of a run's own data.
    ``scores``     by the names that they are written under, behind ``prefix`` (None: the label) and a slash.
    ``guesses``    what guessers score, by <metric>_baseline and <metric>_chance.
    ``directions`` whether more is better, as far as it is known.
    """

    label: str
    split: str
    protocol: str
    judged: SampleScores
    scores: Mapping[str, float]
    guesses: Mapping[str, float] = field(default_factory=dict)
    directions: Mapping[str, bool] = field(default_factory=dict)
    prefix: str | None = None

    def written(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """By the names that metrics have in the files."""
        return {f"{self.prefix or self.label}/{name}": value for name, value in values.items()}


def judge(
    scorer: BaseScorer, records: Sequence[Record], samples: Sequence[Sample], name: str, split: str
) -> SampleScores:
    """The rows of a published split; DataError where its annotations say nothing."""
    judged = scorer.rows(records, samples)
    if not judged.rows:
        raise DataError(
            f"the annotations of {name}, split '{split}', hold no answers to score against; take a split that has them, "
            "or write the file for the benchmark's own server with: fusionkit submit"
        )
    return judged


def published_scores(judged: SampleScores) -> dict[str, float]:
    """All scores of the rows, as they are written of a benchmark."""
    return {name: round(score, DECIMALS) for name, score in scores_of(judged.rows).items()}


def metrics_of(scored: Sequence[Scored]) -> dict[str, float]:
    """One flat map of all scores and guesses."""
    return {
        name: float(value) for each in scored for name, value in each.written({**each.scores, **each.guesses}).items()
    }


def write_scores(folder: Path, scored: Sequence[Scored], draws: Draws) -> dict[str, Any]:
    """Write ``metrics.json``, ``details.json`` and ``directions.json``; returns the details, by label.

    ``directions.json`` is there where anything is known: ``fusionkit compare`` reads from it which run is better.
    """
    details = {each.label: _details(each, draws) for each in scored}
    write_metrics(folder / "metrics.json", metrics_of(scored))
    write_text(folder / "details.json", json.dumps(details, indent=1, ensure_ascii=False) + "\n")
    directions = {name: up for each in scored for name, up in each.written(each.directions).items()}
    if directions:
        text = json.dumps(directions, indent=1, sort_keys=True, ensure_ascii=False)
        write_text(folder / "directions.json", f"{text}\n")
    else:
        (folder / "directions.json").unlink(missing_ok=True)
    return details


def _details(scored: Scored, draws: Draws) -> dict[str, Any]:
    rows = scored.judged.rows
    images = len({row["image_id"] for row in rows})
    found = intervals(rows, draws.resamples, draws.seed) if rows else {}
    about = f"{LEVEL:.0%}, bootstrap over {images:,} images, {draws.resamples:,} draws, seed {draws.seed}"
    return {
        **({} if scored.prefix is None else {"prefix": scored.prefix}),
        "split": scored.split,
        "protocol": scored.protocol,
        "notes": scored.judged.notes,
        "samples": len(rows),
        "images": images,
        "scores": {name: float(score) for name, score in scored.scores.items()},
        "guesses": {name: float(guess) for name, guess in scored.guesses.items()},
        "intervals": {name: list(ends) for name, ends in found.items() if name in scored.scores},
        "about_intervals": about,
    }
