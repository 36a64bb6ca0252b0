"""What a contact sheet of pictures shows: values only, drawn in ``visual.contact_sheet``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GREEN, RED, GREY, BLACK, PAPER, MOUNT = "#1a7f37", "#c62828", "#57606a", "#1f2328", "#ffffff", "#eef0f2"
CELL = 244, 200  # a drawing of 64 pixels is shown three times as large


@dataclass(frozen=True)
class Mark:
    """A box to draw, (x, y, w, h) in pixels of the picture's ``size``."""

    box: Sequence[float]
    color: str
    is_dashed: bool = False


@dataclass(frozen=True)
class Note:
    """One remark below a picture."""

    text: str
    color: str = GREY


@dataclass(frozen=True)
class Picture:
    """One image of a panel; its marks refer to ``size`` (None: the file's own), ``frame`` is a colour around it. It is turned
    as the size says, or by its EXIF orientation where it is to be ``upright``.

    ``heat`` (side, side) is laid over it, from its least to its largest value: over all of the image, or over the square in
    its middle (``is_middle``) where that is what the model sees.
    """

    path: Path
    size: tuple[int, int] | None = None
    marks: tuple[Mark, ...] = ()
    frame: str | None = None
    notes: tuple[Note, ...] = ()
    heat: np.ndarray | None = None
    is_middle: bool = False
    upright: bool = False


@dataclass(frozen=True)
class Panel:
    """A heading over one or several pictures side by side."""

    heading: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Sheet:
    """The panels in the order to show them, worst first, and a line that says how to read them."""

    legend: str
    panels: Sequence[Panel]
    cell: tuple[int, int] = CELL  # width and height in pixels of a picture with its mount


def worst_first(ordered: Sequence[tuple[float, int, Panel]]) -> list[Panel]:
    """The panels by their scores, then by their turns."""
    return [panel for *_, panel in sorted(ordered, key=lambda entry: entry[:2])]
