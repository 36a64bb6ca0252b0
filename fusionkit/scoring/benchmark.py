"""Published benchmarks: their annotations, splits and protocol, and what is written about a score. Imports no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionkit.data.sample import Reader, Sample
from fusionkit.errors import DataError
from fusionkit.files.atomic import write_text
from fusionkit.scoring.bootstrap import LEVEL, intervals
from fusionkit.scoring.record_schema import check_predictions
from fusionkit.scoring.records import Record, merge_metrics, write_metrics, write_records
from fusionkit.scoring.sample_scores import Measure, SampleScores, scores_of
from fusionkit.scoring.submission import Submission

DECIMALS = (
    7  # of a score that is written: pycocoevalcap's constants leave 2e-8 of 100 off the BLEU of a perfect caption
)


@dataclass(frozen=True)
class Published:
    """A benchmark.

    `name`      what its metrics begin with.
    `protocol`  how its numbers are made, in words.
    `reader`    of its annotations; `files` are the paths that it reads, by the names that the command line uses.
    `splits`    that are scored; the first is the default of a file of predictions.
    `train`     the split that guessers without the image learn from, where they do.
    `measures`  by the task that answers: most benchmarks have one.
    `submission`  the file that its server takes, where it has one.
    `instead`   the tasks that answer for one that a checkpoint has not learnt.
    """

    name: str
    protocol: str
    reader: Reader
    splits: Sequence[str]
    measures: Mapping[str, Measure]
    files: Mapping[str, str | None] = field(default_factory=dict)
    submission: Submission | None = None
    instead: Mapping[str, Sequence[str]] = field(default_factory=dict)
    train: str | None = None
    batch_size: int = 32
    max_length: int = 40

    def label(self, split: str, task: str) -> str:
        """What the metrics begin with: the name, and as much as tells several scores of the benchmark apart."""
        return "/".join([self.name, *[split] * (len(self.splits) > 1), *[task] * (len(self.measures) > 1)])

    def answered_by(self, records: Sequence[Any]) -> str:
        """The task whose records these are, by the key of the first; the first task where none fits."""
        keys = records[0].keys() if records and isinstance(records[0], dict) else ()
        fitting = [name for name, measure in self.measures.items() if any(form.key in keys for form in measure.forms)]
        return next(iter([*fitting, *self.measures]))


@dataclass(frozen=True)
class Scored:
    """What is known about one score: its label, what was judged under which circumstances, and what guessers score."""

    label: str
    split: str
    protocol: str
    judged: SampleScores
    guesses: Mapping[str, float] = field(default_factory=dict)  # by <metric>_baseline and <metric>_chance


def score_predictions(
    benchmark: Published, records: Sequence[Record], path: Path, split: str, allow_missing: bool = False
) -> Scored:
    """Score the records of a file; DataError where they do not answer this split of this benchmark."""
    samples = benchmark.reader.read(split)
    task = benchmark.answered_by(records)
    measure = benchmark.measures[task]
    wanted = {form.key: form.wanted(samples) for form in measure.forms}
    hint = None if allow_missing else "add them, or count them as wrong with allow_missing=true"
    check_predictions(records, measure.forms, wanted, path, hint)
    judged = judge(measure, records, samples, benchmark.name, split)
    label = "/".join([benchmark.name, *[task] * (len(benchmark.measures) > 1)])
    return Scored(label, split, benchmark.protocol, judged)


def judge(
    measure: Measure, records: Sequence[Record], samples: Sequence[Sample], name: str, split: str
) -> SampleScores:
    """What the measure says; DataError where the annotations of the split say nothing."""
    judged = measure(records, samples)
    if not judged.rows:
        raise DataError(
            f"the annotations of {name}, split '{split}', hold no answers to score against; take a split that has them, "
            "or write the file for the benchmark's own server with: fusionkit submit"
        )
    return judged


def write_scores(folder: Path, scored: Sequence[Scored], resamples: int, seed: int) -> dict[str, Any]:
    """Write ``metrics.json``, ``details.json`` and the rows of each sample; returns the details, by label.

    The rows of a single score are ``samples.jsonl``, those of several ``samples/<label>.jsonl``.
    """
    details = {each.label: _details(each, resamples, seed) for each in scored}
    for each in scored:
        name = each.label.replace("/", "_")
        write_records(folder / ("samples.jsonl" if len(scored) == 1 else f"samples/{name}.jsonl"), each.judged.rows)
    metrics = {label: about["scores"] | about["guesses"] for label, about in details.items()}
    write_metrics(folder / "metrics.json", merge_metrics(metrics))
    write_text(folder / "details.json", json.dumps(details, indent=1, ensure_ascii=False) + "\n")
    return details


def _details(scored: Scored, resamples: int, seed: int) -> dict[str, Any]:
    rows = scored.judged.rows
    images = len({row["image_id"] for row in rows})
    return {
        "split": scored.split,
        "protocol": scored.protocol,
        "notes": scored.judged.notes,
        "samples": len(rows),
        "images": images,
        "scores": {name: round(score, DECIMALS) for name, score in scores_of(rows).items()},
        "guesses": dict(scored.guesses),
        "intervals": {name: list(ends) for name, ends in intervals(rows, resamples, seed).items()},
        "about_intervals": f"{LEVEL:.0%}, bootstrap over {images:,} images, {resamples:,} draws, seed {seed}",
    }
