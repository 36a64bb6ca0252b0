"""Checkpoints saved split by three processes of the CPU, whose rows do not divide: run by test_sharding.py.

python -m tests.distributed.split_saves FOLDER
"""

import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from fusionkit.checkpoints.save import WholeCheckpoints
from fusionkit.checkpoints.split import KEY, save_part
from fusionkit.errors import DataError
from fusionkit.files.tensors import read_tensors
from fusionkit.training.processes import split_files
from tests.distributed.global_batch import run_ranks

SHAPES = {"five": (5, 4), "one": (1, 6), "six": (6,), "wide": (2, 2, 3)}


def state(mesh: Any, step: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A checkpoint as a strategy that splits weights gives it, and its whole weights."""
    torch.manual_seed(step)
    whole = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    split = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in whole.items()}
    everywhere = distribute_tensor(torch.tensor([3.0]), mesh, [Replicate()])
    moments = {0: {"exp_avg": split["five"], "step": torch.tensor(1.0)}, 1: {"exp_avg": split["one"]}}
    optimizer = {"state": moments, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    weights = {**split, "all": everywhere, "plain": torch.tensor(2.0)}
    return {"global_step": step, "state_dict": weights, "optimizer_states": [optimizer]}, whole


def told(checkpoint: dict[str, Any], folder: Path) -> str:
    """What all are told who cannot save it; files that are new go again."""
    before = sorted(folder.iterdir())
    dist.barrier()
    try:
        split_files.set_apart(checkpoint, folder, "")
    except DataError as error:
        dist.barrier()
        assert sorted(folder.iterdir()) == before
        return str(error)
    raise AssertionError("nothing was refused")


def save(number: int, folder: Path) -> None:
    """One rank: what it saves is read back whole, and what another one cannot save is refused here too."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=3, timeout=timedelta(seconds=100)
    )
    mesh, place = init_device_mesh("cpu", (3,)), folder / "checkpoints"
    place.mkdir(exist_ok=True)
    for step in (1, 2):
        given, whole = state(mesh, step)
        rest = split_files.set_apart(given, place, "")
        assert all(given["state_dict"][name] is not None for name in SHAPES)  # the caller's own stays
        if not number:
            WholeCheckpoints().save_checkpoint(rest, place / "last.ckpt")
        dist.barrier()
        found = WholeCheckpoints().load_checkpoint(place / "last.ckpt")
        assert list(found["state_dict"]) == list(given["state_dict"])
        for name, tensor in whole.items():
            assert torch.equal(found["state_dict"][name], tensor), name
        moments = found["optimizer_states"][0]["state"]
        assert torch.equal(moments[0]["exp_avg"], whole["five"])
        assert torch.equal(moments[1]["exp_avg"], whole["one"])
        assert moments[0]["step"] == 1
        assert found["state_dict"]["all"].tolist() == [3]
        assert rest[KEY]["tensors"].keys() >= {"state_dict/five", "optimizer_states/0/state/1/exp_avg"}
        assert "state_dict/all" not in rest[KEY]["tensors"]
        for tensor in read_tensors(place / rest[KEY]["files"][number]["file"]).values():  # and nothing of the others
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        dist.barrier()
    given, _ = state(mesh, 3)

    def full(*arguments: Any) -> Any:
        raise DataError("the disk of rank 1 is full")

    split_files.save_part = full if number == 1 else save_part
    assert told(given, place) == "the disk of rank 1 is full"
    split_files.save_part = save_part
    own = folder / f"node{number}"
    own.mkdir()
    assert "is not the same folder for all processes: split-3-1of3-" in told(given, own)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    run_ranks(3, partial(save, folder=Path(sys.argv[1])))
