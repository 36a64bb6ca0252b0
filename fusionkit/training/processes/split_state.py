"""Tensors that are split among the processes, put together for a checkpoint and taken apart again."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from fusionkit.checkpoints.match import whole
from fusionkit.checkpoints.split import change_leaves


def kept(x: Tensor, is_kept: bool) -> Any:
    """A tensor put together, on the CPU where this rank keeps it; every rank calls it."""
    found = whole(x)
    return found.cpu() if is_kept else None


def split_as(own: Any, tensor: Any) -> Any:
    """This rank's part of a tensor that every rank has, where its own one is split."""
    if not isinstance(own, DTensor) or not isinstance(tensor, Tensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def split_state(optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimiser, or of several that are one, with each moment split as its parameter is."""
    if "parts" in state:
        parts = zip(optimizer.parts, state["parts"], strict=True)
        return {"parts": [split_state(part, each) for part, each in parts]}
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = dict(zip(numbers, parameters, strict=True))
    split = {
        number: {
            key: split_as(own[number], value) if getattr(value, "shape", None) == own[number].shape else value
            for key, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": split}


def change_tensors(state: Mapping[str, Any], change: Callable[[Tensor], Any]) -> Any:
    """A nested state with each of its tensors changed, in their order."""
    return change_leaves(state, lambda place, value: change(value) if isinstance(value, Tensor) else value)
