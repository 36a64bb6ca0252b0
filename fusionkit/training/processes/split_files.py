"""What each process writes of a checkpoint whose split tensors stay split: its own parts, in a file beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from fusionkit.checkpoints.split import KEY, SECTIONS, change_leaves, save_part
from fusionkit.distributed import from_rank_zero, gather_objects, rank, world_size
from fusionkit.errors import DataError


def set_apart(checkpoint: Mapping[str, Any], folder: Path, advice: str) -> dict[str, Any]:
    """The checkpoint that names the files of all ranks' parts in the folder, to be written once they are there.

    Every rank calls it. Where one cannot write its file all raise its DataError, and none of the new files is left.
    """
    own: dict[str, Tensor] = {}
    table: dict[str, dict[str, Any]] = {}

    def take(place: str, value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        (placement,) = value.placements  # processes in one row
        local = value.to_local().detach()
        if not isinstance(placement, Shard):
            return local
        own[place] = local
        table[place] = {"shape": list(value.shape), "dim": placement.dim}
        return None

    sections = {key: change_leaves(checkpoint[key], take, key) for key in SECTIONS if key in checkpoint}
    rest = {key: sections.get(key, value) for key, value in checkpoint.items()}
    if not table:
        return rest
    who = f"{checkpoint.get('global_step', 0)}-{rank()}of{world_size()}"
    file, digest, is_new, fault = Path(), "", False, ""
    try:
        alone = {place: _alone(local) for place, local in own.items()}
        file, digest, is_new = save_part(alone, folder, who, advice)
    except (DataError, OSError, MemoryError, RuntimeError) as error:  # else the others would wait for this rank
        fault = str(error) or type(error).__name__
    told = gather_objects([(file.name, digest, fault)])
    if not (faults := [each for _, _, each in told if each]):
        absent = from_rank_zero([name for name, _, _ in told if not (folder / name).is_file()])
        faults = [_of_another_disk(folder, name) for name in absent]
    if faults:
        if is_new:
            file.unlink(missing_ok=True)
        raise DataError(faults[0])
    return {**rest, KEY: {"files": [{"file": name, "hash": each} for name, each, _ in told], "tensors": table}}


def _alone(local: Tensor) -> Tensor:
    """The tensor on the CPU without what else its memory holds: a file would hold that too."""
    local = local.cpu()
    return local if local.untyped_storage().nbytes() == local.numel() * local.element_size() else local.clone()


def _of_another_disk(folder: Path, name: str) -> str:
    return (
        f"{folder} is not the same folder for all processes: {name}, which one has written, is not there for rank 0; give an "
        "output_dir that all nodes share, or trainer.strategy.save=whole"
    )
