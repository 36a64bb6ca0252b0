"""The pictures of a study: quality by task, quality against cost, growth of time and memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, and no display needed
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusionkit.files.atomic import atomic_write
from fusionkit.reporting.statistics import estimate
from fusionkit.reporting.study_runs import Run, values_of
from fusionkit.reporting.study_table import METRICS, ranked

AXES = {"image_tokens": "image tokens (one text)", "texts_per_image": "texts of one image"}
MEASURES = {"seconds": "forward and backward, s", "megabytes": "kept for backward, MB"}
MARKERS = "osD^vP*X<>" * 3


def plot_quality(runs: Sequence[Run], path: Path) -> None:
    """One panel a metric: mean and 95% interval of each variant, the seeds as dots, the text-only guess as a line."""
    metrics = {name: title for name, title in METRICS.items() if any(name in run.metrics for run in runs)}
    names = ranked(runs, next(iter(metrics)))[::-1]
    figure, panels = plt.subplots(
        2, 3, figsize=(12, 1.8 + 0.5 * len(names)), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, (metric, title) in zip(panels.flat, metrics.items(), strict=False):
        for row, name in enumerate(names):
            _draw_estimate(panel, values_of(runs, name, metric), row)
        guess = max((run.metrics.get(f"{metric}_baseline", 0.0) for run in runs), default=0.0)
        panel.axvline(guess, color="0.5", linestyle="--", linewidth=1, label="text only")
        low, high = panel.get_xlim()
        panel.set_xlim(max(low, -2), min(high, 102))  # an interval may promise more than there is
        panel.set_title(title, fontsize=10)
        panel.set_yticks(range(len(names)), names)
        panel.grid(axis="x", alpha=0.3)
    for panel in panels.flat[len(metrics) :]:
        panel.set_visible(False)
    panels[0, 0].legend(fontsize=8, loc="lower right")
    figure.supxlabel("%, mean and 95% interval over seeds; dots are single seeds", fontsize=9)
    _save(figure, path)


def _draw_estimate(panel: Axes, values: Sequence[float], row: int) -> None:
    if not values:
        place: dict[str, Any] = {
            "transform": panel.get_yaxis_transform(),
            "ha": "center",
            "va": "center",
            "backgroundcolor": "white",
        }
        panel.text(0.5, row, "refused", color="0.4", fontsize=8, **place)
        return
    mean, margin = estimate(values)
    panel.errorbar(mean, row, xerr=margin, fmt="|", color="C0", markersize=12, capsize=3)
    panel.plot(values, [row] * len(values), ".", color="C1", markersize=5, zorder=3)


def plot_quality_against_cost(runs: Sequence[Run], costs: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """One panel each for the first two metrics; bars are 95% intervals over seeds."""
    metrics = [name for name in METRICS if any(name in run.metrics for run in runs)][:2]
    figure, panels = plt.subplots(1, len(metrics), figsize=(12, 4.8), squeeze=False, layout="constrained")
    for panel, metric in zip(panels.flat, metrics, strict=True):
        for number, name in enumerate(sorted(costs)):
            if values := values_of(runs, name, metric):
                mean, margin = estimate(values)
                marker = MARKERS[number]
                panel.errorbar(
                    1e3 * costs[name]["step_seconds"],
                    mean,
                    yerr=margin,
                    fmt=marker,
                    color=f"C{number}",
                    markersize=8,
                    capsize=3,
                    label=name,
                )
        panel.set_xlim(left=0)
        panel.set_xlabel("ms a training step, one thread")
        panel.set_ylabel(f"{METRICS[metric]}, %")
        panel.set_ylim(max(panel.get_ylim()[0], -2), min(panel.get_ylim()[1], 102))
        panel.grid(alpha=0.25)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9)
    _save(figure, path)


def plot_growth(growth: Mapping[str, Any], exponents: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Time and memory by image tokens and by texts; the legends, dearest first, give the exponents (keys "axis/measure")."""
    figure, panels = plt.subplots(2, 2, figsize=(15, 8.5), layout="constrained")
    styles = {name: {"color": f"C{n}", "marker": MARKERS[n], "markersize": 4} for n, name in enumerate(sorted(growth))}
    for row, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for panel, (axis, title) in zip(row, AXES.items(), strict=True):
            sizes = next(iter(growth.values()))[axis]["sizes"]
            for name in sorted(growth, key=lambda name: -growth[name][axis][measure][-1]):
                power = f"{name}  {exponents[name][f'{axis}/{measure}']:.2f}"
                panel.plot(sizes, growth[name][axis][measure], label=power, **styles[name])
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
            panel.set_xlabel(title)
            panel.set_ylabel(label)
            panel.grid(which="both", alpha=0.25)
            panel.legend(fontsize=8, title="exponent", title_fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)
