"""What happens around the steps: checkpoints, the end of the run, throughput, and images that could not be read."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from fusionkit.assembly.search_study import cuts_short
from fusionkit.data.collate import told_cuts
from fusionkit.distributed import world_size
from fusionkit.errors import ConfigError, suggest
from fusionkit.files.names import is_file_name
from fusionkit.internals import save_now


def require_validation(key: str, monitor: str) -> None:
    """Raise ConfigError for a score that is not of a validation: one that chooses checkpoints tests nothing any more."""
    if not monitor.startswith(("val/", "train/")):
        raise ConfigError(
            f"{key} is '{monitor}', but checkpoints are chosen by a validation score: val/mean or val/<source>/<metric>"
        )


def require_counts(name: str, **counts: int) -> None:
    """Raise ConfigError, naming the callback, for an option that counts steps or values and is below 1."""
    for option, count in counts.items():
        if count < 1:
            follows = " (unless given, trainer.log_every_n_steps)" if option == "every_n_steps" else ""
            raise ConfigError(
                f"callbacks.{name}.{option}{follows} is {count}, but has to be at least 1; to do without, ~callbacks.{name}"
            )


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``: the best value of one validation metric, "val/<source>/<metric>" or "val/mean".

    ``mode``  "auto": as the metric says, more or less of it (training.validation); "max" or "min" for one that does not say, and
              with a warning against what it says.
    """

    def __init__(self, directory: str, monitor: str = "val/mean", mode: str = "auto") -> None:
        if mode not in ("auto", "max", "min"):
            raise ConfigError(f"callbacks.best.mode is '{mode}'; {suggest(mode, ('auto', 'max', 'min'))}")
        self._asked, self._key, self._is_told = mode, "", False
        super().__init__(
            directory,
            "best",
            monitor=monitor,
            mode="max" if mode == "auto" else mode,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._key = (
            super().state_key
        )  # a mode that is found out later does not change under what name the state is kept

    @property
    def state_key(self) -> str:
        return self._key or super().state_key

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        known = [name for name in trainer.callback_metrics if name.startswith("val/")]
        if self.monitor not in known:
            raise ConfigError(
                f"callbacks.best.monitor: no validation score '{self.monitor}'; {suggest(str(self.monitor), known)}"
            )
        self._turn(pl_module.validation.directions.get(str(self.monitor)))
        super().on_validation_end(trainer, pl_module)

    def _turn(self, is_up: bool | None) -> None:
        """Look for the most or the least of the metric, by whether more of it is better (None: nobody says)."""
        mode = self._asked if is_up is None else ("max" if is_up else "min")
        if self._asked not in ("auto", mode):
            mode = self._asked
            if not self._is_told:
                rank_zero_warn(
                    f"callbacks.best.mode is {mode}, but {'more' if is_up else 'less'} of {self.monitor} is better: best.ckpt is "
                    "the worst one; leave the mode out, or let the scorer's metrics say otherwise"
                )
            self._is_told = True
        if mode != "auto" and mode != self.mode:
            self.mode = mode
            self.kth_value = -self.kth_value if self.kth_value.isinf() else self.kth_value

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The best score so far, also where the folder has moved; forgotten where its checkpoint is not there any more."""
        here = {key: value for key, value in state_dict.items() if key != "dirpath"}
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            here[key] = self._moved(here.get(key, ""))
        here["best_k_models"] = {self._moved(path): score for path, score in here.get("best_k_models", {}).items()}
        if Path(here["best_model_path"]).is_file():
            super().load_state_dict(here)

    def _moved(self, path: str) -> str:
        name = Path(path).name
        return str(Path(str(self.dirpath)) / name) if is_file_name(name) else ""


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``, to resume from: after each validation, or each epoch where there is none, and at the end.

    Apart from ``BestCheckpoint`` because Lightning's ``save_last`` writes only when the best improves.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(directory, "last", enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: its one file has one name, and files that a checkpoint names would be removed when the next is written."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        save_now(self, trainer)


class StageEnds(Callback):
    """Keeps ``after_NAME.ckpt``, what each stage of the run but the last has made of the weights."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self._step = 0  # of the last batch: a step may have several

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        names, starts = list(pl_module.stages.starts), list(pl_module.stages.starts.values())
        is_new = trainer.global_step != self._step and not getattr(trainer, "fast_dev_run", False)
        if is_new and trainer.global_step in starts[1:]:
            name = names[starts.index(trainer.global_step) - 1]
            trainer.save_checkpoint(self.directory / f"after_{name}.ckpt")
        self._step = trainer.global_step


class StopAfter(Callback):
    """Ends the training, with a last validation and checkpoint, at its last step or when ``minutes`` have passed.

    Without it Lightning leaves at ``max_steps`` with the scores of the validation before. Checkpoints keep the time.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes = minutes
        self._spent, self._started = 0.0, time.monotonic()

    def fraction(self) -> float:
        """How much of the time is spent, 0 where it is not limited."""
        return self._seconds() / (60 * self.minutes) if self.minutes else 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        is_over = bool(trainer.strategy.broadcast(self.fraction() >= 1)) if self.minutes else False
        last = trainer.estimated_stepping_batches
        if is_over and trainer.global_step < last and not trainer.should_stop:
            rank_zero_warn(
                f"the training ends after {self.minutes:g} minutes (scheduler.max_minutes), at step {trainer.global_step} of "
                f"{last:g}: on another machine it would be another; a budget that is the same everywhere is trainer.max_steps"
            )
        if is_over or trainer.global_step >= last:
            trainer.should_stop = True
            if trainer.check_val_every_n_epoch is not None:
                trainer.check_val_every_n_epoch = 1  # the last epoch is validated, whatever its number

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._spent = state["seconds"]

    def _seconds(self) -> float:
        return self._spent + time.monotonic() - self._started


class Pruning(Callback):
    """Ends a trial of a search (``hydra/sweeper=search``) that does worse than those before it at the same step.

    Each validation's ``monitor`` is told to the study in the file ``log``, as trial number ``trial``; ``pruner`` says whether it
    goes on: {"name": a class of optuna.pruners, and its arguments}. A run that is about to end is not cut short.
    """

    def __init__(self, log: str, trial: int, pruner: Mapping[str, Any], monitor: str = "val/mean") -> None:
        self.log_file, self.trial, self.pruner, self.monitor = Path(log), trial, pruner, monitor
        self.is_pruned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or value is None:
            return
        step, is_ending = trainer.global_step, trainer.should_stop
        told = (self.log_file, self.trial, self.pruner, step, float(value), not is_ending)
        if trainer.strategy.broadcast(trainer.is_global_zero and cuts_short(*told)):
            self.is_pruned = trainer.should_stop = True
            if trainer.is_global_zero:
                print(
                    f"trial {self.trial} ends at step {step}: its {self.monitor} of {float(value):.4g} is behind that of others "
                    f"({self.pruner['name']})",
                    flush=True,
                )


class Throughput(Callback):
    """Logs ``train/images_per_s``, over all ranks and the last ``every_n_steps``, and ``train/data_wait``, the share of that time
    in which this rank waited for its next batch; validation is not counted.

    Where a run has waited for more than ``patience`` of its time it says so at the end, and what helps.
    """

    def __init__(self, every_n_steps: int = 10, patience: float = 0.2) -> None:
        require_counts("throughput", every_n_steps=every_n_steps)
        self.every_n_steps, self.patience = every_n_steps, patience
        self._images, self._seconds, self._started = 0, 0.0, 0.0
        self._waited, self._seen = 0.0, 0.0  # all waiting when it was last logged, and at the last batch
        self._unseen = 0.0  # waiting outside ``seconds``, which begin with the first batch of a run or an epoch
        self._sums = [0.0, 0.0]  # seconds of waiting and of all, over the run

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if not self._started:
            self._started = time.monotonic()
            self._unseen += trainer.datamodule.seconds_waited() - self._seen  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        self._images += sum(len(part["image_ids"]) for part in batch.values()) * world_size()
        now = time.monotonic()
        self._seconds, self._started = self._seconds + now - self._started, now
        self._seen = trainer.datamodule.seconds_waited()  # type: ignore[attr-defined]
        if trainer.global_step % self.every_n_steps == 0 and self._seconds:
            waited, seconds = self._seen - self._waited, self._seconds + self._unseen
            pl_module.log("train/images_per_s", self._images / self._seconds, on_step=True, on_epoch=False)
            pl_module.log("train/data_wait", waited / seconds, on_step=True, on_epoch=False)
            self._sums = [self._sums[0] + waited, self._sums[1] + seconds]
            self._images, self._seconds, self._unseen, self._waited = 0, 0.0, 0.0, self._seen

    def on_validation_start(self, *args: Any) -> None:
        self._started = 0.0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        waited, seconds = self._sums
        if trainer.is_global_zero and seconds and waited > self.patience * seconds:
            workers = trainer.datamodule.num_workers  # type: ignore[attr-defined]
            print(
                f"data: {100 * waited / seconds:.0f}% of the training went by waiting for batches: raise data.num_workers (now "
                f"{workers}; auto takes the cores that are left), choose +data.decoder=auto, or keep the tokens of a frozen "
                "image encoder with image_tokens.folder=FOLDER",
                flush=True,
            )


class CutTexts(Callback):
    """Tells after an epoch, where it is news, how many of the texts that were read were cut at ``max_length``."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for source, settings in data.sources.items():
            read, cut, silent = data.cut_texts(source, "train")
            if (cut or silent) and (cut + silent) / read > 1.1 * self._told.get(source, 0.0):
                self._told[source] = (cut + silent) / read
                if trainer.is_global_zero:
                    print(told_cuts(source, read, cut, silent, settings.max_length), flush=True)


class SkippedImages(Callback):
    """Logs ``train/<source>/skipped_images``, the corrupt images this rank has met so far, and tells of new ones."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        for source, count in trainer.datamodule.skipped().items():  # type: ignore[attr-defined]
            if count > self._told.get(source, 0):
                self._told[source] = count
                print(f"source {source}: {count} corrupt images replaced by others so far", flush=True)
                pl_module.log(f"train/{source}/skipped_images", float(count), on_step=True, on_epoch=False)
