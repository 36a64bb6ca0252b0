"""Activation checkpointing: blocks whose inner results are not kept for the backward pass, but computed anew in it."""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
MARK = "_fusionkit_recomputed"
_inside = threading.local()  # a backward pass may run in threads of its own


def blocks_of(part: nn.Module, outermost: bool = False) -> list[nn.Module]:
    """The repeated blocks of a part: what stands in lists of modules that have parts themselves, the innermost such lists.

    A list within a block that holds less than half of its numbers (the branches of a convolution) is not looked into, and with
    ``outermost`` none is: a layer of transformers' T5 is itself a list, a stage of Swin has one.
    """
    found: list[nn.Module] = []
    is_list = isinstance(part, LISTS) and all(any(child.children()) for child in part.children())
    for child in part.children():
        inner = blocks_of(child, outermost)
        is_block = is_list and not isinstance(child, LISTS) and (outermost or 2 * _numbers(inner) < _numbers([child]))
        found += [child] if is_block else inner
    return list(dict.fromkeys(found))


def recompute(blocks: Sequence[nn.Module]) -> int:
    """From now on keep the inputs of each call of these blocks alone, where gradients are wanted, and call again backwards.

    The random state is the same again, and statistics (batch norm) count a call once. A call that is given a cache to write in
    is left as it is. Blocks keep their names, their class's name and what ``isinstance`` says of them. Gives how many they are.
    """
    for block in blocks:
        kind: Any = type(block)
        if not hasattr(kind, MARK):
            block.__class__ = _recomputed(kind)
    return len(blocks)


def public_methods(kind: type) -> dict[str, Callable[..., Any]]:
    """``forward`` and the other methods that a class of modules has for callers, by name."""
    bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
    methods = {name: method for base in bases[::-1] for name, method in vars(base).items() if callable(method)}
    plain = type(blocks_of)
    return {
        name: method
        for name, method in methods.items()
        if isinstance(method, plain)
        and not name.startswith("_")
        and (name == "forward" or not hasattr(nn.Module, name))
    }


def _numbers(modules: Iterable[nn.Module]) -> int:
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


@functools.cache
def _recomputed(kind: type) -> type:
    """The class of a block that computes anew: a class and no wrapper, so that copies, lent parts and names stay right.

    All public methods that are given tensors, since a fusion may call others than ``forward``.
    """
    wrapped = {name: _anew(method) for name, method in public_methods(kind).items()}
    return type(kind.__name__, (kind,), {**wrapped, MARK: True, "__module__": kind.__module__})


def _anew(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        is_plain = getattr(_inside, "is_set", False) or any(hasattr(value, "get_seq_length") for value in given)
        if is_plain or not torch.is_grad_enabled() or not _has_tensor(given):
            return method(block, *args, **kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            with _marked():
                return method(block, *args, **kwargs)

        contexts = functools.partial(_contexts, block)
        return checkpoint(run, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return call


def _has_tensor(values: Iterable[Any]) -> bool:
    return any(isinstance(v, Tensor) or (isinstance(v, tuple | list) and _has_tensor(v)) for v in values)


@contextmanager
def _marked() -> Iterator[None]:
    """Within, blocks and their methods are called as they are: what calls them is computed anew as a whole."""
    _inside.is_set = True
    try:
        yield
    finally:
        _inside.is_set = False


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What the first call is made in, and what all later ones."""
    return nullcontext(), StatisticsKept(block)


class StatisticsKept(AbstractContextManager[None]):
    """Within, batch norms write what they count into copies: buffers are exchanged, as a graph may hold them.

    A class, since a graph that is gone through twice enters it twice.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.kept: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        norms = [part for part in self.block.modules() if getattr(part, "running_mean", None) is not None]
        self.kept = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
        for norm, name, buffer in self.kept:
            setattr(norm, name, buffer.clone())

    def __exit__(self, *_: object) -> None:
        for norm, name, buffer in self.kept:
            setattr(norm, name, buffer)
