"""Who has started this process: nobody, ourselves, or torchrun, srun and the like, of which it is one rank."""

import os
from collections.abc import Mapping
from typing import Any

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only

from fusionkit.errors import ConfigError
from fusionkit.signals import is_child

RESERVED = 0xFFFFFFF0  # numbers of SLURM's own steps: batch scripts, shells of salloc


def is_main() -> bool:
    """Whether this process is alone, or rank 0, by variables of torchrun, srun and others (Lightning reads them on import)."""
    return getattr(rank_zero_only, "rank", 0) == 0


def is_rank() -> bool:
    """Whether this process was itself started as a rank (by ``start_ranks``, torchrun, or by hand)."""
    return "LOCAL_RANK" in os.environ


def is_child_rank() -> bool:
    """Whether a process of ours has started this one as a rank, and does what is done once for all."""
    return is_rank() and is_child()


def started_count(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes were started with this one, as torchrun (``WORLD_SIZE``) or srun tell; 1 where they do not."""
    counts = [environment.get(name, "1") for name in ("WORLD_SIZE", "SLURM_NTASKS" if is_task(environment) else "")]
    return next((int(count) for count in counts if count.isdecimal() and int(count) > 1), 1)


def is_task(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether srun has started this process; a shell of ``salloc`` or ``sbatch`` has the job's variables as well."""
    return "SLURM_PROCID" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def is_step(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether srun has started this process to work, and not the shell that it was called in.

    A batch script has SLURM_PROCID as well, but no step or one of the reserved numbers; ``srun --pty`` has a terminal.
    """
    step = environment.get("SLURM_STEP_ID", "")
    is_own = step.isdecimal() and int(step) < RESERVED and "SLURM_PTY_PORT" not in environment
    return is_own and is_task(environment)


def with_nodes(options: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """A trainer's options, with the number of nodes that torchrun or srun tell where these say none."""
    nodes = environment.get("GROUP_WORLD_SIZE") or (is_task(environment) and environment.get("SLURM_NNODES")) or "1"
    is_told = options.get("num_nodes") is not None or not nodes.isdecimal() or started_count(environment) == 1
    return dict(options) if is_told else {**options, "num_nodes": int(nodes)}


def is_started(trainer: Trainer) -> bool:
    """Whether this process was itself started as one of several.

    Raises ConfigError where more or fewer were started than the trainer is told of, and where nobody has started those of other
    nodes.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    count, asked = started_count(), trainer.num_nodes * trainer.num_devices
    is_outside = environment is not None and bool(environment.creates_processes_externally)
    is_one = is_rank() or (is_outside and not (count == 1 and is_task()))  # the one task of a job may start its ranks
    if trainer.num_nodes > 1 and not is_one:
        raise ConfigError(
            f"trainer.num_nodes is {trainer.num_nodes}, but nothing has started this process as one of several; start them on "
            "each node by torchrun or srun, or leave trainer.num_nodes out"
        )
    if "RANK" in os.environ and count > 1 and not is_one:
        raise ConfigError(
            "RANK and WORLD_SIZE are set, but LOCAL_RANK is not: set it too, the number of the process on its machine, or none"
        )
    if is_one and count > 1 and count != asked:
        raise ConfigError(
            f"{count} processes were started, but trainer.devices={trainer.num_devices} on {trainer.num_nodes} "
            f"{'machine' if trainer.num_nodes == 1 else 'machines'} (trainer.num_nodes) is {asked}; give a trainer.devices, and "
            "+trainer.num_nodes, that make as many"
        )
    return is_one
