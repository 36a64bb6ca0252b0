"""Tensors in lists and (named) tuples, and what they were computed from."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from fusionkit.types import Nested


def tensors_of(value: Nested) -> list[Tensor]:
    """The tensors in lists and tuples, in order."""
    if value is None:
        return []
    return [value] if isinstance(value, Tensor) else [tensor for part in value for tensor in tensors_of(part)]


def graph_leaves(results: Iterable[Tensor]) -> list[Tensor]:
    """The leaves that results were computed from, those that want gradients: weights, and what was given."""
    found, seen = list[Tensor](), set[Any]()
    todo: list[Any] = [result.grad_fn for result in results]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo += [before for before, _ in node.next_functions]
    return found


def with_tensors(value: Nested, tensors: Iterator[Tensor]) -> Any:
    """The same lists and tuples with the next of these tensors in the place of each."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return next(tensors)
    parts = [with_tensors(part, tensors) for part in value]
    kind: Any = type(value)
    return kind(*parts) if hasattr(kind, "_fields") else kind(parts)
