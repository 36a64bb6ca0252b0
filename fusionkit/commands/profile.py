"""``fusionkit profile``: where the milliseconds of a training step go, and what would save most of them; keeps nothing."""

import os
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf, open_dict

from fusionkit.assembly.precision import resolve_precision
from fusionkit.cli.schemas import check
from fusionkit.commands.plan import processes_of
from fusionkit.commands.train import build, fit
from fusionkit.encoders.base import tower_of
from fusionkit.errors import ConfigError
from fusionkit.training.module import TrainingModule
from fusionkit.training.step_clock import DATA, LOOP, CountedSteps, StepClock
from fusionkit.training.trainer import build_trainer

WORTH = 0.02  # a remedy that saves less of a step is not told
SHOWN = 3
COUNTS = ("warmup", "steps")
HIDDEN = 0.0005  # rows of less of a step stand together


class Remedy(NamedTuple):
    """Seconds of a step that an option saves at most, or None where they are not known, and what to write."""

    seconds: float | None
    told: str


def profile(config: DictConfig) -> None:
    """Train a few steps in this process and print where their time goes; writes nothing but data that are not there yet."""
    check(config, "ProfileConfig")
    warmup, steps = counts_of(config)
    processes = processes_of(config)
    with TemporaryDirectory() as folder:
        config = timed_run(config, folder, warmup + steps)
        seed_everything(config.seed, workers=True, verbose=False)
        if processes > 1 and config.trainer.accelerator == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
        trainer = build_trainer(config)
        parts, module = build(config, None)
        clock = StepClock()
        clock.watch_parts(module)
        counted = CountedSteps(clock, warmup, steps)
        trainer.profiler = clock  # type: ignore[attr-defined]
        trainer.callbacks.append(counted)  # type: ignore[attr-defined]
        fit(trainer, module, parts, config, None)
    if not counted.found:
        raise ConfigError(
            f"the training ended before {warmup + steps} steps; give fewer (profile.warmup, profile.steps), or see "
            "scheduler.max_minutes and the callbacks that end a run"
        )
    seconds = {label: total / steps for label, total in counted.found.items()}
    images = sum(parts.datamodule.sources[name].batch_size for name in module.objectives)
    images *= trainer.accumulate_grad_batches
    alone = f", one process of {processes} alone: what they exchange is told by fusionkit plan" if processes > 1 else ""
    print(f"a step on {trainer.strategy.root_device}, precision {trainer.precision}, {images} images{alone}")
    for line in (*rows(seconds, images), *advice(seconds, list(remedies(seconds, config, module)))):
        print(line)


def counts_of(config: DictConfig) -> tuple[int, int]:
    """Steps that are not timed, and those that are."""
    section: Any = OmegaConf.to_container(config, resolve=True)
    given = section["profile"]
    if not isinstance(given, dict) or given.keys() != set(COUNTS):
        raise ConfigError(f"profile is {given!r}, but has to hold {' and '.join(COUNTS)}, numbers of steps")
    for name, count in given.items():
        if type(count) is not int or count < 1:
            raise ConfigError(f"profile.{name} is {count!r}, but has to be a whole number from 1")
    return given["warmup"], given["steps"]


def timed_run(config: DictConfig, folder: str, steps: int) -> DictConfig:
    """The training of these steps alone, in one process, without validation, that keeps what it writes in a folder."""
    config = config.copy()
    with open_dict(config):
        data: Any = OmegaConf.to_container(config, resolve=True)
        config.data = data["data"]  # which may lie in the run's own folder
        del config["profile"]
        config.output_dir = folder
        config.resume, config.overwrite = False, False
        config.logger = {name: block for name, block in (config.logger or {}).items() if name == "csv"}
        config.trainer.update(
            devices=1, strategy="auto", max_steps=steps, max_epochs=-1, limit_val_batches=0, num_sanity_val_steps=0
        )
        for name in ("slurm", "sync_batchnorm", "num_nodes"):
            config.trainer.pop(name, None)
    return config


