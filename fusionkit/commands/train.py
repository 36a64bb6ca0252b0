"""``fusionkit train``: build the run that the configuration describes, train it, evaluate it."""

import copy
import os
import signal
import threading
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict

from fusionkit.assembly.checks import lonely
from fusionkit.assembly.parts import Parts, build_parts
from fusionkit.assembly.trust import read_stored
from fusionkit.assembly.vocabulary import own_vocabularies, tell_unknown
from fusionkit.checkpoints.adapters import require_same_adapters
from fusionkit.checkpoints.load import initialise, load_weights, read_checkpoint, start_from, told_of
from fusionkit.checkpoints.save import LAST
from fusionkit.cli.schemas import check
from fusionkit.commands.evaluate import score
from fusionkit.commands.run_folder import (
    GoingOn,
    check_folder,
    checkpoints,
    is_finished,
    keep_configuration,
    last_checkpoint,
    prepare_folder,
    resume_from,
)
from fusionkit.commands.run_summary import print_run
from fusionkit.commands.slurm import submit
from fusionkit.commands.worker import run_in_ranks
from fusionkit.distributed import is_lost, leave
from fusionkit.errors import DataError, LostRankError, UserError
from fusionkit.files.lock import locked_folder
from fusionkit.signals import Stopped, asked, listening, watch_parent
from fusionkit.training.callbacks import Pruning
from fusionkit.training.loggers import Watch, finish, log_config
from fusionkit.training.memory.table import fixed_rows
from fusionkit.training.module import TrainingModule
from fusionkit.training.processes.batch_norms import told_own_rows
from fusionkit.training.processes.life import StopWhenAsked
from fusionkit.training.processes.ranks import is_child_rank, is_main, is_rank, is_started, is_step
from fusionkit.training.processes.sharding import make_whole
from fusionkit.training.resume import changed, require_resumable, require_state
from fusionkit.training.trainer import build_module, build_trainer


@dataclass(frozen=True)
class Trained:
    """What this process has trained: the parts as they were scored, or as a Ctrl-C left them."""

    parts: Parts
    device: torch.device
    metrics: dict[
        str, float
    ]  # of the evaluation that ends the run; none after a Ctrl-C, a fast_dev_run or where a search cut it short
    mean: float | None  # score of the last validation
    is_interrupted: bool = False


def train(config: DictConfig) -> float | None:
    """Train and evaluate; gives the mean score of the last validation, which a sweep may optimise."""
    trained = train_here(config)
    if not isinstance(trained, Trained):
        return trained
    if trained.is_interrupted:
        raise KeyboardInterrupt
    return trained.mean


def train_here(config: DictConfig) -> Trained | float | None:
    """Train and evaluate in this process; raises ``Stopped`` where a signal asks for that (``signals``).

    Where the ranks that it started did it, gives the mean score of rank 0; None where there is none, it was finished before, or a
    job of SLURM will do it.
    """
    if not is_child_rank():  # whose configuration has been checked
        check(config, "TrainConfig")
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun, which may be killed
        watch_parent(os.getppid())
    writes = is_main() and not is_child_rank() and not config.trainer.fast_dev_run
    held_by_us = locked_folder(Path(config.output_dir), "another run writes") if writes else nullcontext()
    with listening(), held_by_us:
        return _train_here(config)


def _train_here(config: DictConfig) -> Trained | float | None:
    is_first = is_main()
    if is_first:
        check_folder(config)
    if config.resume == "auto" and is_finished(config):  # every rank sees it, lest one waits for the others
        if is_first:
            print(f"{config.output_dir} is finished")
        return None
    if config.trainer.get("slurm") and not (is_rank() or is_step()):
        submit(config)
        return None
    with open_dict(config.trainer):
        config.trainer.pop("slurm", None)  # so that no checkpoint has it
    trainer = build_trainer(config)
    if not is_started(trainer) and trainer.num_devices > 1:
        return run_in_ranks("fusionkit.commands.train:train", config, trainer.num_devices)
    seed_everything(config.seed, workers=True, verbose=False)
    last = resume_from(config)
    parts, module = build(config, last)
    if is_first and last and last.name != LAST:
        print(f"{last.with_name(LAST)} is not there or damaged; going on from {last.name}", flush=True)
    if is_first and not config.trainer.fast_dev_run:
        prepare_folder(config, last)
    try:
        log_config(trainer.loggers, OmegaConf.to_container(config, resolve=True), parts.parameters)  # type: ignore[arg-type]
        if is_first:
            print_run(parts, trainer, fixed_rows(module, trainer, config.trainer.strategy))
            batches = {name: source.batch_size for name, source in parts.datamodule.sources.items()}
            trained_on = [batches[name] for name in module.objectives]
            own_rows = (
                [] if config.trainer.get("sync_batchnorm") else told_own_rows(module, trained_on, trainer.world_size)
            )
            for sentence in (*lonely(module.objectives, parts.tasks, batches, trainer.world_size), *own_rows):
                print(f"warning: {sentence}", flush=True)
        trained = Trained(parts, trainer.strategy.root_device, {}, None)
        try:
            fit(trainer, module, parts, config, last)
            make_whole(module)
            leave()
            is_pruned = any(isinstance(each, Pruning) and each.is_pruned for each in trainer.callbacks)  # type: ignore[attr-defined]
            if not is_pruned and trainer.is_global_zero and not config.trainer.fast_dev_run:
                if last:
                    keep_configuration(config)
                trained = replace(trained, metrics=evaluate(trainer, module, parts))
        except KeyboardInterrupt:
            if module.average is not None:  # a checkpoint of now would have no other weights
                module.average.put_in()
            return replace(trained, is_interrupted=True)
        mean = trainer.callback_metrics.get("val/mean")
        return replace(trained, mean=None if mean is None else float(mean))
    finally:
        finish()


