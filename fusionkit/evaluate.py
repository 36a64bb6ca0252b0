"""``fusionkit evaluate``: score a checkpoint on the data it was trained with, or on others in the same formats."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf

from fusionkit.benchmarking import evaluate_benchmarks
from fusionkit.cli import STORED, load
from fusionkit.config import EvaluateConfig, check_top_level
from fusionkit.distributed import join, rank, world_size
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.evaluation.attention import draw_attention
from fusionkit.evaluation.records import require_writable
from fusionkit.evaluation.replies import Oracle
from fusionkit.evaluation.run import evaluate_run, splits_of
from fusionkit.evaluation.table import print_scores
from fusionkit.rank import run_in_ranks
from fusionkit.saliency import find_layer
from fusionkit.tasks.grounding_gradcam import by_matching
from fusionkit.tasks.itm import ITM
from fusionkit.training.folder import keep_evaluation
from fusionkit.training.launch import Parts, bare_trainer, build_loggers, dims_of, evaluation_options
from fusionkit.training.loggers import finish, log_config
from fusionkit.training.module import active_objectives
from fusionkit.training.restore import load_parts
from fusionkit.training.watch import Watch


def evaluate(config: DictConfig) -> None:
    """Score a checkpoint, in as many processes as ``config.devices``."""
    share("fusionkit.evaluate:evaluate_share", config)


def share(job: str, config: DictConfig) -> None:
    """Do a job ("module:function") on the configuration, here or in several processes that share it."""
    if not isinstance(config.devices, int) or config.devices < 1:
        raise ConfigError(f"devices is {config.devices}, but has to be a number of processes from 1 up")
    if config.devices == 1:
        load(job)(config)
    else:
        run_in_ranks(job, config, config.devices)


def evaluate_share(config: DictConfig) -> None:
    """Score a checkpoint together with the other processes, if there are any."""
    parts, folder = restore(config)
    if config.overlays:
        check_overlays(config, parts)
    if rank() == 0:
        keep_evaluation(folder, config, parts)
    if config.get("benchmark"):
        with watching(config, parts, folder, "test") as watch:
            return evaluate_benchmarks(config, parts, folder, device_of(parts), watch)
    objectives = {source: parts.objectives[source] for source in chosen_sources(config, parts)}
    roles, active = chosen_roles(config, parts), active_objectives(objectives, parts.tasks)
    check_files(parts, active, roles)
    with watching(config, parts, folder, roles[0]) as watch:
        watch.log_scores(score(parts, active, folder, roles, device_of(parts), watch.log_answers))
    if config.overlays and rank() == 0:
        oracle = oracle_of(parts, device_of(parts))
        for role, source in splits_of(parts.datamodule, active, roles):
            label = source if role == roles[0] else f"{source}_{role}"
            samples = parts.datamodule.samples(source, role)
            draw_attention(oracle, source, active[source], samples, config.overlays, folder / "attention" / label)
        print(f"where texts look: {folder}/attention")


@contextmanager
def watching(config: DictConfig, parts: Parts, folder: Path, prefix: str) -> Iterator[Watch]:
    """What tells the loggers of ``config.logger`` of the evaluation, as a run of its own beside the one that trained."""
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


def oracle_of(parts: Parts, device: torch.device, **options: Any) -> Oracle:
    """The checkpoint as what can be asked, on the device; the tasks that were trained answer.

    A matching task also answers phrases, as NAME_gradcam after all others, if the fusion's text looks at the image.
    """
    active = active_objectives(parts.objectives, parts.tasks)
    sources = {source: list(names) for source, names in active.items()}
    trained = {name: task for name, task in parts.tasks.items() if any(name in names for names in active.values())}
    dims = dims_of(parts.model, parts.datamodule.tokenizer, ())
    for name, task in list(trained.items()) if "attention" in parts.model.fusion.provides else ():
        if isinstance(task, ITM) and task.replies_to == "text":
            trained[f"{name}_gradcam"] = by_matching(task, dims, options.get("layer"))
            for names in sources.values():
                names += [f"{name}_gradcam"] if name in names else []
    for module in (parts.model, *trained.values()):
        module.to(device)
    return Oracle(parts.model, trained, sources, parts.datamodule, device, evaluation_options(parts.config), **options)


def restore(config: DictConfig, schema: type = EvaluateConfig) -> tuple[Parts, Path]:
    """The parts of ``config.checkpoint``, and where what is made of them goes.

    What the run itself would write goes to its folder; anything else to ``evaluation`` in it, so that it replaces nothing.
    """
    check_top_level(config, schema)
    join()
    overrides = {name: config[name] for name in STORED}
    if config.get("benchmark"):
        overrides["data"] = {"root": "."} | dict(config.data)  # nothing of the run's own data is read
    parts = load_parts(config.checkpoint, overrides)
    seed_everything(parts.config.seed, workers=True, verbose=False)
    checkpoint = Path(config.checkpoint)
    home = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    is_own = config.split is None and config.sources is None and not config.data and not config.get("benchmark")
    folder = Path(config.output_dir or (home if is_own else home / "evaluation"))
    require_writable(folder)
    options = parts.config.evaluation.options
    if options.get("cache") is None:
        OmegaConf.update(options, "cache", str(home / "cache"), force_add=True)
    return parts, folder


def chosen_sources(config: DictConfig, parts: Parts) -> list[str]:
    """The sources to evaluate: those of ``config.sources``, one or a list, or all that have objectives."""
    chosen = [config.sources] if isinstance(config.sources, str) else list(config.sources or parts.objectives)
    for source in chosen:
        if source not in parts.objectives:
            raise ConfigError(f"sources: the checkpoint has no source '{source}'; {suggest(source, parts.objectives)}")
    return chosen


def chosen_roles(config: DictConfig, parts: Parts) -> list[str]:
    """The roles of the sources to evaluate: ``config.split``, one or a list, or what the run evaluates."""
    if config.split is None:
        return list(parts.config.evaluation.roles)
    return [config.split] if isinstance(config.split, str) else list(config.split)


def check_files(parts: Parts, objectives: Mapping[str, Iterable[str]], roles: Sequence[str]) -> None:
    """Read all annotations before the first source is evaluated; a folder may lack the files of one of several sources."""
    for role, source in splits_of(parts.datamodule, objectives, roles):
        try:
            parts.datamodule.samples(source, role)
        except DataError as error:
            others = [name for name in objectives if name != source]
            hint = f"; to evaluate without source {source}: sources=[{','.join(others)}]" if others else ""
            raise DataError(f"source {source}: {error}{hint}") from error


def device_of(parts: Parts) -> torch.device:
    """The device that the checkpoint's trainer, or the command line's, would use; of several GPUs each process has one."""
    device = bare_trainer(parts.config, devices=1, strategy="auto").strategy.root_device
    if device.type != "cuda":
        return device
    if rank() >= torch.cuda.device_count():
        raise ConfigError(
            f"devices={world_size()}, but there are {torch.cuda.device_count()} GPUs; give devices=that many"
        )
    return torch.device("cuda", rank())


def score(
    parts: Parts,
    objectives: Mapping[str, Iterable[str]],
    folder: Path,
    roles: Sequence[str],
    device: torch.device,
    watch: Callable[..., None] | None = None,
) -> dict[str, float]:
    """Evaluate, print the scores beside their baselines, and say where to look; ``watch`` as in ``evaluate_run``."""
    for module in (parts.model, *parts.tasks.values()):
        module.to(device)
    options = evaluation_options(parts.config)
    metrics = evaluate_run(
        parts.model, parts.tasks, parts.datamodule, objectives, folder, device, options, roles, watch
    )
    if rank() > 0:
        return metrics
    print_scores(metrics)
    pictures = f"   pictures: {folder}/gallery" if (folder / "gallery").exists() else ""
    print(f"scores: {folder}/metrics.json   answers: {folder}/predictions{pictures}")
    return metrics
