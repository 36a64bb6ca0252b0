"""What a process holds, by what it is for: the table of a plan, and what of it a training tells."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Trainer

from fusionkit.errors import ConfigError
from fusionkit.training.memory.plan import MemoryPlan, fixed_memory
from fusionkit.training.module import TrainingModule

WEIGHTS, TEACHER, GRADIENTS, STATE = "weights", "teacher", "gradients", "state of the optimiser"
SHARDED = "fusionkit.training.processes.sharding.FullySharded"
SPLITS = {  # what a strategy gives each process a part of
    "deepspeed_stage_1": (STATE,),
    "deepspeed": (GRADIENTS, STATE),  # Lightning's is stage 2
    "deepspeed_stage_2": (GRADIENTS, STATE),
    "deepspeed_stage_3": (WEIGHTS, GRADIENTS, STATE),
    "fsdp": (WEIGHTS, GRADIENTS, STATE),
    SHARDED: (WEIGHTS, TEACHER, GRADIENTS, STATE),
}
WHOLE = ("auto", "ddp", "single_device")  # those that divide nothing; ddp_... too


def fixed_rows(module: TrainingModule, trainer: Trainer, strategy: Any) -> list[tuple[str, float]]:
    """The table of what is there whatever is in a batch; empty where strategy or optimiser do not let it be known."""
    try:
        split = divided(strategy)
    except ConfigError:  # of a plan; it trains nonetheless
        return []
    found = fixed_memory(module, trainer.precision, is_ddp=trainer.world_size > 1 and not split)
    return rows(found, trainer.world_size, of_module(split, module)) if found else []


def divided(strategy: Any) -> tuple[str, ...]:
    """The rows of the table that a strategy divides among the processes; raises ConfigError where that is not known."""
    name = str(strategy.get("_target_") if isinstance(strategy, Mapping) else strategy)
    if isinstance(strategy, Mapping) and str(strategy.get("_target_")).endswith(".DDPStrategy"):
        return ()
    if name in WHOLE or name.startswith("ddp_"):
        return ()
    if name not in SPLITS:
        raise ConfigError(
            f"trainer.strategy={name}: what it gives each process is not known here; plan with ddp or one of {', '.join(SPLITS)}"
        )
    return SPLITS[name]


def of_module(split: Sequence[str], module: TrainingModule) -> tuple[str, ...]:
    """What is divided of this module: another checkpoint that teaches it is not, which each process has whole."""
    return tuple(name for name in split if name != TEACHER or module.distillation is None)


def rows(found: MemoryPlan, processes: int = 1, split: Sequence[str] = ()) -> list[tuple[str, float]]:
    """The table; the rows that ``split`` names divided among so many processes."""
    table = [
        (WEIGHTS, float(found.weights)),
        (TEACHER, float(found.teacher)),
        ("moving average of the weights", float(found.averages)),
        (GRADIENTS, float(found.gradients)),
        ("gradients once more, in DDP's buckets", float(found.buckets)),
        (STATE, float(found.optimizer)),
        ("batch", float(found.batch)),
        ("kept for the backward pass, and all else at the peak", float(found.rest)),
    ]
    shown = [(name, size / processes if name in split else size) for name, size in table if size]
    return [*shown, ("in all", sum(size for _, size in shown))]
