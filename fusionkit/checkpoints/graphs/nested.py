"""The tensors of a memory or a past, one after the other, and back: a graph takes and gives nothing else."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from fusionkit.types import Nested


def flat(nested: Nested) -> list[Tensor]:
    """All tensors, in their order."""
    if isinstance(nested, Tensor):
        return [nested]
    return [] if nested is None else [tensor for part in nested for tensor in flat(part)]


def filled(like: Nested, tensors: Iterable[Tensor]) -> Any:
    """The same structure with other tensors, of ``flat``'s order."""
    return _filled(like, iter(tensors))


def _filled(like: Nested, tensors: Iterator[Tensor]) -> Any:
    if isinstance(like, Tensor):
        return next(tensors)
    if isinstance(like, Sequence):
        parts = [_filled(part, tensors) for part in like]
        return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)  # type: ignore[call-arg]
    return like
