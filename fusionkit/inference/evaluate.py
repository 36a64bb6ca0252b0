"""Evaluate a model on sources: predict, write the records, score them beside their baselines, draw them."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fusionkit.assembly.evaluation_options import EvaluationOptions
from fusionkit.data.images import has_pixels
from fusionkit.data.sample import Sample
from fusionkit.distributed import rank
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.files.atomic import write_text
from fusionkit.inference.prediction import EvaluationData, predict_source
from fusionkit.scoring.records import RERANKED, Record, Records, merge_metrics, write_metrics, write_records
from fusionkit.scoring.sample_scores import Row
from fusionkit.tasks.base import Task
from fusionkit.visual.contact_sheet import draw_sheet
from fusionkit.visual.recall_curves import recall_curve, write_curve


def evaluate_run(
    model: Any,
    tasks: Mapping[str, Task[Any]],
    datamodule: EvaluationData,
    objectives: Mapping[str, Iterable[str]],
    output_dir: Path,
    device: torch.device,
    options: EvaluationOptions,
    roles: Sequence[str] = ("test",),
    watch: Callable[..., None] | None = None,
) -> dict[str, float]:
    """Evaluate the tasks that ``objectives`` names for each source, on each of ``roles`` that the source has.

    Writes ``metrics.json``, ``predictions/*.jsonl``, ``samples/*.jsonl``, ``curves/*`` and ``gallery/*.png`` below
    ``output_dir``, ``directions.json`` where scorers say which way is better, and returns the metrics: ``<source>/<metric>`` for
    the first role, ``<source>_<role>/<metric>`` for the others. Of several processes rank 0 does so; the others help it to
    predict, and return nothing. ``watch`` is given the label, the measure, the records, the samples and their rows of each
    task that is judged sample by sample.
    """
    parts = {}
    directions: dict[str, bool] = {}
    for role, source in splits_of(datamodule, objectives, roles):
        label = source if role == roles[0] else f"{source}_{role}"
        chosen = {name: tasks[name] for name in objectives[source]}
        parts[label], predictions = evaluate_source(model, chosen, datamodule, source, role, device, options)
        directions |= {f"{label}/{name}": up for name, up in declared_directions(chosen.values()).items()}
        for name, records in predictions.items():
            write_records(output_dir / "predictions" / f"{label}_{name}.jsonl", records)
        samples = datamodule.samples(source, role)
        for name, rows in sample_rows(chosen, predictions, samples).items():
            write_records(output_dir / "samples" / f"{label}_{name}.jsonl", rows)
            if watch is not None:
                measure = getattr(chosen[name].scorer, "measure", None)
                watch(f"{label}_{name}", measure, _final(predictions, name), samples, rows)
        for name in [name for name in chosen if name + RERANKED in predictions]:
            curve = recall_curve(predictions[name], predictions[name + RERANKED], samples, options.reranking.k)
            write_curve(curve, f"{source} · {role}", output_dir / "curves" / f"{label}_{name}")
        if options.gallery and has_pixels(samples[0].image):
            draw_gallery(chosen, predictions, samples, f"{source} · {role}", output_dir / "gallery" / label)
    metrics = merge_metrics(parts)
    if rank() == 0:
        write_metrics(output_dir / "metrics.json", metrics)
        keep_directions(output_dir, directions)
    return metrics


def declared_directions(tasks: Iterable[Task[Any]]) -> dict[str, bool]:
    """Whether more is better, by metric, of scorers that say so themselves: their names need not tell it."""
    declared = [getattr(task.scorer, "metrics", None) for task in tasks]
    return {str(name): bool(up) for each in declared if isinstance(each, Mapping) for name, up in each.items()}


def keep_directions(folder: Path, directions: Mapping[str, bool]) -> None:
    """Write ``directions.json``, from which ``fusionkit compare`` knows the better run; none where names say it all."""
    path = folder / "directions.json"
    if directions:
        write_text(path, json.dumps(directions, indent=1, sort_keys=True) + "\n")
    else:
        path.unlink(missing_ok=True)


def evaluate_source(
    model: Any,
    tasks: Mapping[str, Task[Any]],
    datamodule: EvaluationData,
    source: str,
    role: str,
    device: torch.device,
    options: EvaluationOptions,
) -> tuple[dict[str, float], dict[str, Records]]:
    """Metrics, with ``_baseline`` and ``_chance`` beside them, and the predictions they come from, by task.

    Tasks that read a kind of text which the split does not have are left out. Of several processes rank 0 gets them.
    """
    samples = datamodule.samples(source, role)
    tasks = {name: task for name, task in tasks.items() if any(sample.texts.get(task.reads) for sample in samples)}
    predictions = predict_source(model, tasks, datamodule, source, role, device, options)
    if rank() > 0:
        return {}, {}
    metrics: dict[str, float] = {}
    train = _training_samples(datamodule, source)
    for name, task in tasks.items():
        if task.scorer is not None:
            metrics |= score_task(task, name, predictions, samples)
            if baseline := getattr(task.scorer, "baseline", None):
                metrics |= baseline(train, samples, predictions[name], datamodule.tokenizer.tokenize, task.scorer)
    return metrics, predictions


def score_task(
    task: Task[Any], name: str, predictions: Mapping[str, Records], samples: Sequence[Sample]
) -> dict[str, float]:
    """The metrics of one task; where predictions were re-ranked those count, and the others are ``<metric>_<name>``."""
    assert task.scorer is not None
    first = task.scorer(predictions[name], samples)
    if name + RERANKED not in predictions:
        return first
    beside = {f"{metric}_{name}": value for metric, value in first.items()}
    return task.scorer(predictions[name + RERANKED], samples) | beside


def sample_rows(
    tasks: Mapping[str, Task[Any]], predictions: Mapping[str, Records], samples: Sequence[Sample]
) -> dict[str, list[Row]]:
    """What each sample scores, by task; intervals and comparisons are computed from it (``judging``)."""
    found = {}
    for name, task in tasks.items():
        rows = getattr(task.scorer, "rows", None)
        if rows is not None and name in predictions:
            found[name] = rows(_final(predictions, name), samples)
    return {name: judged for name, judged in found.items() if judged}


def draw_gallery(
    tasks: Mapping[str, Task[Any]],
    predictions: Mapping[str, Sequence[Record]],
    samples: Sequence[Sample],
    title: str,
    stem: Path,
) -> None:
    """Write ``<stem>_<task>.png`` for each task whose scorer has a ``sheet``."""
    for name, task in tasks.items():
        sheet = getattr(task.scorer, "sheet", None)
        if sheet is not None and name in predictions:
            shown = sheet(_final(predictions, name), samples)
            if shown.panels:
                draw_sheet(shown, f"{title} · {name} · worst first", stem.with_name(f"{stem.name}_{name}.png"))


def _final(predictions: Mapping[str, Sequence[Record]], name: str) -> Sequence[Record]:
    """A task's records, re-ranked where they were."""
    return predictions.get(name + RERANKED, predictions[name])


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


def _training_samples(datamodule: EvaluationData, source: str) -> Sequence[Sample]:
    """What the text-only baselines learn from; a folder to evaluate on need not have it."""
    if "train" not in datamodule.sources[source].splits:
        return []
    return or_none(lambda: datamodule.samples(source, "train"), source)


def or_none(read: Callable[[], Sequence[Sample]], source: str) -> Sequence[Sample]:
    """The training samples, or none, and a line that says so, where their files are not there."""
    try:
        return read()
    except DataError as error:
        console = Console(stderr=True, style="yellow", highlight=False)
        console.print(f"{source}: baselines that need training data are left out: {error}", markup=False)
        return []
