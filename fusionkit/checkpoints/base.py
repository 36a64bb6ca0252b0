"""Published checkpoints become ours: tensors are renamed by a table, and loaded strictly.

A family is one file: a function ``plan(source, ...sizes)`` that says which of our configurations the checkpoint is, and a
table of names. The published sizes are the defaults of ``conf/import/<family>.yaml``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit.checkpoints.classes import Classes, to_ours
from fusionkit.checkpoints.source import Source
from fusionkit.errors import DataError

LARGEST_SIDE = 256  # patches of an image, whose tokens attend to each other

Change = Callable[[Tensor, torch.Size], Tensor]
"""A tensor and the shape of ours -> the tensor as ours wants it."""


@dataclass(frozen=True)
class Key:
    """A published name and ours. Names that end in "." stand for all that begin so; the longest fitting name decides.

    ``ours``   several names: the tensor is cut into as many equal parts along its first dimension (a packed qkv).
    ``part``   ours is the concatenation of several published tensors, in the order of their parts (a separate q, k, v).
    ``change`` what else is done to the tensor.
    One published name may stand in several keys: each of ours that the model has then gets it. Several published names of
    one of ours, without a part, are tensors that the published model ties: they have to be equal.
    """

    theirs: str
    ours: str | tuple[str, ...]
    part: int | None = None
    change: Change | None = None


@dataclass(frozen=True)
class Plan:
    """What a checkpoint is in our terms.

    ``family``   its name, and ``release`` where it comes from.
    ``groups``   choices of the groups of conf/train.yaml, as on the command line.
    ``config``   laid over that; a group with a ``_target_`` replaces the whole one.
    ``keys``     the table of names.
    ``left_out`` why a published tensor is not used, by a regular expression of the whole name.
    ``added``    what is ours alone, by our name: a function of its shape.
    ``ids``      of the special tokens: cls, sep, pad, mask.
    ``classes``  what the outputs of each head with fixed classes stand for there, in their order.
    ``answers``  the answer vocabulary by id, for a checkpoint with a classifier over answers.
    ``tokenizer`` the published one, by its name on the hub.
    """

    family: str
    release: str
    groups: Sequence[str]
    config: Mapping[str, Any]
    keys: Sequence[Key]
    left_out: Mapping[str, str]
    ids: Mapping[str, int]
    added: Mapping[str, Callable[[torch.Size], Tensor]] = field(default_factory=dict)
    classes: Classes = field(default_factory=dict)
    answers: Sequence[str] = ()
    tokenizer: str = "bert-base-uncased"

    @property
    def has_named_answers(self) -> bool:
        """Whether the answers are known, rather than numbers that stand for them."""
        return list(self.answers) != [str(number) for number in range(len(self.answers))]


def convert(source: Source, plan: Plan, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors from the published ones, with the names and shapes that are ``expected``.

    Raises DataError with the first names where a published tensor is neither used nor declared as left out, where one of
    ours gets none, where shapes or kinds of numbers differ, and where a number is NaN or infinite.
    """
    named, unknown = _renamed(source.state, plan, expected)
    if unknown:
        raise DataError(
            f"{source.path}: {_some(unknown)} {'is' if len(unknown) == 1 else 'are'} no part of such a checkpoint; is it of "
            "another family, or are its sizes other than the options say?"
        )
    joined = {name: _joined(source, name, parts, expected.get(name)) for name, parts in named.items()}
    added = {name: make for name, make in plan.added.items() if name in expected}
    published = {name: tensor for name, tensor in expected.items() if name not in added}
    _require_all(source, {name: tensor for name, tensor in joined.items() if name not in added}, published)
    joined |= {name: make(expected[name].shape) for name, make in added.items()}  # of sizes that others have confirmed
    found = {name: joined[name].to(expected[name].dtype) for name in expected}
    _require_finite(source, {name: tensor for name, tensor in found.items() if name not in plan.added}, named)
    return to_ours(found, plan.classes)