def build(config: DictConfig, last: Path | None) -> tuple[Parts, TrainingModule]:
    """What a configuration trains: anew, from a checkpoint's weights, or ready to go on from ``last``.

    Raises for what cannot work; nothing in the folder has changed then.
    """
    begin = last or config.checkpoint
    config = copy.deepcopy(config)  # what is built changes it: references are resolved, pretrained files left out
    if not begin:
        parts = build_parts(config)
        require_data(parts)
        module = build_module(parts)
        module.build_optimizer()
        begin_tasks(parts, module)
        return parts, module
    checkpoint = read_checkpoint(begin)
    if last:
        require_resumable(config, checkpoint, last)
    start_from(config, checkpoint, begin)
    with told_of(begin):
        vocabularies = own_vocabularies(config, checkpoint["fusionkit"], begin, goes_on=last is not None)
    parts = build_parts(config, **vocabularies)
    require_data(parts)
    module = build_module(parts)
    if last:
        require_same_adapters(parts.model, checkpoint, last)
        require_state(module, config, checkpoint, last)
        module.goes_on_after = checkpoint["global_step"]
        there = read_stored(checkpoint["fusionkit"]["config"], last)
        told, news = f"going on from {last} after step {checkpoint['global_step']}", changed(there, config)
    else:
        module.build_optimizer()
        told, news = f"started from {begin}", [f"{name} is new" for name in initialise(module, checkpoint, begin)]
    rank_zero_only(print)("; ".join([told, ", ".join(news)] if news else [told]))
    tell_unknown(config, parts.datamodule, begin)
    begin_tasks(parts, module)
    return parts, module


def begin_tasks(parts: Parts, module: TrainingModule) -> None:
    """Show each task that trains the samples that it trains on."""
    for name, task in parts.tasks.items():
        sources = [source for source, row in module.objectives.items() if name in row]
        if sources:
            task.begin({source: parts.datamodule.samples(source, "train") for source in sources})


def require_data(parts: Parts) -> None:
    """Raise DataError for splits that share images, and for missing and damaged images of those that the run will read."""
    data, roles = parts.datamodule, ["train", "val", *parts.config.evaluation.roles]
    data.require_apart()
    splits = {source: data.sources[source].splits for source in parts.objectives}
    data.require_images([(name, role) for name in splits for role in dict.fromkeys(roles) if role in splits[name]])


def fit(trainer: Trainer, module: TrainingModule, parts: Parts, config: DictConfig, last: Path | None) -> None:
    """Train, from ``last`` on; a Ctrl-C says how to go on."""
    going_on = GoingOn(None if config.trainer.fast_dev_run else config)
    if last:
        trainer.callbacks.insert(0, going_on)  # type: ignore[attr-defined]
    folder = None if config.trainer.fast_dev_run else Path(config.output_dir)
    is_main_thread = threading.current_thread() is threading.main_thread()
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with StopWhenAsked(trainer, folder and folder / "checkpoints" / LAST):
            trainer.fit(module, datamodule=parts.datamodule, ckpt_path=last, weights_only=True)
        if asked():
            raise Stopped
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if trainer.world_size > 1 and is_lost(error):
            raise LostRankError(trainer.global_rank) from error
        if isinstance(error, UserError) or not last or going_on.is_restored:
            raise
        raise DataError(
            f"checkpoint {last} cannot be gone on from: it is damaged, or of another version ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}); start a new run from its weights with checkpoint={last} and another output_dir"
        ) from error
    except Stopped:
        raise
    except SystemExit:  # what Lightning makes of a Ctrl-C
        if not trainer.interrupted:
            raise
        if kept := last_checkpoint(config):
            print(f"\n{kept} is kept; the same command with resume=true goes on from there")
        raise KeyboardInterrupt from None
    finally:
        if is_main_thread:  # Lightning has the next Ctrl-C ignored for good, and this process may live on
            signal.signal(signal.SIGINT, on_interrupt)


def evaluate(trainer: Trainer, module: TrainingModule, parts: Parts) -> dict[str, float]:
    """Score the best or last checkpoint on the roles that the configuration names."""
    named = {path.stem: path for path in checkpoints(parts.config)}
    if path := named.get(parts.config.evaluation.checkpoint, named.get("last")):
        load_weights(module, read_checkpoint(path), path)
    elif module.average is not None:
        module.average.put_in()
    parts.datamodule.trainer = None  # this rank evaluates all of it
    if trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)  # and may have the processors of those that are done
    folder, roles = Path(parts.config.output_dir), list(parts.config.evaluation.roles)
    watch = Watch(trainer.loggers, "test", trainer.global_step)
    device = trainer.strategy.root_device
    metrics = score(parts, module.objectives, folder, roles, device, watch=watch.log_answers)
    watch.log_scores(metrics)
    return metrics
