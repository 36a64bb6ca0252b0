"""Recall against the number of candidates that are re-ranked: how many are worth their time, read off one re-ranking."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fusionkit.data.sample import Sample
from fusionkit.files.atomic import atomic_write, write_text
from fusionkit.scoring.records import Record, Records
from fusionkit.scoring.scorers import RETRIEVAL

LISTED = 32  # items of a list that R@10 is read off; the rest of it is left out
WAYS = {"text_to_image": "text to image", "image_to_text": "image to text"}
CUTS = {"r1": "#1a7f37", "r5": "#0550ae", "r10": "#8250df"}


def recall_curve(first: Records, again: Records, samples: Sequence[Sample], k: int) -> list[dict[str, float]]:
    """``{"k", "text_to_image_r1", ...}`` as re-ranking k, k/2, k/4 .. 1 and no candidates would score, fewest first.

    first   ``list_records`` of the contrastive ranking, at least k items a query
    again   the same after the k nearest items of each query were re-ranked
    """
    counts = [0, *sorted({max(1, k >> step) for step in range(k.bit_length())})]
    curve = []
    for count in counts:
        records = [rerank_fewer(*pair, count) for pair in zip(first, again, strict=True)]
        scores = RETRIEVAL(records, samples)
        curve.append({"k": count, **{name: scores[name] for name in (f"{way}_{cut}" for way in WAYS for cut in CUTS)}})
    return curve


def rerank_fewer(first: Record, again: Record, k: int) -> Record:
    """The start of a query's list as if only its k nearest items had been re-ranked."""
    key = "image_ids" if "image_ids" in first else "caption_ids"
    nearest, rest = set(first[key][:k]), slice(k, k + LISTED)
    head = [pair for pair in zip(again[key], again["scores"], strict=True) if pair[0] in nearest]
    below = head[-1][1] - 1 - max(first["scores"][rest], default=0) if head else 0
    tail = [(item, score + below) for item, score in zip(first[key][rest], first["scores"][rest], strict=True)]
    listed = [*head, *tail][:LISTED]
    query = {name: value for name, value in first.items() if name not in (key, "scores")}
    return {**query, key: [item for item, _ in listed], "scores": [score for _, score in listed]}


def write_curve(curve: Sequence[dict[str, float]], title: str, stem: Path) -> None:
    """Write ``<stem>.json`` and ``<stem>.png``."""
    write_text(stem.with_name(f"{stem.name}.json"), json.dumps(curve, indent=1) + "\n")
    with atomic_write(stem.with_name(f"{stem.name}.png")) as file:
        draw_curve(curve, title).savefig(file, dpi=120)


def draw_curve(curve: Sequence[dict[str, float]], title: str) -> Figure:
    """R@1, R@5 and R@10 both ways; the steps of k are equally wide, since each is twice the one before."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(f"{title} · recall by number of re-ranked candidates")
    places = range(len(curve))
    panels: Any = figure.subplots(1, 2, sharey=True)
    for axes, (way, words) in zip(panels, WAYS.items(), strict=True):
        for cut, color in CUTS.items():
            axes.plot(places, [point[f"{way}_{cut}"] for point in curve], "o-", color=color, label=f"R@{cut[1:]}")
        axes.set_title(words)
        axes.set_xlabel("candidates re-ranked")
        axes.set_xticks(places, [f"{point['k']:g}" for point in curve])
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("%")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")  # hides no point
    return figure
