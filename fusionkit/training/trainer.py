"""The training module, Lightning's trainer, loggers and callbacks of a run, from its configuration."""

import logging
import warnings
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict

from fusionkit.assembly.artifacts import collect_artifacts
from fusionkit.assembly.checks import (
    check_temperature,
)
from fusionkit.assembly.image_tokens import image_tokens_of
from fusionkit.assembly.parts import Parts, build_teacher, is_checkpoint_teacher
from fusionkit.assembly.precision import resolve_precision
from fusionkit.balance import Fixed
from fusionkit.checkpoints.save import WholeCheckpoints
from fusionkit.encoders.regions import require_width
from fusionkit.errors import ConfigError
from fusionkit.internals import keep_buckets, own_timeout, set_timeout, uses_multiprocessing
from fusionkit.training.callbacks import require_validation
from fusionkit.training.compiling import compile_parts
from fusionkit.training.ema import average_of
from fusionkit.training.gradient_cache import tell_of_micro_batches
from fusionkit.training.module import TrainingModule
from fusionkit.training.processes.batch_norms import SharedStatistics
from fusionkit.training.processes.life import RankWatch, timeout_of
from fusionkit.training.processes.ranks import with_nodes
from fusionkit.training.processes.sharding import SPLIT
from fusionkit.training.recompute import recompute_parts
from fusionkit.training.steps.state import STORED

NOTICES = (  # of libraries, about what is meant to be so here
    ".*LeafSpec",  # Lightning's own use of torch
    "Found .* in eval mode at the start of training",  # the teacher and frozen encoders
    "The '.*' does not have many workers",  # data.num_workers is a choice, and images may be cached
    "The number of training batches .* is smaller than the logging interval",  # a small data set is no mistake
    "Checkpoint directory .* exists and is not empty",  # run_folder.check_folder has spoken
    "find_unused_parameters=True was specified",  # internals.keep_buckets
    ".*dataloader.* (is not|isn't) resumable",  # the data module resumes itself
    "FSDP2-wrapped module .* returned a view tensor",  # which nothing changes in place
)


def build_module(parts: Parts) -> TrainingModule:
    """The Lightning module that trains the parts; raises ConfigError or DataError where it cannot work."""
    config = parts.config
    parts.thaw()
    check_temperature(parts.model)
    for source in parts.objectives:
        if (width := parts.datamodule.images.feature_size(source, "train")) is not None:
            require_width(width, getattr(parts.model.image_encoder, "feature_size", width))
    distillation, told = None, list[str]()
    if is_checkpoint_teacher(config.teacher):
        distillation, told = instantiate(config.teacher, _convert_="all").build(parts)
    module = TrainingModule(
        parts.model,
        parts.tasks,
        parts.objectives,
        balance=instantiate(config.balance) if config.balance else Fixed(),
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        teacher=build_teacher(config, parts.model, parts.tasks),
        artifacts=collect_artifacts(config, parts.datamodule, parts.model),
        stages=instantiate(config.get("stages") or {}, _convert_="all"),  # OmegaConf would take a Stage apart
        max_skipped_steps=config.max_skipped_steps,
        image_tokens=image_tokens_of(config, parts.datamodule, parts.model.image_encoder),
        distillation=distillation,
        frozen_weights=config.get("frozen_weights", STORED),
        gradient_cache=config.get("gradient_cache"),
        average=average_of(OmegaConf.to_container(config, resolve=True).get("ema")),  # type: ignore[union-attr]
    )
    told += module.told
    used = sorted({name for row in module.objectives.values() for name in row})
    accumulated = config.trainer.get("accumulate_grad_batches") or 1
    told += tell_of_micro_batches(accumulated, module.gradient_cache, parts.tasks, used)
    told += recompute_parts(config.get("activation_checkpointing"), parts.model, parts.tasks)
    on_gpu = config.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    section = OmegaConf.to_container(config, resolve=True).get("compile")  # type: ignore[union-attr]
    told += compile_parts(section, parts.model, "cuda" if on_gpu else "cpu")
    for sentence in told:
        rank_zero_only(print)(sentence, flush=True)
    return module


