"""Colours and markers of runs in every picture, and the placement of their names."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")  # Okabe and Ito 2008
STROKES = ("-", "--", ":", "-.")  # where there are more runs than colours
MARKERS = "osD^vP*X"
GAP = 16  # pixels of a figure of 100 dots an inch, between the labels of lines
HALF_LETTER = 3.6  # pixels of a figure of 100 dots an inch
SIDES = {
    "above": ((0, 9), "center"),
    "below": ((0, -16), "center"),
    "right": ((9, -4), "left"),
    "left": ((-9, -4), "right"),
}
Point = tuple[float, float]


class Style(NamedTuple):
    """Colour, stroke and marker of an entry in every panel; hollow where the colours begin again."""

    color: str
    stroke: str
    marker: str
    is_hollow: bool

    def draw_point(self, axes: Axes, x: float, y: float) -> None:
        """Draw the marker."""
        inside = plt.rcParams["axes.facecolor"] if self.is_hollow else self.color
        axes.plot(x, y, self.marker, color=self.color, markerfacecolor=inside, markersize=8)

    def text(self) -> dict[str, Any]:
        """Return options of a readable label: the colour mixed with that of the text, on a halo of the paper."""
        ink, paper = plt.rcParams["text.color"], plt.rcParams["axes.facecolor"]
        color = tuple((a + b) / 2 for a, b in zip(to_rgb(self.color), to_rgb(ink), strict=True))
        return {"color": color, "fontsize": 9, "path_effects": [withStroke(linewidth=2.5, foreground=paper)]}


def style_of(place: int) -> Style:
    """Return the style of the entry at this place."""
    turn, at = divmod(place, len(COLORS))
    return Style(COLORS[at], STROKES[turn % len(STROKES)], MARKERS[at], turn % 2 == 1)


def label_ends(
    axes: Axes,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    styles: Mapping[str, Style],
    values: Mapping[str, str] | None = None,
) -> None:
    """Write the name of each line, and its value, at its right end, pushed apart where they would overlap."""
    to_height = (axes.transData + axes.transAxes.inverted()).transform
    axes.autoscale_view()
    wanted = {name: to_height((steps[-1], heights[-1]))[1] for name, (steps, heights) in lines.items()}
    order = sorted(wanted, key=wanted.__getitem__)
    places = np.array([wanted[name] for name in order])
    for _ in range(300):  # each pair that is too close moves apart by half of what is missing
        missing = np.clip(GAP / axes.bbox.height - np.diff(places), 0, None) / 2
        places[:-1] -= missing
        places[1:] += missing
    for name, place in zip(order, places, strict=True):
        options = styles[name].text() | {"va": "center", "annotation_clip": False}
        label = f"{short(name)} {values[name]}" if values else short(name)
        axes.annotate(label, (1.01, place), xycoords="axes fraction", **options)


def label_points(axes: Axes, points: Mapping[str, Point], styles: Mapping[str, Style]) -> None:
    """Write a name beside each point, on the side that is freest of points and names."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # now it is known where the points are
    at: dict[str, Point] = {name: tuple(axes.transData.transform(point)) for name, point in points.items()}
    taken = list(at.values())
    for name, (x, y) in at.items():
        half = HALF_LETTER * len(short(name))
        centers = {"above": (x, y + 15), "below": (x, y - 18), "right": (x + half + 12, y), "left": (x - half - 12, y)}
        side = min(centers, key=lambda side: _crowd(axes, centers[side], half, taken))
        taken.append(centers[side])
        offset, align = SIDES[side]
        options = styles[name].text() | {"ha": align}
        axes.annotate(short(name), points[name], offset, textcoords="offset points", **options)


def _crowd(axes: Axes, center: Point, half: float, taken: Iterable[Point]) -> float:
    """Return how much a name of width 2 ``half`` at this center covers; much where it leaves the panel."""
    (x, y), box = center, axes.bbox
    is_inside = box.x0 < x - half and x + half < box.x1 and box.y0 < y < box.y1
    covered = (max(0, 1 - abs(a - x) / (1.6 * half)) * max(0, 1 - abs(b - y) / 18) for a, b in taken)
    return sum(covered) + 5 * (not is_inside)


def short(name: str, most: int = 24) -> str:
    """Return the end of a long name: what tells runs apart stands there."""
    return name if len(name) <= most else f"…{name[1 - most :]}"
