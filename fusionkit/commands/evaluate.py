"""``fusionkit evaluate``: score a checkpoint on the data it was trained with, or on others in the same formats."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.image_tokens import image_tokens_of
from fusionkit.assembly.parts import Parts, evaluation_options
from fusionkit.commands.benchmarks import benchmark_splits
from fusionkit.commands.evaluation_setup import chosen, device_of, restore, share
from fusionkit.commands.predict_images import predictor_of
from fusionkit.commands.prompt_sensitivity import check_prompts, prompt_sensitivity
from fusionkit.commands.rounding import measure_rounding
from fusionkit.commands.run_folder import keep_evaluation
from fusionkit.data.datamodule import DataModule
from fusionkit.distributed import rank
from fusionkit.errors import ConfigError
from fusionkit.inference.attention_samples import draw_attention
from fusionkit.inference.evaluate import Split, own_splits, splits_of
from fusionkit.inference.evaluate import evaluate as run
from fusionkit.model.saliency import find_layer
from fusionkit.scoring.results import Draws, metrics_of
from fusionkit.scoring.scorers import notes_of
from fusionkit.training.loggers import Watch, finish, log_config
from fusionkit.training.trainer import build_loggers
from fusionkit.visual.score_table import print_details, print_scores

Objectives = Mapping[str, Iterable[str]]  # the names of the tasks by source


def evaluate(config: DictConfig) -> None:
    """Score a checkpoint, in as many processes as ``config.devices``."""
    share("fusionkit.commands.evaluate:evaluate_share", config)


def evaluate_share(config: DictConfig) -> None:
    """Score a checkpoint together with the other processes, if there are any."""
    parts, folder = restore(config)
    device, draws = device_of(parts), Draws(config.resamples, config.seed)
    if config.overlays:
        check_overlays(config, parts)
    if config.get("benchmark"):
        splits, data = benchmark_splits(config, parts)
        check_prompts(config.prompts, splits)
        with watching(config, parts, folder, "test") as watch:
            score_benchmarks(parts, splits, data, folder, device, draws, watch)
        measure_rounding(config, parts, splits, data, folder, device)
        return ask_otherwise(config, parts, splits, data, folder, device, draws)
    objectives, roles = chosen(config, parts)
    splits = own_splits(parts.tasks, parts.datamodule, objectives, roles)
    check_prompts(config.prompts, splits)
    with watching(config, parts, folder, roles[0]) as watch:
        watch.log_scores(score(parts, objectives, folder, roles, device, draws, watch.log_answers))
    measure_rounding(config, parts, splits, parts.datamodule, folder, device)
    ask_otherwise(config, parts, splits, parts.datamodule, folder, device, draws)
    if config.overlays and rank() == 0:
        draw_overlays(parts, objectives, folder / "attention", roles, device, config.overlays)


def score_benchmarks(
    parts: Parts,
    splits: Sequence[Split],
    data: DataModule,
    folder: Path,
    device: torch.device,
    draws: Draws,
    watch: Watch,
) -> None:
    """Evaluate on published benchmarks, print the scores beside their intervals, and say where to look."""
    options = evaluation_options(parts.config)
    scored, details = run(parts.model, splits, data, folder, device, options, draws, watch.log_answers)
    if rank() == 0:
        print_details(details)
        watch.log_scores(metrics_of([replace(each, guesses={}) for each in scored]))
        print(f"scores: {folder}/metrics.json   intervals: {folder}/details.json   answers: {folder}/predictions")


def ask_otherwise(
    config: DictConfig,
    parts: Parts,
    splits: Sequence[Split],
    data: DataModule,
    folder: Path,
    device: torch.device,
    draws: Draws,
) -> None:
    """Score the texts within the templates of ``config.prompts``, if there are any."""
    if config.prompts:
        options = evaluation_options(parts.config)
        prompt_sensitivity(parts.model, splits, data, folder, device, options, draws, config.prompts)


def score(
    parts: Parts,
    objectives: Objectives,
    folder: Path,
    roles: Sequence[str],
    device: torch.device,
    draws: Draws | None = None,
    watch: Callable[..., None] | None = None,
) -> dict[str, float]:
    """Evaluate on the run's own data, print the scores beside their baselines, and say where to look."""
    splits = own_splits(parts.tasks, parts.datamodule, objectives, roles)
    options = evaluation_options(parts.config)
    if tokens := image_tokens_of(parts.config, parts.datamodule, parts.model.image_encoder):
        tokens.use(
            [(source, role) for role, source in splits_of(parts.datamodule, objectives, roles)],
            device,
            options.precision,
        )
    scored, _ = run(parts.model, splits, parts.datamodule, folder, device, options, draws, watch)
    about, metrics = said_beside(parts, objectives, roles), metrics_of(scored)
    if rank() > 0:
        return metrics
    print_scores(metrics)
    for line in about:
        print(line)
    pictures = f"   pictures: {folder}/gallery" if (folder / "gallery").exists() else ""
    print(f"scores: {folder}/metrics.json   answers: {folder}/predictions{pictures}")
    return metrics


def said_beside(parts: Parts, objectives: Objectives, roles: Sequence[str]) -> list[str]:
    """What the scores of the run's own data do not show: limits of their rules, and texts that were not read to the end."""
    data, lines = parts.datamodule, []
    for role, source in splits_of(data, objectives, roles):
        label = source if role == roles[0] else f"{source}_{role}"
        tasks = {name: parts.tasks[name] for name in objectives[source]}
        lines += [f"{label}: {what}: {note}" for what, note in notes_of(tasks, data.samples(source, role)).items()]
        lines += [f"{label}: {told}" for told in data.told_missing(source, role)]
        lines += data.told_cuts(source, role)
    return lines


@contextmanager
def watching(config: DictConfig, parts: Parts, folder: Path, prefix: str) -> Iterator[Watch]:
    """What tells the loggers of ``config.logger`` of the evaluation, as a run of its own beside the one that trained.

    It begins with ``keep_evaluation``, once it is sure that there is something to score.
    """
    if rank() == 0:
        keep_evaluation(folder, config, parts)
    run = parts.config.copy()
    for key, value in {"output_dir": str(folder), "logger": config.get("logger") or {}}.items():
        OmegaConf.update(run, key, value, merge=False, force_add=True)
    loggers = build_loggers(run) if rank() == 0 else []
    about: Any = {"evaluated": {name: config[name] for name in ("checkpoint", "split", "sources")}}
    about["evaluated"]["benchmark"] = list(config.get("benchmark") or ())
    try:
        if loggers:
            log_config(loggers, about | OmegaConf.to_container(run, resolve=True), parts.parameters, "evaluate")
        yield Watch(loggers, prefix)
    finally:
        finish()


def check_overlays(config: DictConfig, parts: Parts) -> None:
    """ConfigError where there is nothing to draw."""
    if config.overlays < 0:
        raise ConfigError(f"overlays is {config.overlays}; give how many samples of each task to draw, or 0")
    if config.get("benchmark"):
        raise ConfigError("overlays are drawn of the run's own data; leave out benchmark, or overlays")
    find_layer(parts.model, None)


def draw_overlays(
    parts: Parts, objectives: Objectives, folder: Path, roles: Sequence[str], device: torch.device, count: int
) -> None:
    """Write where the texts of ``count`` samples of each task look, and say where that is."""
    predictor = predictor_of(parts, device)
    for role, source in splits_of(parts.datamodule, objectives, roles):
        label = source if role == roles[0] else f"{source}_{role}"
        draw_attention(
            predictor, source, objectives[source], parts.datamodule.samples(source, role), count, folder / label
        )
    print(f"where texts look: {folder}")