def build_trainer(config: DictConfig) -> Trainer:
    """Lightning's trainer with our callbacks and loggers; writes nothing yet."""
    loggers = [] if config.trainer.fast_dev_run else build_loggers(config)
    strategy = config.trainer.get("strategy")
    is_split = isinstance(strategy, DictConfig) and str(strategy.get("_target_")).endswith(".FullySharded")
    if is_split:
        _require_split_precision(resolve_precision(config.trainer.precision, config.trainer.accelerator))
    options: dict[str, Any] = {"callbacks": build_callbacks(config), "logger": loggers or False}
    is_shared = config.trainer.get("sync_batchnorm")
    if is_shared:
        given = instantiate(config.trainer.get("plugins"), _convert_="all") or []
        options["plugins"] = [*(given if isinstance(given, list) else [given]), SharedStatistics()]
        if config.get("gradient_cache") is not None:
            raise ConfigError(
                "trainer.sync_batchnorm: batch norms would wait for chunks (gradient_cache) that other processes do not have; "
                "set it to false, or gradient_cache to null"
            )
    trainer = bare_trainer(config, **options)
    if uses_multiprocessing(trainer):
        raise ConfigError(
            f"trainer.strategy={strategy} hands the run to processes of multiprocessing, which cannot take all of it along; use "
            "trainer.strategy=ddp, in a notebook too (fk.train with processes=True)"
        )
    if is_split:
        _require_splittable(config, trainer.num_nodes * trainer.num_devices)
    if is_shared and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise ConfigError(
            "trainer.sync_batchnorm: torch shares statistics of batch norms between GPUs alone; set it to false on the CPU"
        )
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # and not the user's own, or one of shards
        trainer.strategy.checkpoint_io = WholeCheckpoints()
    elif (
        is_split and strategy.get("save") == SPLIT and not isinstance(trainer.strategy.checkpoint_io, WholeCheckpoints)
    ):
        raise ConfigError(
            f"trainer.strategy.save=split: {type(trainer.strategy.checkpoint_io).__name__} does not put parts together; leave "
            "trainer.plugins out, or set trainer.strategy.save=whole"
        )
    return trainer


def _require_split_precision(precision: str) -> None:
    if precision not in ("32-true", "bf16-mixed"):
        raise ConfigError(
            f"trainer.precision={precision} has not been seen to work with trainer=fsdp; use bf16-mixed or 32-true, or use "
            "trainer=ddp"
        )


def _require_splittable(config: DictConfig, processes: int) -> None:
    """ConfigError for what has nothing to split, or has not been seen to work with split weights."""
    if processes == 1:
        raise ConfigError(
            "trainer.devices is 1, but trainer=fsdp splits the weights among several processes; give trainer.devices=2 or more, "
            "or use trainer=gpu or trainer=cpu"
        )
    if config.trainer.get("sync_batchnorm"):
        raise ConfigError(
            "trainer.sync_batchnorm: batch norms of split weights have the statistics of each process; set it to false, or use "
            "trainer=ddp"
        )
    section = config.get("compile") or {}
    if section if isinstance(section, bool) else section.get("parts"):
        raise ConfigError(
            "compile.parts: compiled blocks have not been tried where their weights are split; set compile.parts=false, or use "
            "trainer=ddp"
        )


def build_loggers(config: DictConfig) -> list[Logger]:
    """The loggers that the configuration names; one that cannot work raises ConfigError."""
    return [instantiate(block) for block in (config.logger or {}).values() if block is not None]


def build_callbacks(config: DictConfig) -> list[Callback]:
    """What happens around the steps; without a side effect, so that a mistake in one can be told early."""
    built = {name: instantiate(block) for name, block in (config.callbacks or {}).items() if block is not None}
    for name, callback in built.items():
        if monitor := getattr(callback, "monitor", None):
            require_validation(f"callbacks.{name}.monitor", monitor)
    return list(built.values())


def bare_trainer(config: DictConfig, **options: Any) -> Trainer:
    """A trainer that writes nothing unless the options say so: it knows the device, the precision and how many ranks."""
    quieten_libraries()
    precision = resolve_precision(config.trainer.precision, config.trainer.accelerator)
    section: Any = config.trainer.copy()  # a part of the whole still, as which a mistake names it
    with open_dict(section):
        timeout = timeout_of(section.pop("timeout", None))
        for name in ("sync_batchnorm", "slurm"):  # of a training, and of who submits one
            section.pop(name, None)
    nodes = {name: value for name, value in with_nodes({"num_nodes": section.get("num_nodes")}).items() if value}
    trainer: Trainer = instantiate(section, **{"precision": precision, "logger": False, **nodes, **options})
    keep_buckets(trainer)
    timeout = min(timeout, own_timeout(trainer) or timeout)
    set_timeout(trainer, 1.25 * timeout + 10)  # RankWatch, which knows who is waited for, speaks first
    if trainer.world_size > 1:
        trainer.callbacks.append(RankWatch(timeout))  # type: ignore[attr-defined]
    return trainer


def quieten_libraries() -> None:
    """Leave out what libraries say about what is meant to be so, and where in their code the rest comes from."""
    for library in ("lightning.pytorch", "lightning.fabric"):  # the device and the rest stand in our own summary
        logging.getLogger(library).setLevel(logging.WARNING)
    for message in NOTICES:
        warnings.filterwarnings("ignore", message=message)
    warnings.formatwarning = lambda message, *place, **more: f"warning: {message}\n"
