"""Boxes of a table in any convention: recognised by what fits their images, and turned into x, y, width, height in pixels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fusionkit.data.boxes import Floats, Size, box_table, usable
from fusionkit.data.readers.row_columns import CORNERS, corners_in
from fusionkit.data.sample import Text
from fusionkit.errors import ConfigError, DataError, suggest

KINDS = ("xywh", "xyxy", "cxcywh")
THOUSAND = 1000.0
UNITS = {"": None, "_relative": 1.0, "_1000": THOUSAND}  # how a convention's name ends: what the side of an image is
CONVENTIONS = tuple(kind + unit for unit in UNITS for kind in KINDS)
FITS = 0.95  # of the boxes lie in their images, where a convention is right
SLACK = 0.005  # of a side, by which a box may leave its image


def require_convention(name: str) -> None:
    """Raise ConfigError for a convention that there is not."""
    if name not in CONVENTIONS:
        raise ConfigError(f"data.boxes is '{name}'; {suggest(name, CONVENTIONS)}")


def recognise(boxes: Floats, sizes: Sequence[Size], kind: str | None, path: object) -> str:
    """The convention of boxes (N, 4) on images of these sizes; ``kind`` is that which the columns' names tell.

    DataError where no convention fits, or several do: they are stated as data.boxes then.
    """
    is_relative = bool((np.abs(boxes) <= 1 + SLACK).all())
    unit = "_relative" if is_relative else ""
    limits = np.ones((len(boxes), 2)) if is_relative else np.array(sizes, dtype=float).reshape(-1, 2)
    shares = {each: _share_inside(corners(boxes, each), limits) for each in ([kind] if kind else KINDS)}
    fitting = [each for each, share in shares.items() if share >= FITS]
    if not is_relative and len(fitting) > 1 and "cxcywh" in fitting:
        fitting.remove("cxcywh")  # nobody writes centres in pixels but says so
    if limits.min() > THOUSAND:  # where thousandths look like pixels of the upper left part of each image
        thousand = np.full_like(limits, THOUSAND)
        fitting += [f"{each}_1000" for each in fitting if _share_inside(corners(boxes, each), thousand) == 1]
    first = [round(value, 3) for value in boxes[0].tolist()]
    if len(fitting) == 1:
        return fitting[0] + unit
    told = " and ".join(fitting) if fitting else "no convention"
    advice = f"state it as data.boxes=NAME, {suggest('', CONVENTIONS)}"
    raise DataError(
        f"the boxes of {path}, such as {first} on {sizes[0][0]} x {sizes[0][1]} pixels, fit {told}; {advice}"
    )


def corners(boxes: Floats, kind: str) -> Floats:
    """Boxes (N, 4) of a kind as x1, y1, x2, y2, in their own unit."""
    first, second = boxes[:, :2], boxes[:, 2:]
    if kind == "xyxy":
        return boxes
    low = first - second / 2 if kind == "cxcywh" else first
    return np.concatenate([low, low + second], axis=1)


def in_pixels(boxes: Floats, sizes: Sequence[Size], convention: str) -> Floats:
    """Boxes (N, 4) of a convention as x, y, width, height in pixels of images of these sizes."""
    kind, _, unit = convention.partition("_")
    side = UNITS[f"_{unit}" if unit else ""]
    found = corners(boxes, kind)
    if side is not None:
        found = found / side * np.tile(np.array(sizes, dtype=float).reshape(-1, 2), 2)
    return np.concatenate([found[:, :2], found[:, 2:] - found[:, :2]], axis=1)


def _share_inside(found: Floats, limits: Floats) -> float:
    slack = np.maximum(SLACK * limits, 0 if limits.max() <= 1 else 1)
    has_area = (found[:, 2:] > found[:, :2]).all(axis=1)
    inside = (found[:, :2] >= -slack).all(axis=1) & (found[:, 2:] <= limits + slack).all(axis=1)
    return float((has_area & inside).mean())


def number_table(values: Sequence[Any], names: Sequence[Any], path: Path) -> Floats:
    """Boxes (N, 4) of numbers, of texts of numbers, as csv has them, or of objects. DataError for what is none of these."""
    return box_table([_numbers(value, name, path) for value, name in zip(values, names, strict=True)], names, path)


def told_by(values: Sequence[Any]) -> str | None:
    """The convention that the names in boxes which are objects tell; None for others."""
    told = corners_in(values[0]) if values and isinstance(values[0], Mapping) else None
    return told[1] if told else None


def _numbers(value: Any, name: Any, path: Path) -> Any:
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    if isinstance(value, Mapping):
        if (told := corners_in(value)) is None:
            known = ", or ".join(", ".join(names) for names, _ in CORNERS)
            raise DataError(f"the box of {name} in {path} is an object of {', '.join(map(str, value))}; known: {known}")
        value = told[0]
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], list | tuple):
        value = value[0]
    try:
        return value if any(isinstance(number, bool) for number in value) else [float(number) for number in value]
    except (TypeError, ValueError, OverflowError):
        return value


def with_boxes(
    texts: list[list[tuple[str, Text]]], sizes: Sequence[Size | None], convention: Callable[[], str], path: Path
) -> list[list[tuple[str, Text]]]:
    """The texts of each picture with their boxes as xywh in pixels; expressions whose boxes are wrong are left out, and told."""
    rows = [
        (text, size)
        for said, size in zip(texts, sizes, strict=True)
        for kind, text in said
        if kind == "expressions" and size is not None
    ]
    if not rows:
        return [[each for each in said if each[0] != "expressions"] for said in texts]
    names = [f"expression {text.id}" for text, _ in rows]
    table = number_table([text.facts["box"] for text, _ in rows], names, path)
    known = [size for _, size in rows]
    boxes = usable(in_pixels(table, known, convention()).tolist(), known, names, path, cut=True)
    good = dict(zip((text.id for text, _ in rows), boxes, strict=True))
    return [
        [
            (kind, replace(text, facts={**text.facts, "box": good[text.id]}) if kind == "expressions" else text)
            for kind, text in said
            if kind != "expressions" or good.get(text.id) is not None
        ]
        for said in texts
    ]
