"""The only LightningModule: one step over several objectives, validation, and what a checkpoint carries."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fusionkit.assembly.image_tokens import ImageTokens
from fusionkit.assembly.objectives import active_objectives, text_kinds
from fusionkit.assembly.precision import exact_inputs
from fusionkit.balance import Balancer, Step
from fusionkit.distributed import mean_by_name, rank
from fusionkit.errors import ConfigError, refusals, suggest
from fusionkit.internals import log_at_step_made, training_batches, uses_metrics
from fusionkit.model.chunks import in_chunks
from fusionkit.model.model import VisionLanguageModel
from fusionkit.tasks.base import Task
from fusionkit.training.distillation.student import Distillation
from fusionkit.training.ema import WeightAverage
from fusionkit.training.finite import FiniteSteps
from fusionkit.training.gradient_cache import check_gradient_cache, parts_read, require_whole_weights
from fusionkit.training.optimizer_state import set_rates
from fusionkit.training.processes.sharding import (
    FullySharded,
    average_whole,
    gather_all,
    is_sharded,
    shard,
    share_buffers,
    split_all,
)
from fusionkit.training.processes.splittable import require_split
from fusionkit.training.stages import Stage, Stages
from fusionkit.training.steps.beginning import keep_image_tokens, require_gradients, require_same_on_ranks
from fusionkit.training.steps.gradients import clip, leave_out, total_norm
from fusionkit.training.steps.state import BESIDE, STORED, load_progress, require_finite_weights, save_progress
from fusionkit.training.validation import Validation
from fusionkit.training.window import MetricWindow
from fusionkit.types import Batch, Encoded, TaskOutput, at_least_fp32


class TrainingModule(LightningModule):
    """Trains ``model`` on ``objectives: {source: {task: weight}}``; a weight multiplies, 0 switches off.

    ``balance``    joins the losses by objective ("source/task") into one (fusionkit.balance).
    ``stages``     by name and in order, what trains for how long and how fast (fusionkit.training.stages); none: all of it.
    ``optimizer``  called with the named parameters, returns the optimiser; its groups keep their ``lr_scale``.
    ``scheduler``  called with (optimiser, total_steps=...), returns a schedule stepped with the optimiser; None: constant.
    ``teacher``    a momentum teacher (fusionkit.model.momentum), advanced once per optimiser step.
    ``max_skipped_steps`` at so many steps in a row that are not finite, and so left out, the run ends (training.finite).
    ``average``    the moving average of the weights, which is validated and saved in their place (training.ema).
    ``frozen_weights`` "beside": checkpoints name what no stage trains, for ``WholeCheckpoints`` to keep it once beside them.
    ``image_tokens`` what keeps the states of a frozen image encoder, which batches then have in place of pixels.
    ``distillation`` what another checkpoint that teaches adds to the losses (training.distillation).
    ``gradient_cache`` how many images, texts or pairs the model reads at a time (model.chunks); None: a batch at once.
    ``artifacts``  plain values that make a checkpoint self-contained (resolved config, answers, tokenizer files).

    What no objective reaches is frozen here, so that plain DDP works. What models and tasks draw is a function of
    (seed, rank, step, batch) alone: neither validation nor loaders nor an interruption change it.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        tasks: Mapping[str, Task[Any]],
        objectives: Mapping[str, Mapping[str, float]],
        balance: Balancer,
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., Any] | None,
        teacher: Any = None,
        artifacts: Mapping[str, Any] | None = None,
        stages: Mapping[str, Stage] | None = None,
        max_skipped_steps: int = 3,
        image_tokens: ImageTokens | None = None,
        average: WeightAverage | None = None,
        frozen_weights: str = STORED,
        distillation: Distillation | None = None,
        gradient_cache: int | None = None,
    ) -> None:
        super().__init__()
        if frozen_weights not in (STORED, BESIDE):
            raise ConfigError(f"frozen_weights is {frozen_weights!r}; {suggest(str(frozen_weights), (STORED, BESIDE))}")
        self.objectives = active_objectives(objectives, tasks)
        self.weights = {
            f"{source}/{task}": weight for source, row in self.objectives.items() for task, weight in row.items()
        }
        self.model, self.tasks = model, nn.ModuleDict(tasks)
        self.balance, self.teacher, self.distillation = balance, teacher, distillation
        self.balance.start(list(self.weights))
        self.artifacts = dict(artifacts or {})
        self._build_optimizer, self._build_scheduler = optimizer, scheduler
        self.window = MetricWindow(self.objectives, tasks)
        self.step_metrics: dict[
            str, Any
        ] = {}  # of the last training step, by log key: losses, weights, rates, temperature
        self._to_log: dict[str, Any] = {}
        self.validation = Validation()
        self.finite = FiniteSteps(max_skipped_steps, list(self.weights))
        self.average, self.frozen_weights = average, frozen_weights
        self.teacher_step = -1  # the optimiser step the teacher was last advanced for
        self.seed = torch.initial_seed()
        self.is_resumed = False
        self.goes_on_after: int | None = None  # the step of the checkpoint that this rank has found
        self.step_buffers: dict[str, Tensor] = {}  # as they were when micro-batches began to be gathered
        self._rate = 0.0  # the learning rate of the step
        self._freeze_unused()
        self.stages = Stages(stages or {}, self.named_parameters())
        used = {name for row in self.objectives.values() for name in row}
        self.told = check_gradient_cache(gradient_cache, model, tasks, sorted(used), distillation is not None)
        self.gradient_cache, self._read_parts = gradient_cache, parts_read(tasks[name] for name in used)
        self.image_tokens = image_tokens
        if image_tokens is not None:
            with self.stages.all_training():
                image_tokens.check(tasks, self.objectives)
        self.stages.enter(0)

    def training_step(self, batches: dict[str, Batch], batch_idx: int) -> Tensor:
        """One step over all sources; returns the balanced loss."""
        step = self._step(batch_idx)
        self.model.clamp_temperature()
        self._advance_teacher()
        if step.is_first:
            self.finite.begin()
            if self.trainer.accumulate_grad_batches > 1:
                self.step_buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        share_buffers(self)
        loss: Tensor = self(lambda: self._loss(batches, step))
        return loss

    def forward(self, work: Callable[[], Any]) -> Any:
        """Do what reads weights outside of blocks of layers: where a strategy has split them, they are whole within."""
        return work()

    def _loss(self, batches: dict[str, Batch], step: Step) -> Tensor:
        outputs: dict[str, TaskOutput] = {}
        features: dict[str, Tensor] = {}
        for source in self.objectives:
            encoded, found = self._read(source, batches[source])
            if self.distillation is not None:
                found, more = self.distillation(batches[source], self.model, encoded, found)
                features |= more
            outputs |= {f"{source}/{name}": output for name, output in found.items()}
        losses = {objective: output.loss for objective, output in outputs.items()}
        self.window.note(outputs)
        balanced = self.balance(losses, self.weights, step)
        total = sum(features.values(), balanced.loss)
        told = torch.stack([at_least_fp32(loss.detach()) for loss in (*losses.values(), total)])
        self.step_metrics = dict(balanced.metrics) | {name: loss.detach() for name, loss in features.items()}
        self.step_metrics |= self.named_losses(told.unbind()) | self.state_of_training()
        loss: Tensor = total * self.finite.add(told, batches)
        return loss

    def named_losses(self, losses: Iterable[Any]) -> dict[str, Any]:
        """The log keys of the objectives' losses and of the balanced one."""
        return dict(zip(self.window.loss_keys, losses, strict=True))

    def _step(self, batch_idx: int) -> Step:
        return Step(
            number=self.global_step,
            total=self.trainer.estimated_stepping_batches,
            is_first=batch_idx % self.trainer.accumulate_grad_batches == 0,
            parameters=self.stages.training,
        )

    def on_train_batch_end(self, *args: Any) -> None:
        if self.trainer.should_stop and not self._to_log:  # a callback has just ended the run: its last window is told
            self._to_log = self._window_of_metrics()
        self.log_dict(self._to_log, on_step=True, on_epoch=False)
        self._to_log = {}

    def outputs(self, source: str, batch: Batch, alpha: float | None = None) -> dict[str, TaskOutput]:
        """Encode the batch once, and once by the momentum teacher where a task listens to it, then run the source's tasks.

        ``alpha`` weighs that teacher's targets; None: as it does at this step. Another checkpoint's are not in these losses.
        """
        return self._read(source, batch, alpha)[1]

    def _read(self, source: str, batch: Batch, alpha: float | None = None) -> tuple[Encoded, dict[str, TaskOutput]]:
        with in_chunks(self.gradient_cache, self._read_parts):
            return self._read_all(source, batch, alpha)

    def _read_all(self, source: str, batch: Batch, alpha: float | None) -> tuple[Encoded, dict[str, TaskOutput]]:
        tasks = self._tasks_of(source)
        encoded = self.model.encode(batch, text_kinds(tasks.values()))
        views: dict[str, Any] = {}
        listening = {name: task for name, task in tasks.items() if task.uses_teacher}
        if self.teacher is not None and listening:
            taught = self.teacher.encode(batch, text_kinds(listening.values()))
            if alpha is None:
                alpha = self.teacher.alpha(self.global_step, self.trainer.estimated_stepping_batches)
            views = {name: self.teacher.view(name, taught, alpha) for name in listening}
        return encoded, {name: task(self.model, batch, encoded, views.get(name)) for name, task in tasks.items()}

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect the records that the source's tasks predict; scored when the epoch ends."""
        tasks = {name: task for name, task in self._tasks_of(batch["source"]).items() if task.scorer is not None}
        if tasks:
            encoded = self.model.encode(batch, text_kinds(tasks.values()))
            records = {name: task.predict(self.model, batch, encoded) for name, task in tasks.items()}
            self.validation.add(batch["source"], batch["image_ids"], records)

    def on_validation_epoch_start(self) -> None:
        require_finite_weights(self, self.global_step)
        self.validation.clear()
        if self.average is not None:
            self.average.put_in()
        gather_all(self)

    def on_validation_epoch_end(self) -> None:
        """Score all ranks' records; log ``val/<source>/<metric>`` and ``val/mean`` over the headline ones."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        scorers = {
            source: {name: task.scorer for name, task in self._tasks_of(source).items() if task.scorer is not None}
            for source in self.objectives
        }
        limit = self.trainer.limit_val_batches
        is_partial = self.trainer.sanity_checking or isinstance(limit, int) or limit < 1.0
        scores = self.validation.score(scorers, lambda source: datamodule.samples(source, "val"), is_partial)
        for logger in self.trainer.loggers:
            if hasattr(logger, "directions"):
                logger.directions |= self.validation.directions
        # every rank computed the same numbers; sync_dist only tells Lightning so
        self.log_dict(scores, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        if self.average is not None:
            self.average.take_out()
        split_all(self)

    def build_optimizer(self, named: Iterable[tuple[str, nn.Parameter]] | None = None) -> torch.optim.Optimizer:
        """A new optimiser of all parameters, or of those ``named``; raises ConfigError for rules and numbers that cannot work."""
        # the optimiser knows what any stage trains; what has no gradient it leaves alone
        with refusals("optimizer"), self.stages.all_training():
            return self._build_optimizer(list(self.named_parameters() if named is None else named))

    @property
    def has_schedule(self) -> bool:
        """Whether the rates change with a schedule."""
        return self._build_scheduler is not None

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer()
        if self._build_scheduler is None:
            return optimizer
        schedule = self._build_scheduler(optimizer, total_steps=self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Leave out a step that is not finite, and clip any other."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        average_whole(parameters)
        norm = total_norm(parameters)
        means, rows, is_finite = self.finite.end(norm, self.window.rows)
        if not is_finite:
            self.window.drop()
            leave_out(self, optimizer, means)
            return
        self.step_metrics |= self.named_losses(means)
        self.window.count(means, rows)
        clip(self, optimizer, parameters, norm, gradient_clip_val, gradient_clip_algorithm)

    def setup(self, stage: str) -> None:
        taught_by = {} if self.distillation is None else self.distillation.teacher.origin
        found = {"taught_by": taught_by, "the step that resume goes on after": self.goes_on_after}
        require_same_on_ranks(self.artifacts | found)  # before DDP compares their parameters
        if self.average is not None:  # a validation that was broken off has left it in
            self.average.take_out()
        exact_inputs(self.trainer.precision_plugin, getattr(self.model.image_encoder, "reads", "pixel_values"))

    def configure_model(self) -> None:
        """Split the weights where the strategy does so; optimisers are built afterwards."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FullySharded):
            raise ConfigError(
                f"trainer.strategy: {type(strategy).__name__} leaves it to a module to split its weights; use trainer=fsdp"
            )
        if isinstance(strategy, FullySharded) and not is_sharded(self):
            require_gradients(self)
            if self.gradient_cache is not None:
                require_whole_weights(self.trainer)
            require_split(self)
            shard(self, strategy.device_mesh["data_parallel"], str(self.trainer.precision), strategy.whole)
            self.stages = Stages({}, self.named_parameters())
            self.stages.enter(0)

    def on_fit_start(self) -> None:
        require_gradients(self)
        if self.gradient_cache is not None:
            require_whole_weights(self.trainer)
        if self.distillation is not None:
            self.distillation.begin(self.device, self.trainer.precision_plugin.convert_module)
        self.train()  # Lightning leaves modes alone, and what transformers loads has its dropout switched off
        if self.image_tokens is not None and not getattr(self.trainer, "fast_dev_run", False):
            keep_image_tokens(self, self.image_tokens)

    def on_train_start(self) -> None:
        """Ask the loaders for their place again: Lightning did so before it had restored how far the run was.

        The rates are those of the schedule that the run now has.
        """
        require_finite_weights(self, self.global_step)
        self.window.to(self.device)
        self.finite.watch(self.model, self.tasks, self.balance)
        if self.average is not None:
            self.average.begin(self.stages.parameters)
        if self.is_resumed:
            for config in self.trainer.lr_scheduler_configs:
                set_rates(config.scheduler)
        fetcher = training_batches(self.trainer)
        if self.is_resumed and fetcher is not None:
            iter(fetcher)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """A step at the stage's share of the scheduled rates.

        Metrics are put together, over all ranks, where Lightning will use them, since it spends half a millisecond on each value;
        here, and not when they are logged, so that a checkpoint of this step has the next window.
        """
        with self.stages.scaled_rates(optimizer):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not None and self.finite.is_finite:
            self.average.update()
        if uses_metrics(self.trainer):
            self._to_log = self._window_of_metrics()

    def _window_of_metrics(self) -> dict[str, Any]:
        """What is logged: the step's own numbers, and what all ranks measured since the last time."""
        return {**mean_by_name(self.step_metrics), **self.window.compute()}

    def _enter_stage(self) -> None:
        """Freeze and unfreeze where a stage begins; DDP, which knows what trains from when it was made, is made again."""
        if self.stages.enter(self.global_step) and isinstance(self.trainer.strategy.model, DistributedDataParallel):
            self.trainer.strategy.model = self  # the old wrapper goes, and its hooks with it
            self.trainer.strategy.configure_ddp()  # type: ignore[attr-defined]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.is_resumed:
            log_at_step_made(self.trainer)
        self._enter_stage()
        group = self.trainer.optimizers[0].param_groups[0]
        self._rate = group["lr"] / group["lr_scale"] * self.stages.lr_scale  # what it is without rules
        seed_batch(self.seed, rank(), self.global_step, batch_idx)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        seed_batch(self.seed, rank(), dataloader_idx, batch_idx)  # the same draws each time, so that scores compare

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_finite_weights(self, self.global_step)
        save_progress(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        load_progress(self, checkpoint)
        self.stages.enter(checkpoint["global_step"])  # before DDP is made

    def _tasks_of(self, source: str) -> dict[str, Task[Any]]:
        return {name: self.tasks[name] for name in self.objectives.get(source, ())}  # type: ignore[misc]

    def _advance_teacher(self) -> None:
        """Once per optimiser step, before the teacher is asked (ALBEF), however many micro-batches the step has."""
        if self.teacher is not None and self.teacher_step != self.global_step:
            self.teacher.update(self.model, self.tasks)
            self.teacher_step = self.global_step

    def _freeze_unused(self) -> None:
        used = {name for row in self.objectives.values() for name in row}
        for name, task in self.tasks.items():
            if name not in used:
                task.requires_grad_(False)
        self.model.freeze_unused(frozenset().union(*(self.tasks[name].needs for name in used)))  # type: ignore[arg-type]

    def state_of_training(self) -> dict[str, Any]:
        """What is logged of a step beside its losses."""
        state = {f"train/{name}": value for name, value in self.model.metrics().items()}
        return state | {"train/lr": self._rate, "train/skipped_steps": float(self.finite.count)}


def seed_batch(*place: int) -> None:
    """Seed torch, on all devices, from the numbers that name a batch."""
    torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
