"""Whether the tensors of a checkpoint fit a model, in words."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fusionkit.errors import DataError


def require_fit(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | Path, is_own: bool = False
) -> None:
    """Raise DataError with the first differences where a checkpoint was written by another architecture.

    With ``is_own`` than the one that its own configuration says, with whatever the user changes of it.
    """
    if differences := differences_between(expected, found):
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        told = f"{'; '.join(differences[:3])}{more}"
        if is_own:
            raise DataError(
                f"checkpoint {path} is of another architecture than its own configuration ('here'): {told}; leave out what "
                "you change of the configuration, and where that is nothing the checkpoint is damaged: take it again"
            )
        raise DataError(
            f"checkpoint {path} is of another architecture: {told}; choose the encoders, fusion, model and teacher that it "
            "was trained with"
        )


def differences_between(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What does not fit, in words: missing, foreign and differently shaped tensors, and whole numbers for weights."""
    both = [name for name in expected if name in found]
    shapes = [name for name in both if found[name].shape != expected[name].shape]
    kinds = [name for name in both if expected[name].is_floating_point() and not found[name].is_floating_point()]
    return [
        *(f"{name} is {tuple(found[name].shape)} there and {tuple(expected[name].shape)} here" for name in shapes),
        *(f"{name} is of {found[name].dtype} there and {expected[name].dtype} here" for name in kinds),
        *(f"{name} is missing there" for name in expected if name not in found),
        *(f"{name} is unknown here" for name in found if name not in expected),
    ]


def require_finite(module: nn.Module, path: str | Path) -> None:
    """Raise DataError where a module that was loaded from a checkpoint holds what nothing can be computed with."""
    if names := not_finite(module):
        more = f", as do {len(names) - 1} more tensors" if len(names) > 1 else ""
        raise DataError(f"checkpoint {path}: {names[0]} holds NaN or infinite numbers{more}; take one of before that")


def not_finite(module: nn.Module) -> list[str]:
    """The names of the parameters that hold NaN or infinite numbers, and of the buffers that do: but a mask may be -inf."""
    parts = {name: ~parameter.detach().isfinite().all() for name, parameter in module.named_parameters()}
    parts |= {
        name: (buffer.isnan() | buffer.isposinf()).any()
        for name, buffer in module.named_buffers()
        if buffer.is_floating_point()
    }
    flags = torch.stack([whole(part) for part in parts.values()]).tolist() if parts else []
    return [name for name, is_wrong in zip(parts, flags, strict=True) if is_wrong]


def whole(x: Tensor) -> Tensor:
    """A tensor that a strategy may have split, put together; every rank calls it."""
    return x.full_tensor() if isinstance(x, DTensor) else x
