"""The pictures of a comparison, one PNG a panel: quality by task, learning curves, quality against cost, growth of the cost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # no window, and no display needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from fusionkit.files.atomic import atomic_write
from fusionkit.reporting.comparison import Comparison, Entry
from fusionkit.reporting.run_costs import AXES, COSTS, MEASURES
from fusionkit.reporting.styles import Style, label_ends, label_points, short, style_of

WIDTH, HEIGHT = 4.8, 3.2  # inches
THEMES = {"light": ("#ffffff", "#1f2328", "#d0d7de"), "dark": ("#161b22", "#e6edf3", "#30363d")}  # paper, ink, grid
CURVES = ("train/loss", "val/mean")  # shown of every run; beside them the headlines as validated
GROWTH = "Growth of the cost"
MOST_CURVES = 8  # panels
AGAINST = {  # cost -> how its panels are called, and how many there are at most
    "parameters": ("parameters", 6),
    "image_seconds": ("time", 3),
    "flops_per_sample": ("flops", 2),
    "step_seconds": ("step", 2),
}


class Panel(NamedTuple):
    """A picture: the stem of its file, its title, its content in words, and the function that draws it."""

    name: str
    title: str
    words: str
    draw: Callable[[Axes], None]
    height: float = HEIGHT


def panels(comparison: Comparison) -> dict[str, list[Panel]]:
    """Return all panels by their heading."""
    styles = {entry.name: style_of(at) for at, entry in enumerate(comparison.entries)}
    found = {
        "Quality by task": list(_quality(comparison, styles)),
        "Learning curves": list(_curves(comparison, styles)),
        "Quality against cost": list(_costs(comparison, styles)),
        GROWTH: list(_growth(comparison, styles)),
    }
    return {heading: drawn for heading, drawn in found.items() if drawn}


def draw(panel: Panel, path: Path, theme: str = "light") -> None:
    """Write one panel as PNG."""
    with _themed(theme):
        figure, axes = plt.subplots(figsize=(WIDTH, panel.height), layout="constrained")
        figure.suptitle(panel.title, x=0.02, ha="left", fontsize=11, fontweight="bold")
        panel.draw(axes)
        with atomic_write(path) as file:
            figure.savefig(file, dpi=170)
        plt.close(figure)


@contextmanager
def _themed(theme: str) -> Iterator[None]:
    paper, ink, grid = THEMES[theme]
    style: dict[Any, Any] = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), grid),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
        **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    }
    with plt.rc_context(style):
        yield


def _quality(comparison: Comparison, styles: Mapping[str, Style]) -> Iterator[Panel]:
    for metric in comparison.metrics:
        rows = [entry for entry in comparison.entries[::-1] if (entry.name, metric) in comparison.cells]

        def plot(axes: Axes, metric: str = metric, rows: Sequence[Entry] = rows) -> None:
            for row, entry in enumerate(rows):
                cell, color = comparison.cells[entry.name, metric], styles[entry.name].color
                if cell.interval:
                    axes.plot(cell.interval, (row, row), color=color, linewidth=2.5, solid_capstyle="butt")
                if len(entry.runs) > 1:
                    values = entry.values(metric)
                    axes.plot(values, [row] * len(values), "|", color=color, markersize=9)
                styles[entry.name].draw_point(axes, cell.score, row)
                label = f"{cell.score:.1f}{cell.mark}"
                axes.annotate(label, (cell.score, row), (0, 8), textcoords="offset points", ha="center", fontsize=9)
            if (guess := comparison.guesses.get("text only", {}).get(metric)) is not None:
                axes.axvline(guess, color="0.5", linestyle=":", linewidth=1.5)
                axes.annotate("text only", (guess, 1), (3, -9), xycoords=("data", "axes fraction"), textcoords="offset points",
                              color="0.5", fontsize=8)  # fmt: skip
            axes.set_yticks(range(len(rows)), [short(entry.name) for entry in rows])
            axes.set_ylim(-0.6, len(rows) - 0.2)
            axes.margins(x=0.12)
            axes.locator_params(axis="x", nbins=5)  # numbers of two decimals would run into each other
            axes.grid(axis="y", visible=False)
            axes.set_xlabel("%, with 95% interval")

        scores = [f"{entry.name} {comparison.cells[entry.name, metric].score:.1f}" for entry in rows[::-1]]
        yield Panel(
            f"quality_{_stem(metric)}", metric, f"{metric} in %: {', '.join(scores)}", plot, 1.3 + 0.42 * len(rows)
        )


def _curves(comparison: Comparison, styles: Mapping[str, Style]) -> Iterator[Panel]:
    logged = {name for entry in comparison.entries for run in entry.runs for row in run.history for name in row}
    wanted = [*CURVES, *(f"val/{metric}" for metric in comparison.metrics)]
    for name in [name for name in wanted if name in logged][:MOST_CURVES]:
        lines = {entry.name: line for entry in comparison.entries if (line := _line(entry, name))}

        def plot(axes: Axes, name: str = name, lines: Mapping[str, tuple[list[float], list[float]]] = lines) -> None:
            for entry, (steps, values) in lines.items():
                color, stroke, *_ = styles[entry]
                axes.plot(steps, values, stroke, color=color, linewidth=1.8, marker="." if len(steps) < 20 else "")
            if name == "train/loss":
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(ScalarFormatter())
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("step")
            label_ends(axes, lines, styles)

        ends = [f"{entry} {values[-1]:.3g}" for entry, (_, values) in lines.items()]
        yield Panel(
            f"curve_{_stem(name)}",
            name,
            f"{name} by step; at the end: {', '.join(ends)}",
            plot,
            max(HEIGHT, 1 + 0.2 * len(lines)),
        )


def _line(entry: Entry, name: str) -> tuple[list[float], list[float]] | None:
    """Return steps and values: means over the seeds at each step that all of them logged, at most 100 points."""
    logged = [{row["step"]: row[name] for row in run.history if name in row} for run in entry.runs]
    steps = sorted(set.intersection(*map(set, logged)))
    if not steps:
        return None
    values = [fmean(run[step] for run in logged) for step in steps]
    parts = np.array_split(np.arange(len(steps)), min(len(steps), 100))
    return [steps[part[-1]] for part in parts], [fmean(values[at] for at in part) for part in parts]


def _costs(comparison: Comparison, styles: Mapping[str, Style]) -> Iterator[Panel]:
    for cost, (kind, most) in AGAINST.items():
        unit, drawn = COSTS[cost], 0
        for metric in comparison.metrics:
            points = {
                entry.name: (entry.costs[cost] / unit.size, cell.score, cell.interval)
                for entry in comparison.entries
                if cost in comparison.costs
                and cost in entry.costs
                and (cell := comparison.cells.get((entry.name, metric)))
            }
            if drawn == most or len({x for x, *_ in points.values()}) < 2:  # an equal cost says nothing
                continue

            def plot(axes: Axes, title: str = unit.title, points: Mapping[str, tuple[Any, ...]] = points) -> None:
                for name, (x, score, interval) in points.items():
                    if interval:
                        axes.plot((x, x), interval, color=styles[name].color, linewidth=1.5, alpha=0.6)
                    styles[name].draw_point(axes, x, score)
                axes.set_xlabel(title)
                axes.margins(x=0.15, y=0.12)
                label_points(axes, {name: (x, score) for name, (x, score, _) in points.items()}, styles)

            drawn += 1
            words = ", ".join(f"{name} {score:.1f} at {x:.3g}" for name, (x, score, _) in points.items())
            yield Panel(
                f"cost_{kind}_{_stem(metric)}",
                f"{metric}, %",
                f"{metric} in % against {unit.title}: {words}",
                plot,
                max(HEIGHT, 1.6 + 0.13 * len(points)),
            )


def _growth(comparison: Comparison, styles: Mapping[str, Style]) -> Iterator[Panel]:
    """Yield time and memory of the fusion alone by the size of its input; labels give the fitted power."""
    for measure, axis in product(MEASURES, AXES):
        grown = {entry.name: entry.measured for entry in comparison.entries if axis in entry.measured.growth}
        lines = {name: (each.growth[axis]["sizes"], each.growth[axis][measure]) for name, each in grown.items()}
        if not lines:
            continue
        powers = {name: f"{each.exponents()[f'{axis}/{measure}']:.2f}" for name, each in grown.items()}

        def plot(
            axes: Axes,
            axis: str = axis,
            lines: Mapping[str, tuple[Sequence[float], Sequence[float]]] = lines,
            powers: Mapping[str, str] = powers,
        ) -> None:
            for name, (sizes, values) in lines.items():
                color, stroke, marker, _ = styles[name]
                axes.plot(sizes, values, stroke, color=color, linewidth=1.8, marker=marker, markersize=4)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            ticks = sorted({size for sizes, _ in lines.values() for size in sizes})
            axes.set_xticks(ticks, [f"{size:.0f}" for size in ticks])
            axes.set_xlabel(AXES[axis])
            label_ends(axes, lines, styles, powers)

        words = ", ".join(
            f"{name} {values[-1]:.3g}, to the power {powers[name]}" for name, (_, values) in lines.items()
        )
        yield Panel(
            f"growth_{measure}_{axis}",
            MEASURES[measure],
            f"{MEASURES[measure]} by {AXES[axis]}; at the largest: {words}",
            plot,
            max(HEIGHT, 1 + 0.2 * len(lines)),
        )


def _stem(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
