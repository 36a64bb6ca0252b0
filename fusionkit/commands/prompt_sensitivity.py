"""How much scores hang on the words around a text: the same texts read within several templates."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fusionkit.assembly.evaluation_options import EvaluationOptions
from fusionkit.data.cleaning import check_templates
from fusionkit.data.datamodule import DataModule
from fusionkit.data.texts.conversations import CONVERSATIONS
from fusionkit.distributed import rank
from fusionkit.errors import ConfigError, suggest
from fusionkit.files.atomic import write_text
from fusionkit.inference.evaluate import Split, evaluate
from fusionkit.model.model import VisionLanguageModel
from fusionkit.scoring.results import Draws, metrics_of
from fusionkit.tasks.base import Task

Prompts = Mapping[str, Sequence[str]]  # templates by kind


def check_prompts(prompts: Any, splits: Sequence[Split]) -> None:
    """Raise ConfigError unless these are lists of two templates or more, of kinds that the tasks of the splits read."""
    if not isinstance(prompts, Mapping):
        raise ConfigError(
            f"prompts is {prompts!r}, but has to be a section: prompts={{questions: ['Question: {{text}} Answer:', '{{text}}']}}"
        )
    scored = {name: split.tasks[name] for split in splits for name in split.scorers}
    known = list(dict.fromkeys(task.reads for task in scored.values() if takes_template(task)))
    for kind, templates in prompts.items():
        if kind not in known:
            unmoved = [name for name, task in scored.items() if task.reads == kind]
            reason = (
                f"on which templates have no effect, as task '{unmoved[0]}' does not read them within one"
                if unmoved
                else "which no task that is scored reads"
            )
            fix = suggest(str(kind), known) if known else "leave prompts out"
            raise ConfigError(f"prompts names '{kind}', {reason}; {fix}")
        texts = [each for each in templates if isinstance(each, str)] if isinstance(templates, Sequence) else []
        if isinstance(templates, str) or len(set(texts)) < 2:
            raise ConfigError(f"prompts.{kind} is {templates!r}, but has to be a list of two templates at least")
        for template in templates:
            check_templates({kind: template}, known, "prompts")


def prompt_sensitivity(
    model: VisionLanguageModel,
    splits: Sequence[Split],
    datamodule: DataModule,
    folder: Path,
    device: torch.device,
    options: EvaluationOptions,
    draws: Draws,
    prompts: Prompts,
) -> dict[str, dict[str, Any]]:
    """Evaluate the splits within each template, and write and print by metric what each scored and how far apart they are.

    {"<source>/<metric>": {"scores": {template: score}, "mean", "lowest", "highest"}}, in ``prompts.json``; the records of each
    evaluation are in ``prompts/<kind>_<number>``. Of several processes rank 0 writes; the others return nothing.
    """
    found: dict[str, dict[str, float]] = {}
    for kind, templates in prompts.items():
        chosen = [part for split in splits if (part := reading(split, kind)) is not None]
        for number, template in enumerate(templates, 1):
            place = folder / "prompts" / f"{kind}_{number}"
            with within(datamodule, {split.source for split in chosen}, kind, template):
                before = cut_texts(datamodule, chosen)
                scored, _ = evaluate(model, chosen, datamodule, place, device, replace(options, gallery=False), draws)
                if (cut := cut_texts(datamodule, chosen) - before) and rank() == 0:
                    print(f"prompts.{kind}: within '{template}' {cut:,} texts were cut at their max_length")
            for name, value in metrics_of([replace(each, guesses={}) for each in scored]).items():
                found.setdefault(name, {})[template] = value
    if rank() > 0:
        return {}
    told = {
        name: {
            "scores": scores,
            "mean": sum(scores.values()) / len(scores),
            "lowest": min(scores.values()),
            "highest": max(scores.values()),
        }
        for name, scores in found.items()
    }
    write_text(folder / "prompts.json", json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    print_prompts(told)
    return told


def takes_template(task: Task[Any]) -> bool:
    """Whether a task reads its texts within a template: conversations have one of their own, and captions that are said none."""
    return task.reads != CONVERSATIONS and task.replies_to != "caption"


def reading(split: Split, kind: str) -> Split | None:
    """The split with those of its tasks alone that read a kind of text within a template; None where there are none."""
    tasks = {name: task for name, task in split.tasks.items() if task.reads == kind and takes_template(task)}
    scorers = {name: scorer for name, scorer in split.scorers.items() if name in tasks}
    labels = {name: label for name, label in split.labels.items() if name in tasks}
    return replace(split, tasks=tasks, scorers=scorers, labels=labels, notes=dict) if scorers else None


def cut_texts(datamodule: DataModule, splits: Sequence[Split]) -> int:
    """How many texts of some splits were cut so far; every process has to ask."""
    return sum(datamodule.cut_texts(split.source, split.role)[1] for split in splits)


@contextmanager
def within(datamodule: DataModule, sources: set[str], kind: str, template: str) -> Iterator[None]:
    """Read a kind of text of some sources within a template, in place of their own."""
    before = {name: datamodule.sources[name] for name in sources}
    try:
        for name, source in before.items():
            datamodule.sources[name] = replace(source, template={**(source.template or {}), kind: template})
        yield
    finally:
        datamodule.sources.update(before)


def print_prompts(told: Mapping[str, Mapping[str, Any]], console: Console | None = None) -> None:
    """Print a row a metric and template, under each metric how far apart its scores are."""
    table = Table(title="the same texts within other words", title_justify="left", header_style="bold")
    table.add_column("metric")
    table.add_column("template", overflow="fold")
    table.add_column("score", justify="right")
    for name, about in told.items():
        for number, (template, score) in enumerate(about["scores"].items()):
            table.add_row("" if number else name, template, f"{score:.2f}")
        table.add_row("", "highest less lowest", f"[bold]{about['highest'] - about['lowest']:.2f}[/bold]")
        table.add_section()
    (console or Console()).print(table)
