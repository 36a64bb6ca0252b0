"""One check of annotated boxes, [x, y, width, height] in pixels, for all readers; over columns."""

import math
import warnings
from collections.abc import Sequence
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionkit.errors import DataError

Box = tuple[float, float, float, float]
Size = tuple[int, int]
Floats = NDArray[np.float64]
LONGEST = 2**31 - 1  # pixels of a side, as far as any format counts
TOLERANCE = 1.0  # pixels by which a published box may leave its image
NO_SIDE, OUTSIDE = "has a side that is not positive", "does not lie inside its image"


def four_numbers(value: Any) -> bool:
    """Whether a value is four finite numbers, numpy's among them, and no texts or truth values."""
    return (
        isinstance(value, list | tuple | np.ndarray)
        and len(value) == 4
        and all(isinstance(number, Real) and not isinstance(number, bool) for number in value)
        and all(map(_is_finite, value))
    )


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond all floats
        return False


def box_table(values: Sequence[Any], names: Sequence[Any], path: Path | str) -> Floats:
    """Boxes (N, 4); ``names`` says in words which each is. DataError for what is not four finite numbers."""
    if (plain := _plain_table(values)) is not None:
        return plain
    for value, name in zip(values, names, strict=True):
        if not four_numbers(value):
            shown = " ".join(str(value).split())[:60]
            raise DataError(
                f"the box of {name} in {path} is {shown}, but has to be four numbers, [x, y, width, height] in pixels"
            )
    return np.array(values, dtype=float).reshape(-1, 4)


def _plain_table(values: Sequence[Any]) -> Floats | None:
    """Boxes of Python's own numbers, looked at all at once; None where one is something else, or not finite."""
    is_plain = set(map(type, values)) <= {list, tuple} and set(map(len, values)) <= {4}
    if not is_plain or not set(map(type, chain.from_iterable(values))) <= {int, float}:
        return None
    try:
        table: Floats = np.array(values, dtype=float).reshape(-1, 4)
    except OverflowError:
        return None
    return table if np.isfinite(table).all() else None


def faults(boxes: Floats, sizes: Sequence[Size | None], tolerance: float = TOLERANCE) -> list[str | None]:
    """What is wrong with each box, None where nothing is: of no area or reversed, or outside an image whose size is known."""
    limits = np.array([size or (np.inf, np.inf) for size in sizes], dtype=float).reshape(-1, 2)
    has_area, is_inside = checked(boxes, limits, tolerance)
    return [
        NO_SIDE if not area else None if inside else OUTSIDE
        for area, inside in zip(has_area.tolist(), is_inside.tolist(), strict=True)
    ]


def checked(boxes: Floats, limits: Floats, tolerance: float = TOLERANCE) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which boxes (N, 4) have an area, and which lie in their images of the sizes ``limits`` (N, 2), infinite if not known."""
    has_area = np.asarray((boxes[:, 2:] > 0).all(axis=1))
    known = np.isfinite(limits).all(axis=1)
    inside = (boxes[:, :2] >= -tolerance).all(axis=1) & (boxes[:, :2] + boxes[:, 2:] <= limits + tolerance).all(axis=1)
    overlaps = (boxes[:, :2] < limits).all(axis=1) & (boxes[:, :2] + boxes[:, 2:] > 0).all(axis=1)
    return has_area, np.asarray((inside & overlaps) | ~known)


def require_boxes(values: Sequence[Any], sizes: Sequence[Size | None], names: Sequence[str], path: Path | str) -> None:
    """Raise DataError, with the first box that is wrong, unless all are four numbers, have an area and lie in their image."""
    for row, fault in enumerate(faults(box_table(values, names, path), sizes)):
        if fault is not None:
            raise DataError(_describe(values[row], names[row], fault, sizes[row], path))


def usable(
    values: Sequence[Any], sizes: Sequence[Size], names: Sequence[Any], path: Path | str, cut: bool = False
) -> list[Box | None]:
    """The boxes, None in place of those that are wrong, which are told; for published annotations that have such.

    ``cut`` takes boxes that leave their image, cut to it, where half of them and more lies inside. Raises DataError where a
    value is not four numbers, and where more than half of the boxes are wrong.
    """
    boxes = box_table(values, names, path)
    if cut and len(boxes):
        boxes = _cut(boxes, np.array(sizes, dtype=float))
    found = faults(boxes, sizes)
    wrong = [row for row, fault in enumerate(found) if fault is not None]
    if wrong:
        row = wrong[0]
        told = _describe(values[row], names[row], str(found[row]), sizes[row], path)
        if 2 * len(wrong) > len(found):
            raise DataError(f"{len(wrong):,} of {len(found):,} boxes are wrong; the first: {told}")
        warnings.warn(f"{len(wrong):,} of {len(found):,} boxes are left out; the first: {told}", stacklevel=2)
    return [
        None if fault else (x, y, wide, high) for fault, (x, y, wide, high) in zip(found, boxes.tolist(), strict=True)
    ]


def _cut(boxes: Floats, sizes: Floats) -> Floats:
    """Boxes within their images, where half of them or more is left; others as they are."""
    low, high = boxes[:, :2].clip(min=0), np.minimum(boxes[:, :2] + boxes[:, 2:], sizes)
    sides = high - low
    keeps = (sides > 0).all(axis=1) & (2 * sides.prod(axis=1) >= boxes[:, 2:].prod(axis=1))
    return np.where(keeps[:, None], np.concatenate([low, sides], axis=1), boxes)


def written_size(width: Any, height: Any) -> Size | None:
    """The size of an image as the cells of a table say it, whole numbers or texts of such; None where they do not."""
    texts = [str(side) if isinstance(side, str) or _is_side(side) else "" for side in (width, height)]
    is_plain = all(text.isdecimal() and len(text) <= len(str(LONGEST)) for text in texts)
    return size_or_none(dict(zip(("width", "height"), map(int, texts), strict=True))) if is_plain else None


def image_size(width: Any, height: Any, image_id: Any, path: Path | str) -> Size:
    """An image's size; DataError where it is not two whole numbers above 0."""
    if not (_is_side(width) and _is_side(height)):
        raise DataError(f"image {image_id} of {path} is {width!r} x {height!r} pixels; correct its width and height")
    return int(width), int(height)


def size_or_none(row: dict[str, Any]) -> Size | None:
    """The size of an image that an annotation may give and, without boxes, need not."""
    width: Any = row.get("width")
    height: Any = row.get("height")
    return (int(width), int(height)) if _is_side(width) and _is_side(height) else None


def _is_side(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LONGEST and value % 1 == 0


def _describe(box: Any, name: Any, fault: str, size: Size | None, path: Path | str) -> str:
    where = f" ({size[0]} x {size[1]} pixels)" if size else ""
    return (
        f"the box {list(box)} of {name} in {path} {fault}{where}; boxes are [x, y, width, height] in pixels: correct or "
        "remove it"
    )