def _renamed(
    state: Mapping[str, Tensor], plan: Plan, expected: Mapping[str, Tensor]
) -> tuple[dict[str, list[tuple[Key, Tensor]]], list[str]]:
    """By our name, the published tensors it is made of with the keys that say how; and the names that nothing covers."""
    by_name: dict[str, list[Key]] = {}
    for key in dict.fromkeys(plan.keys):
        by_name.setdefault(key.theirs, []).append(key)
    named: dict[str, list[tuple[Key, Tensor]]] = {}
    unknown = []
    for name, tensor in state.items():
        if any(re.fullmatch(pattern, name) for pattern in plan.left_out):
            continue
        start = longest(name, by_name)
        if start is None:
            unknown.append(name)
            continue
        found = [(ours + name[len(start) :], key, part) for key in by_name[start] for ours, part in _cut(key, tensor)]
        used = [item for item in found if item[0] in expected]
        for ours, key, part in used or found:  # a name of several kinds of checkpoint is used where this one has it
            named.setdefault(ours, []).append((key, part))
    return named, unknown


def _cut(key: Key, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Our names of a key with the part of the tensor that each gets."""
    if isinstance(key.ours, str):
        return [(key.ours, tensor)]
    return list(zip(key.ours, tensor.chunk(len(key.ours)), strict=True))


def invert(state: Mapping[str, Tensor], keys: Sequence[Key]) -> tuple[dict[str, Tensor], list[str]]:
    """Published tensors from ours by the same table, and our names that it does not have.

    Where a published tensor is several of ours (one temperature for student and teacher), the first key says which.
    """
    table: dict[str, list[Key]] = {}
    for key in keys:
        table.setdefault(key.theirs, []).append(key)
    found: dict[str, tuple[int, Tensor]] = {}
    foreign = []
    for ours, tensor in state.items():
        named = [
            (number, key) for number, key in enumerate(keys) if isinstance(key.ours, str) and _fits(ours, key.ours)
        ]
        theirs = [(number, key, key.theirs + ours[len(str(key.ours)) :]) for number, key in named]
        theirs = [place for place in theirs if longest(place[2], table) == place[1].theirs]
        if not theirs:
            foreign.append(ours)
        for number, key, name in theirs:
            if name not in found or number < found[name][0]:
                found[name] = (number, INVERSES.get(key.change, _same)(tensor))
    return {name: tensor for name, (_, tensor) in found.items()}, foreign


def _fits(name: str, entry: str) -> bool:
    return name.startswith(entry) if entry.endswith(".") else name == entry


def _same(tensor: Tensor) -> Tensor:
    return tensor


def longest(name: str, table: Mapping[str, Any]) -> str | None:
    """The longest entry of a table of names, and beginnings that end in ".", that fits a name."""
    ends = [len(name), *(dot.end() for dot in reversed(list(re.finditer(r"\.", name))))]
    return next((name[:end] for end in ends if name[:end] in table), None)


def _joined(source: Source, name: str, parts: Sequence[tuple[Key, Tensor]], expected: Tensor | None) -> Tensor:
    parts = sorted(parts, key=lambda pair: pair[0].part or 0)
    tensors = [tensor for _, tensor in parts]
    change = parts[0][0].change
    if parts[0][0].part is not None:
        if len({part.shape[1:] for part in tensors}) > 1 or not tensors[0].dim():
            shapes = [f"{key.theirs} {tuple(part.shape)}" for key, part in parts]
            raise DataError(f"{source.path}: {' and '.join(shapes)} do not fit together ({name} of ours)")
        tensor = torch.cat(tensors)
    else:
        tensor = tensors[0]
        if not all(tensor.equal(other) for other in tensors[1:]):
            theirs = " and ".join(key.theirs for key, _ in parts)
            raise DataError(
                f"{source.path}: {theirs} differ, but are one tensor in the published model ({name} of ours)"
            )
    if change is None or expected is None:
        return tensor
    if tensor.is_floating_point() and expected.is_floating_point():
        tensor = tensor.to(expected.dtype)  # what was saved in half precision is computed with in full
    try:
        return change(tensor, expected.shape)
    except (IndexError, RuntimeError):  # of too few dimensions to be changed: its shape is then told to differ
        return tensor


def _require_all(source: Source, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if missing := [name for name in expected if name not in found]:
        raise DataError(
            f"{source.path} holds nothing for {_some(missing)}; is it truncated, or are its sizes other than the options say?"
        )
    if foreign := [name for name in found if name not in expected]:
        raise DataError(
            f"{source.path} holds more than the options say: {_some(foreign)}; give its own sizes as options"
        )
    shapes = [name for name in expected if found[name].shape != expected[name].shape]
    if shapes:
        told = [f"{name} is {tuple(found[name].shape)} there and {tuple(expected[name].shape)} here" for name in shapes]
        raise DataError(f"{source.path}: {_some(told, '; ')}; give its own sizes as options")
    # a counter that was cast with the weights still counts
    kinds = [name for name in expected if expected[name].is_floating_point() and not found[name].is_floating_point()]
    if kinds:
        told = [f"{name} is {found[name].dtype} there and {expected[name].dtype} here" for name in kinds]
        raise DataError(f"{source.path}: {_some(told, '; ')}; give the checkpoint's own weights, not quantized ones")


def _require_finite(
    source: Source, found: Mapping[str, Tensor], named: Mapping[str, Sequence[tuple[Key, Tensor]]]
) -> None:
    if bad := [name for name, t in found.items() if t.is_floating_point() and not t.isfinite().all()]:
        theirs = " and ".join(key.theirs for key, _ in named[bad[0]])
        others = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DataError(
            f"{source.path} holds NaN or infinite numbers, in {theirs} ({bad[0]} of ours){others}; take a checkpoint of before "
            "the training failed"
        )


def _some(names: Sequence[str], comma: str = ", ") -> str:
    return comma.join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def resize_positions(tensor: Tensor, shape: torch.Size, num_prefix_tokens: int = 1) -> Tensor:
    """Learnt positions (1, P + side^2, D) for another square grid: bicubic on the grid, the P prefix positions as they are.

    As ALBEF, BLIP and METER do when they load a checkpoint for larger images (align_corners=False).
    """
    if tensor.shape == shape:
        return tensor
    prefix, grid = tensor[:, :num_prefix_tokens], tensor[:, num_prefix_tokens:]
    side, wanted = (round((count - num_prefix_tokens) ** 0.5) for count in (tensor.shape[1], shape[1]))
    if side**2 != grid.shape[1] or wanted**2 != shape[1] - num_prefix_tokens:
        return tensor  # no square: the shapes are then told to differ
    if wanted > LARGEST_SIDE:
        raise DataError(
            f"images are {wanted} patches wide by its options, but were {side} when its positions were trained; give the size "
            "of images that it is for"
        )
    square = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
    resized = F.interpolate(square, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return torch.cat([prefix, resized.permute(0, 2, 3, 1).flatten(1, 2).to(prefix.dtype)], dim=1)


def constant(value: float) -> Callable[[torch.Size], Tensor]:
    """A tensor of our shape that holds one number."""
    return lambda shape: torch.full(shape, value)


def transposed(tensor: Tensor, shape: torch.Size) -> Tensor:
    """A matrix with rows and columns exchanged (ALBEF's queues are (E, Q), ours (Q, E))."""
    return tensor.T


def reshaped(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The same numbers in our shape, where there are as many (a scalar that is stored as one row)."""
    return tensor.reshape(shape) if tensor.numel() == shape.numel() else tensor


def as_row(tensor: Tensor) -> Tensor:
    """The inverse of ``reshaped`` for scalars and vectors that are published as one row."""
    return tensor.reshape(1, -1) if tensor.dim() else tensor.reshape(1)


INVERSES: dict[Change | None, Callable[[Tensor], Tensor]] = {transposed: torch.t, reshaped: as_row}