def rows(seconds: dict[str, float], images: int) -> Iterator[str]:
    """The table: milliseconds of a step and their share, most first."""
    whole = sum(seconds.values())
    small = [label for label, each in seconds.items() if each < HIDDEN * whole]
    shown = {label: each for label, each in seconds.items() if label not in small}
    shown |= {f"{len(small)} others": sum(seconds[label] for label in small)} if small else {}
    for label, each in sorted(shown.items(), key=lambda row: -row[1]):
        yield f"  {label:<40}{1000 * each:>10,.1f} ms{each / whole:>8.1%}"
    yield f"  {'a step':<40}{1000 * whole:>10,.1f} ms   {1 / whole:,.2f} steps/s, {images / whole:,.1f} images/s"


def advice(seconds: dict[str, float], found: list[Remedy]) -> Iterator[str]:
    """The remedies that save most, in words."""
    whole = sum(seconds.values())
    worth = [one for one in found if one.seconds is None or one.seconds >= WORTH * whole]
    worth.sort(key=lambda one: -(one.seconds if one.seconds is not None else 0.0))
    if not worth:
        yield "no option that leaves the training as it is would save more than 2% of a step"
    for one in worth[:SHOWN]:
        saves = (
            "not measured"
            if one.seconds is None
            else f"at most {1000 * one.seconds:,.0f} ms, {one.seconds / whole:.0%}"
        )
        yield f"{one.told} ({saves})"


def remedies(seconds: dict[str, float], config: DictConfig, module: TrainingModule) -> Iterator[Remedy]:
    """Options that change how long a step takes, and not what is trained."""
    waiting = seconds.get(DATA, 0.0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config.data.num_workers == 0 and cores > 1:
        yield Remedy(waiting, f"data.num_workers={min(8, cores - 1)}: batches are made beside the steps")
    elif waiting:
        yield Remedy(waiting, "data.num_workers: more processes that make batches, or smaller pictures on the disk")
    tower = tower_of(module.model.image_encoder)
    if module.image_tokens is None and not any(parameter.requires_grad for parameter in tower.parameters()):
        yield Remedy(
            seconds.get("image encoder", 0.0) + waiting,
            "image_tokens.folder=FOLDER: what the frozen image encoder makes of each image is computed once (without random "
            "augmentation, or of some views)",
        )
    if config.activation_checkpointing:
        forward = sum(seconds.get(label, 0.0) for label in ("image encoder", "text encoder", "fusion"))
        yield Remedy(
            forward, "activation_checkpointing=false: layers are not computed twice; takes memory (fusionkit plan)"
        )
    every = (config.balance or {}).get("gradients_every_n_steps") or 0
    if every and every < 100:
        yield Remedy(
            seconds.get("balance of the losses", 0.0) * (1 - every / 100),
            "balance.gradients_every_n_steps=100: norms and cosines of gradients are measured less often",
        )
    if config.trainer.log_every_n_steps < 50:
        yield Remedy(seconds[LOOP] / 2, "trainer.log_every_n_steps=50: fewer rows are logged")
    for name, block in (config.callbacks or {}).items():
        kind = str((block or {}).get("_target_")).rpartition(".")[2]
        if not kind.endswith("Checkpoint"):  # without which a run cannot go on
            yield Remedy(seconds.get(f"callback {kind}", 0.0), f"~callbacks.{name}: what it watches is not told")
    yield from faster_products(config)


def faster_products(config: DictConfig) -> Iterator[Remedy]:
    """What makes matrix products faster on the device at hand."""
    trainer = config.trainer
    quick = resolve_precision("auto", trainer.accelerator)
    if trainer.precision == "32-true" and quick != "32-true":
        yield Remedy(None, f"trainer.precision={quick}: this device is fast at it")
    if torch.cuda.is_available() and trainer.accelerator == "cpu":
        yield Remedy(None, "trainer=gpu: there is a GPU, and trainer.accelerator=cpu leaves it idle")
    elif torch.cuda.is_available() and not (config.compile and config.compile.parts):
        yield Remedy(
            None, "compile.parts=[image_encoder,text_encoder,fusion]: their layers are compiled at the first step"
        )
