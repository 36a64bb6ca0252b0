"""How many bytes of tensors are alive, and were at most, by the tensors themselves: the same on any device."""

import weakref
from typing import Any

import torch
from torch import Tensor

from fusionkit.internals import DISPATCH_MODE, leaves_of


class LiveMemory(DISPATCH_MODE):
    """Counts the bytes of what is made within, until it is freed: ``bytes`` now, ``peak`` at most, ``curve`` by operation.

    It sees what operations give, not what a kernel needs for itself, nor what an allocator holds beside it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self.curve: list[int] = []
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {id(leaf.untyped_storage()) for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in leaves_of(out):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in known:  # else a view
                self._count(leaf.untyped_storage())
        self.curve.append(self.bytes)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def freed(_: Any) -> None:
            del self._alive[key]
            self.bytes -= size

        self._alive[key] = weakref.ref(storage, freed)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
