"""In which coordinates predicted boxes are given: told by where they lie, and by how they fit the true ones."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Overlap = Callable[[Floats, Floats], Floats]
EXPECTED = "[x, y, width, height]"
SHAPES: dict[str, Callable[[Floats], Floats]] = {
    EXPECTED: lambda boxes: boxes,
    "corners [x0, y0, x1, y1]": lambda boxes: np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]),
    "[center x, center y, width, height]": lambda boxes: np.hstack([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]]),
}
UNITS = {
    "in pixels": None,
    "in 0..1 of the image": 1.0,
    "in 0..100 of the image": 100.0,
    "in 0..1000 of the image": 1000.0,
}
SURE, BETTER = 0.3, 2.0  # the mean IoU of boxes that are read rightly, and times the IoU of those that are not


def note_on_units(given: Floats, true: Floats, sizes: Sequence[tuple[int, int] | None], overlap: Overlap) -> str | None:
    """What has to be said of predicted boxes (N, 4) that were scored as xywh in pixels, beside true ones; None: nothing.

    Coordinates in parts of the image are only tried where its ``sizes`` are known.
    """
    if not len(given) or not given.any():
        return None
    fits = {name: float(overlap(boxes, true).mean()) for name, boxes in _readings(given, sizes)}
    scored, best = next(iter(fits)), max(fits, key=fits.__getitem__)
    if fits[best] >= max(SURE, BETTER * fits[scored]):
        return (
            f"the boxes fit the true ones as {best} (mean IoU {100 * fits[best]:.1f}), and were scored as {scored} "
            f"({100 * fits[scored]:.1f}): convert the file"
        )
    if np.median(given[given.any(axis=1)].max(axis=1)) <= 1 < true.max():  # of some a guessed side leaves the image
        return (
            f"the boxes lie within one pixel, as if they were in 0..1 of the image, and were scored as {scored}: convert "
            "the file"
        )
    outside = _leave(given, sizes)
    if 2 * outside > len(given):
        return (
            f"{outside:,} of {len(given):,} boxes leave their image, as corners or coordinates in 0..1000 do, and were scored "
            f"as {scored}: convert the file if they are such"
        )
    return None


def _readings(given: Floats, sizes: Sequence[tuple[int, int] | None]) -> list[tuple[str, Floats]]:
    """The boxes as xywh in pixels by what they would be then; the expected reading first."""
    known = [size for size in sizes if size is not None]
    whole = (
        np.array(known, dtype=float).reshape(-1, 2).repeat(2, axis=0).reshape(-1, 4)
        if len(known) == len(sizes)
        else None
    )
    found = []
    for unit, parts in UNITS.items():
        if parts is None or whole is not None:
            scale = 1.0 if parts is None or whole is None else whole / parts
            found += [(f"{shape} {unit}", read(given) * scale) for shape, read in SHAPES.items()]
    return found


def _leave(given: Floats, sizes: Sequence[tuple[int, int] | None]) -> int:
    """How many boxes leave their image by more than a tenth of it."""
    limits = np.array([size or (np.inf, np.inf) for size in sizes], dtype=float)
    return int((given[:, :2] + given[:, 2:] > 1.1 * limits).any(axis=1).sum())
