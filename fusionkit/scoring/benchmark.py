"""Published benchmarks: their annotations, splits, protocol and scorers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fusionkit.data.sample import Reader
from fusionkit.errors import ConfigError
from fusionkit.scoring.base import BaseScorer, Scorer, as_scorer
from fusionkit.scoring.foreign_results import recognised, with_ids
from fusionkit.scoring.record_schema import check_predictions
from fusionkit.scoring.records import Record
from fusionkit.scoring.results import Scored, judge, published_scores
from fusionkit.scoring.submission import Submission


@dataclass(frozen=True)
class Published:
    """A benchmark.

    `name`      what its metrics begin with.
    `protocol`  how its numbers are made, in words.
    `reader`    of its annotations; `files` are the paths that it reads, by the names that the command line uses.
    `splits`    that are scored; the first is the default of a file of predictions.
    `train`     the split that guessers without the image learn from, where they do, and a probe with it.
    `scorers`   by the task that answers: most benchmarks have one.
    `submission`  the file that its server takes, where it has one.
    `instead`   the tasks that answer for one that a checkpoint has not learnt.
    """

    name: str
    protocol: str
    reader: Reader
    splits: Sequence[str]
    scorers: Mapping[str, Scorer]
    files: Mapping[str, str | None] = field(default_factory=dict)
    submission: Submission | None = None
    instead: Mapping[str, Sequence[str]] = field(default_factory=dict)
    train: str | None = None
    batch_size: int = 32
    max_length: int = 40

    def scorer(self, task: str) -> BaseScorer:
        """The scorer of a task's answers."""
        scorer = as_scorer(self.scorers[task])
        if not scorer.schema:
            raise ConfigError(
                f"benchmark {self.name}: the scorer of {task} does not say what its records look like; give it a schema "
                "(fusionkit.scoring.base.BaseScorer), as a file of predictions is checked against it"
            )
        return scorer

    def is_fitted(self, task: str) -> bool:
        """Whether a probe of the image encoder answers in the place of this task."""
        return any(form.fitted for form in getattr(self.scorers[task], "schema", ()))

    def label(self, split: str, task: str) -> str:
        """What the metrics begin with: the name, and as much as tells several scores of the benchmark apart."""
        return "/".join([self.name, *[split] * (len(self.splits) > 1), *[task] * (len(self.scorers) > 1)])

    def answered_by(self, records: Sequence[Any]) -> str:
        """The task whose records these are, by the key, and if it can be the value, of the first; else the first task."""
        keys = records[0].keys() if records and isinstance(records[0], dict) else ()
        forms = [(name, form) for name in self.scorers for form in self.scorer(name).schema if form.key in keys]
        fitting = [name for name, form in forms if form.value in keys] + [name for name, _ in forms]
        return next(iter([*fitting, *self.scorers]))


def score_predictions(
    benchmark: Published, records: Sequence[Record], path: Path, split: str, allow_missing: bool = False
) -> Scored:
    """Score the records of a file; DataError where they do not answer this split of this benchmark."""
    samples = benchmark.reader.read(split)
    records, whose = recognised(records)
    task = benchmark.answered_by(records)
    scorer = benchmark.scorer(task)
    wanted = {form.key: form.wanted(samples) for form in scorer.schema}
    for form in scorer.schema if whose else ():
        records = with_ids(records, form.key, wanted[form.key])
    hint = None if allow_missing else "add them, or count them as wrong with allow_missing=true"
    check_predictions(records, scorer.schema, wanted, path, hint)
    judged = judge(scorer, records, samples, benchmark.name, split)
    if whose:
        judged = replace(judged, notes={**judged.notes, "file": f"read as {whose}"})
    label = "/".join([benchmark.name, *[task] * (len(benchmark.scorers) > 1)])
    scores = published_scores(judged)
    return Scored(label, split, benchmark.protocol, judged, scores, directions=scorer.directions(list(scores)))
