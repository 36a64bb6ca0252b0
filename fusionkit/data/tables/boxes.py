"""The check of ``fusionkit.data.boxes`` over the boxes of a whole split."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fusionkit.data.boxes import checked, require_boxes
from fusionkit.data.tables.column import ABSENT, JSON, Column
from fusionkit.data.tables.table import FACT, ID, Tables, sizes_of

BOX = FACT + "box"


def require_boxes_of(tables: Tables, kind: str, path: str) -> None:
    """Raise DataError for the first box of a kind of texts that no reader should have given, those of one's own included."""
    found = tables.texts[kind].get(BOX)
    if found is None or found.array.null_count == len(found):
        return
    rows = np.flatnonzero(found.array.is_valid().to_numpy(zero_copy_only=False))
    owners = np.repeat(np.arange(len(tables)), np.diff(tables.ends[kind], prepend=0))[rows]
    limits = sizes_of(tables)[owners]
    if (boxes := _numbers(found, len(rows))) is not None:
        has_area, is_inside = checked(boxes, limits)
        wrong = ~(has_area & is_inside)
        rows, limits = rows[wrong], limits[wrong]
    given = [(value, row) for value, row in zip(found.take(rows).values(), range(len(rows)), strict=True)]
    given = [(value, row) for value, row in given if value is not None and value is not ABSENT]
    known = [tuple(map(int, limits[row])) if np.isfinite(limits[row]).all() else None for _, row in given]
    ids = tables.texts[kind][ID].take(rows).values()
    names = [f"{ids[row]} of the {kind}" for _, row in given]
    require_boxes([value for value, _ in given], known, names, path)  # type: ignore[arg-type]


def _numbers(found: Column, count: int) -> NDArray[np.float64] | None:
    """Boxes (N, 4) that are all four finite numbers; None where one may not be."""
    if found.how == JSON:
        return None
    lists: Any = found.array.drop_null()
    is_number = pa.types.is_floating(lists.type.value_type) or pa.types.is_integer(lists.type.value_type)
    if not is_number or set(np.unique(lists.value_lengths().to_numpy())) != {4}:
        return None
    boxes = np.asarray(lists.flatten().to_numpy(), dtype=np.float64).reshape(count, 4)
    return boxes if np.isfinite(boxes).all() else None
