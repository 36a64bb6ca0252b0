"""Evaluate a model on splits: predict, write the records, score them beside their baselines, draw them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fusionkit.assembly.evaluation_options import EvaluationOptions
from fusionkit.data.images import has_pixels
from fusionkit.data.sample import Sample
from fusionkit.distributed import rank
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.inference.linear_probe import FIT, LinearProbe
from fusionkit.inference.prediction import EvaluationData, predict_source
from fusionkit.model.model import VisionLanguageModel
from fusionkit.scoring.base import BaseScorer
from fusionkit.scoring.records import RERANKED, Record, Records, write_records
from fusionkit.scoring.results import Draws, Scored, judge, published_scores, write_scores
from fusionkit.scoring.sample_scores import prefixed, scores_of
from fusionkit.scoring.scorers import scorers_of
from fusionkit.scoring.sheet import Sheet
from fusionkit.tasks.base import Task
from fusionkit.visual.contact_sheet import draw_sheet
from fusionkit.visual.recall_curves import recall_curve, write_curve

Predictions = Mapping[str, Records]  # by task; re-ranked ones stand beside the first


@dataclass(frozen=True)
class Split:
    """One split to evaluate on: which tasks answer it, what scores them, and what scores and files are called.

    ``source``, ``role``  of the data.
    ``scorers``  by task; a task without one is predicted alone.
    ``labels``   of each task's scores (``Scored``), which with underscores name its file of rows.
    ``title``, ``stem``  of pictures, and what their files are named after, with the task.
    ``train``    gives what guessers learn from.
    ``helpers``  tasks that only rank again what others rank.
    ``notes``    gives, once all is predicted, what has to be said beside the scores, such as how the texts were read; every
                 process has to ask.
    """

    source: str
    role: str
    tasks: Mapping[str, Task[Any]]
    scorers: Mapping[str, BaseScorer]
    labels: Mapping[str, str]
    stem: str
    train: Callable[[], Sequence[Sample]]
    helpers: Mapping[str, Task[Any]] = field(default_factory=dict)
    notes: Callable[[], Mapping[str, str]] = dict
    protocol: str = ""

    @property
    def title(self) -> str:
        return f"{self.source} · {self.role}"

    def scored(
        self, name: str, predictions: Predictions, samples: Sequence[Sample], guesses: Callable[..., dict[str, float]]
    ) -> Scored:
        """What the scorer of a task says of its records; ``guesses`` calls ``BaseScorer.baselines`` with a score."""
        raise NotImplementedError

    def predictions_of(self, predictions: Predictions) -> dict[str, Records]:
        """The records to be kept, by the names of their files."""
        raise NotImplementedError


class OwnSplit(Split):
    """A split of the data that a run names: several tasks share the label of its source, and metrics tell them apart."""

    def scored(
        self, name: str, predictions: Predictions, samples: Sequence[Sample], guesses: Callable[..., dict[str, float]]
    ) -> Scored:
        """Under the names that metrics have in a run; where records were re-ranked, the first are ``<metric>_<task>``."""
        scorer = self.scorers[name]
        judged = scorer.rows(final(predictions, name), samples)
        own = {scorer.own_name(metric): value for metric, value in scorer.scores(judged, samples).items()}
        if name + RERANKED in predictions:
            own |= {f"{metric}_{name}": value for metric, value in scorer(predictions[name], samples).items()}
        judged = replace(judged, rows=[prefixed(row, scorer.own_name) for row in judged.rows])
        label, guessed, directions = self.labels[name], guesses(scorer), scorer.directions(list(own))
        return Scored(label, self.role, self.protocol, judged, own, guessed, directions, self.stem)

    def predictions_of(self, predictions: Predictions) -> dict[str, Records]:
        """All of them."""
        return {f"{self.stem}_{name}": predictions[name] for name in predictions}


class PublishedSplit(Split):
    """A split of a benchmark: its scores have a label of their own, and all of them are told."""

    def scored(
        self, name: str, predictions: Predictions, samples: Sequence[Sample], guesses: Callable[..., dict[str, float]]
    ) -> Scored:
        """Under the scorer's own names; DataError where the annotations of the split say nothing."""
        scorer = self.scorers[name]
        judged = judge(scorer, final(predictions, name), samples, self.source, self.role)

        def score(records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
            return scores_of(scorer.rows(records, samples).rows)

        scores, label = published_scores(judged), self.labels[name]
        directions = scorer.directions(list(scores))
        return Scored(label, self.role, self.protocol, judged, scores, guesses(score), directions)

    def predictions_of(self, predictions: Predictions) -> dict[str, Records]:
        """Those that are scored."""
        return {stem_of(label): final(predictions, name) for name, label in self.labels.items()}


def own_splits(
    tasks: Mapping[str, Task[Any]],
    datamodule: EvaluationData,
    objectives: Mapping[str, Iterable[str]],
    roles: Sequence[str],
) -> list[Split]:
    """The tasks that ``objectives`` names for each source, on each of ``roles`` that the source has.

    The metrics of the first role are ``<source>/<metric>``, those of the others ``<source>_<role>/<metric>``. Tasks that read
    a kind of text which a split does not have are left out.
    """
    made: list[Split] = []
    for role, source in splits_of(datamodule, objectives, roles):
        stem = source if role == roles[0] else f"{source}_{role}"
        kinds = {kind for sample in datamodule.samples(source, role) for kind, texts in sample.texts.items() if texts}
        chosen = {name: tasks[name] for name in objectives[source] if tasks[name].reads in kinds}
        labels = {name: f"{stem}_{name}" for name in chosen}
        train = _training_reader(datamodule, source)
        made.append(OwnSplit(source, role, chosen, scorers_of(chosen), labels, stem, train))
    return made


def splits_of(
    datamodule: EvaluationData, objectives: Mapping[str, Iterable[str]], roles: Sequence[str]
) -> list[tuple[str, str]]:
    """The (role, source) pairs there are; a role that no source has is a ConfigError."""
    splits = {source: datamodule.sources[source].splits for source in objectives}
    known = {role for roles_of_source in splits.values() for role in roles_of_source}
    for role in roles:
        if role not in known:
            raise ConfigError(f"no source of the run has a split for the role '{role}': {suggest(role, known)}")
    return [(role, source) for role in roles for source in objectives if role in splits[source]]


def evaluate(
    model: VisionLanguageModel,
    splits: Sequence[Split],
    datamodule: EvaluationData,
    folder: Path,
    device: torch.device,
    options: EvaluationOptions,
    draws: Draws | None = None,
    watch: Callable[..., None] | None = None,
) -> tuple[list[Scored], dict[str, Any]]:
    """Predict and score every split; gives the scores, and what is written about them by label.

    Writes ``predictions/*.jsonl``, ``samples/*.jsonl`` (of one score of a benchmark ``samples.jsonl``), ``gallery/*.png``,
    ``curves/*``, ``metrics.json``, ``details.json`` and ``directions.json`` below ``folder``. Of several processes rank 0 does
    so; the others help it to predict, and return nothing. ``watch`` is given the label, the scorer, the records, the samples
    and their rows of each task.
    """
    is_single = sum(len(split.scorers) for split in splits) == 1 and isinstance(splits[0], PublishedSplit)
    scored: list[Scored] = []
    for split in splits:
        samples = datamodule.samples(split.source, split.role)
        predictions = predict_split(model, split, datamodule, device, options)
        notes = dict(split.notes())
        if rank() > 0:
            continue
        for stem, records in split.predictions_of(predictions).items():
            write_records(folder / "predictions" / f"{stem}.jsonl", records)
        for name, each in score_split(split, predictions, samples, datamodule):
            probe = split.tasks[name]
            each.judged.notes.update(notes | (probe.notes if isinstance(probe, LinearProbe) else {}))
            scored.append(each)
            stem, rows = stem_of(each.label), each.judged.rows
            if rows:
                write_records(folder / ("samples.jsonl" if is_single else f"samples/{stem}.jsonl"), rows)
                if watch is not None:
                    watch(stem, split.scorers[name], final(predictions, name), samples, rows)
            stream = getattr(datamodule.sources.get(split.source), "stream", None)
            if options.gallery and stream is None and has_pixels(samples[0].image):  # a stream is no single picture
                shown = split.scorers[name].sheet(final(predictions, name), samples, rows)
                draw_gallery(shown, f"{split.title} · {name}", folder / "gallery" / f"{split.stem}_{name}.png")
        for name in [name for name in split.tasks if name + RERANKED in predictions and isinstance(split, OwnSplit)]:
            curve = recall_curve(predictions[name], predictions[name + RERANKED], samples, options.reranking.k)
            write_curve(curve, split.title, folder / "curves" / f"{split.stem}_{name}")
    if rank() > 0:
        return [], {}
    return scored, write_scores(folder, scored, draws or Draws())


def predict_split(
    model: VisionLanguageModel,
    split: Split,
    datamodule: EvaluationData,
    device: torch.device,
    options: EvaluationOptions,
) -> dict[str, Records]:
    """The records of a split's tasks; those of its helpers are left out, and probes are fitted."""
    tasks = {**split.tasks, **split.helpers}
    found = predict_source(model, tasks, datamodule, split.source, split.role, device, options)
    source = split.source
    for name, probe in split.tasks.items():
        if isinstance(probe, LinearProbe):
            train = predict_source(model, {name: probe}, datamodule, source, FIT, device, options)[name]
            both = datamodule.samples(source, FIT), datamodule.samples(source, split.role)
            found[name] = probe.fitted(train, found[name], *both)
    return {name: records for name, records in found.items() if name.removesuffix(RERANKED) in split.tasks}


def score_split(
    split: Split, predictions: Predictions, samples: Sequence[Sample], datamodule: EvaluationData
) -> Iterator[tuple[str, Scored]]:
    """What each scorer says, by task, with ``<metric>_baseline`` and ``<metric>_chance`` beside the scores."""
    train = split.train()
    for name, scorer in split.scorers.items():
        records = predictions[name]

        def guesses(
            score: Callable[..., dict[str, float]],
            name: str = name,
            scorer: BaseScorer = scorer,
            records: Records = records,
        ) -> dict[str, float]:
            tokenize = datamodule.tokens_of(split.source, split.tasks[name].reads)
            return scorer.baselines(train, samples, records, tokenize, score)

        yield name, split.scored(name, predictions, samples, guesses)


def draw_gallery(sheet: Sheet, title: str, path: Path) -> None:
    """Write a picture, if there is something to show."""
    if sheet.panels:
        draw_sheet(sheet, f"{title} · worst first", path)


def final(predictions: Predictions, name: str) -> Records:
    """A task's records, re-ranked where they were."""
    return predictions.get(name + RERANKED, predictions[name])


def stem_of(label: str) -> str:
    """The name of a label's files."""
    return label.replace("/", "_")


def _training_reader(datamodule: EvaluationData, source: str) -> Callable[[], Sequence[Sample]]:
    """What reads the training split; a folder to evaluate on need not have it."""
    if "train" not in datamodule.sources[source].splits:
        return list
    return lambda: or_none(lambda: datamodule.samples(source, "train"), source)


def or_none(read: Callable[[], Sequence[Sample]], source: str) -> Sequence[Sample]:
    """The training samples, or none, and a line that says so, where their files are not there."""
    try:
        return read()
    except DataError as error:
        console = Console(stderr=True, style="yellow", highlight=False)
        console.print(f"{source}: baselines that need training data are left out: {error}", markup=False)
        return []
