"""What a checkpoint carries of a training beside its weights, and how the training goes on from there."""

from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from fusionkit.checkpoints.frozen import KEY as FROZEN
from fusionkit.checkpoints.match import not_finite, require_fit
from fusionkit.data.datamodule import DataModule
from fusionkit.distributed import gather_objects
from fusionkit.errors import UserError
from fusionkit.training.ema import put_back
from fusionkit.training.finite import ADVICE
from fusionkit.training.optimizer_state import parameter_names, refit
from fusionkit.training.progress_state import count_back, data_state, end_epoch, pending_batches, stretch_epoch

if TYPE_CHECKING:
    from fusionkit.training.module import TrainingModule

STORED, BESIDE = "stored", "beside"  # where frozen weights are kept: in every checkpoint, or once, beside them


def save_progress(module: "TrainingModule", checkpoint: dict[str, Any]) -> None:
    """Put it all into a checkpoint that Lightning has begun, and the averages of weights in the place of these.

    Between two optimiser steps the place to go on from is the first of them, where no gradient was gathered yet.
    """
    checkpoint["fusionkit"] = module.artifacts
    progress: dict[str, Any] = {"seed": module.seed, "teacher_step": module.teacher_step}
    progress["skipped_steps"] = module.finite.state_dict()
    progress["precision"] = str(module.trainer.precision)
    progress["metrics"] = gather_objects([module.window.state()])
    if module.distillation is not None:
        progress["taught_by"] = dict(module.distillation.teacher.origin)
    if module.trainer.optimizers:
        progress["parameters"] = parameter_names(module.trainer.optimizers[0], module.named_parameters())
    if pending := pending_batches(module.trainer):
        progress["buffers"] = module.step_buffers
        count_back(checkpoint, pending)
    if module.average is not None:
        progress["average"] = module.average.save(checkpoint["state_dict"], all_names(module))
    checkpoint["progress"] = progress
    if module.frozen_weights == BESIDE:
        checkpoint[FROZEN] = never_trained(module)


def load_progress(module: "TrainingModule", checkpoint: dict[str, Any]) -> None:
    """Take over what was stored, with the options that the optimiser and its schedule now have."""
    progress = checkpoint["progress"]
    if module.distillation is not None:
        module.distillation.require_same(progress.get("taught_by"))
    require_fit(module.state_dict(), checkpoint["state_dict"], "to resume from")
    module.seed, module.teacher_step = progress["seed"], progress["teacher_step"]
    if "skipped_steps" in progress:  # not in checkpoints of earlier versions
        module.finite.load_state_dict(progress["skipped_steps"])
    module.window.load(progress.get("metrics", []))
    state = checkpoint["state_dict"]
    if kept := progress.get("average"):
        if module.average is not None:
            module.average.load(state, kept)
        put_back(state, kept, all_names(module))
    state |= {name: buffer for name, buffer in progress.get("buffers", {}).items() if name in state}
    refit(checkpoint, module.build_optimizer(), module.named_parameters(), has_schedule=module.has_schedule)
    if module.trainer.max_steps != -1:
        end_epoch(checkpoint)
    data, state = getattr(module.trainer, "datamodule", None), data_state(checkpoint)
    if isinstance(data, DataModule) and "steps" in state and data.is_resized(state):
        stretch_epoch(checkpoint, state["steps"], data.epoch_steps, module.trainer.accumulate_grad_batches)
    precision, now = progress.get("precision"), str(module.trainer.precision)
    if precision not in (None, now):  # auto measures a CPU, which may be busy at one time and not at another
        rank_zero_warn(
            f"the run goes on in {now}, but began in {precision}; trainer.precision={precision} goes on exactly"
        )
    module.is_resumed = True


def never_trained(module: "TrainingModule") -> list[str]:
    """The names of model's and tasks' parameters that no stage trains, also those that a teacher has them under."""
    trained = {id(parameter) for parameter in module.stages.parameters.values()}
    frozen = {id(p) for part in (module.model, module.tasks) for p in part.parameters()} - trained
    return [name for name, parameter in all_names(module) if id(parameter) in frozen]


def all_names(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Its parameters by each name that one has."""
    return list(module.named_parameters(remove_duplicate=False))


def require_finite_weights(module: nn.Module, step: int) -> None:
    """UserError where there are weights that nothing can be learnt with, read off by, or gone on from."""
    if names := not_finite(module):
        which = f"{names[0]} and {len(names) - 1} more tensors" if len(names) > 1 else names[0]
        told = f"the weights are not finite at step {step} ({which})"
        if not step:
            raise UserError(
                f"{told}: the checkpoint or the pretrained files that they come from are damaged; give others"
            )
        raise UserError(f"{told}, so none are saved; {ADVICE}; the checkpoints from before are kept")
