"""``fusionkit train``: build the run that the configuration describes, train it, evaluate it."""

import os
from pathlib import Path

import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from fusionkit.config import check_arguments, check_objectives, check_top_level
from fusionkit.distributed import leave
from fusionkit.errors import ConfigError
from fusionkit.evaluate import score
from fusionkit.rank import run_in_ranks
from fusionkit.schemas import TrainConfig
from fusionkit.training.folder import (
    check_folder,
    checkpoints,
    is_finished,
    last_checkpoint,
    prepare_folder,
    resume_from,
)
from fusionkit.training.launch import Parts, build_module, build_parts, build_trainer
from fusionkit.training.loggers import finish, log_config
from fusionkit.training.module import TrainingModule
from fusionkit.training.ranks import is_rank
from fusionkit.training.restore import initialise, load_weights, read_checkpoint, start_from
from fusionkit.training.saving import LAST
from fusionkit.training.summary import print_run
from fusionkit.training.watch import Watch
from fusionkit.training.weights import require_fit


def train(config: DictConfig) -> float | None:
    """Train and evaluate; gives the mean score of the last validation, which a sweep may optimise (None over several ranks)."""
    check_top_level(config, TrainConfig)
    check_objectives(config)
    check_arguments(config)
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed is {config.seed}, but has to be a whole number from 0 to {2**32 - 1}")
    is_main = getattr(rank_zero_only, "rank", 0) == 0
    if is_main:
        check_folder(config)
    if config.resume == "auto" and is_finished(config):  # every rank sees it, lest one waits for the others
        if is_main:
            print(f"{config.output_dir} is finished")
        return None
    trainer = build_trainer(config)
    if trainer.world_size > 1 and not is_rank():
        run_in_ranks("fusionkit.train:train", config, trainer.world_size)
        return None
    seed_everything(config.seed, workers=True, verbose=False)
    if config.checkpoint:
        start_from(config, config.checkpoint)
    parts = build_parts(config)
    parts.datamodule.require_apart()
    module = build_module(parts)
    if config.checkpoint:
        fresh = initialise(module, config.checkpoint)
        if is_main:
            print(f"started from {config.checkpoint}" + (f"; new: {', '.join(fresh)}" if fresh else ""))
    module.build_optimizer()  # what cannot work is told before anything in the folder is changed
    last = resume_from(config)
    if is_main and last:
        require_fit(module.state_dict(), read_checkpoint(last)["state_dict"], last)
        if last.name != LAST:
            print(f"{last.with_name(LAST)} cannot be read; going on from {last.name}", flush=True)
    if is_main and not config.trainer.fast_dev_run:
        prepare_folder(config)
    try:
        log_config(trainer.loggers, OmegaConf.to_container(config, resolve=True), parts.parameters)  # type: ignore[arg-type]
        if is_main:
            print_run(parts, trainer)
        fit(trainer, module, parts, last)
        leave()
        if trainer.is_global_zero and not config.trainer.fast_dev_run:
            evaluate(trainer, module, parts)
        mean = trainer.callback_metrics.get("val/mean")
        return None if mean is None else float(mean)
    finally:
        finish()


def fit(trainer: Trainer, module: TrainingModule, parts: Parts, last: Path | None) -> None:
    """Train, on from the last checkpoint if there is one; a Ctrl-C says how to go on."""
    try:
        trainer.fit(module, datamodule=parts.datamodule, ckpt_path=last, weights_only=True)
    except SystemExit:  # what Lightning makes of a Ctrl-C
        if not trainer.interrupted:
            raise
        if last := last_checkpoint(parts.config):
            print(f"\n{last} is kept; the same command with resume=true goes on from there")
        raise KeyboardInterrupt from None


def evaluate(trainer: Trainer, module: TrainingModule, parts: Parts) -> None:
    """Score the best or last checkpoint on the roles that the configuration names."""
    named = {path.stem: path for path in checkpoints(parts.config)}
    if path := named.get(parts.config.evaluation.checkpoint, named.get("last")):
        load_weights(module, read_checkpoint(path), path)
    parts.datamodule.trainer = None  # this rank evaluates all of it
    if trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)  # and may have the processors of those that are done
    folder, roles = Path(parts.config.output_dir), list(parts.config.evaluation.roles)
    watch = Watch(trainer.loggers, "test", trainer.global_step)
    watch.log_scores(score(parts, module.objectives, folder, roles, trainer.strategy.root_device, watch.log_answers))
