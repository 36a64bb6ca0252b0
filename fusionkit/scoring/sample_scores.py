"""What a scorer says of each sample, and every score computed from that.

A row is a plain dictionary, one JSON line:

    id, score   of the sample; the score is 0..100
    image_id    what is resampled as a whole when an interval is estimated
    values      {metric: number}: the metric is the mean over the rows that have it
    sums        {formula: numbers}: the metrics are a formula of their sums (``corpus_metrics``), as for BLEU; "ratios:METRIC" is
                a share and the whole, or several such pairs whose mean counts ("lowest:METRIC": the lowest of them)
    ranks       {metric: rank from 1}: the metric is the median
    areas       {metric: [score of what is true, score of what is false]}: the metric is the area under their ROC curve

So a file of rows is enough to compute the scores, their intervals and whether another run differs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionkit.errors import DataError
from fusionkit.scoring.corpus_metrics import ADDENDS, computed, fits, metric_of
from fusionkit.scoring.record_schema import is_number

AGAIN = "evaluate that run again"
# the last word of metrics of which less is better, where their scorer does not say (``known_direction``)
ERRORS = frozenset(("rank", "loss", "error", "errors", "mae", "mse", "rmse", "wer", "cer", "perplexity", "distance"))
PARTS = ("values", "ranks", "areas")
Row = dict[str, Any]
Floats = NDArray[np.float64]


def known_direction(metric: str, declared: Any = None) -> bool | None:
    """Whether more of a metric is better, None where nobody says: it is then taken to be.

    ``declared``  what a scorer has as ``metrics``, {name: more is better}, of a part of the metric too ("1k/r5", "r5/dogs");
                  without it the name's last word tells an error.
    """
    name = metric.rpartition("/")[2]
    if isinstance(declared, Mapping):
        for part in (metric, *reversed(metric.split("/"))):
            if part in declared:
                return bool(declared[part])
    return False if name.lower().rpartition("_")[2] in ERRORS else None


def is_error(metric: str) -> bool:
    """Whether less of a metric is better, by its name alone."""
    return known_direction(metric) is False


@dataclass(frozen=True)
class SampleScores:
    """The rows, and what has to be said beside their scores: the rule, the boxes, why a metric is missing.

    ``scores`` are all that there are, where the rows do not tell them all; None: those of the rows.
    """

    rows: list[Row]
    notes: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] | None = None


def check_rows(rows: Sequence[Any], path: Path) -> None:
    """Raise DataError with the first row of a file that is not as described above."""
    for number, row in enumerate(rows, start=1):
        for key in ("id", "image_id"):
            if type(row.get(key)) not in (int, str):
                raise DataError(f"{path} row {number}: its {key} is no whole number or text; {AGAIN}")
        parts = {key: row.get(key, {}) for key in (*PARTS, "sums")}
        if wrong := [key for key, value in parts.items() if not isinstance(value, dict)]:
            raise DataError(f"{path} row {number}: its {wrong[0]} are no map; {AGAIN}")
        numbers = {"score": row.get("score"), **parts["values"], **parts["ranks"]}
        if wrong := [name for name, value in numbers.items() if not is_number(value)]:
            raise DataError(f"{path} row {number}: its {wrong[0]} is no number; {AGAIN}")
        for name, sums in parts["sums"].items():
            is_list = isinstance(sums, list) and all(map(is_number, sums))
            if not is_list or not fits(name, len(sums)):
                raise DataError(f"{path} row {number}: its sums of {name} are not those of a metric; {AGAIN}")
        for name, scores in parts["areas"].items():
            if not (isinstance(scores, list) and len(scores) == 2 and all(map(is_number, scores))):
                raise DataError(f"{path} row {number}: its areas of {name} are no two numbers; {AGAIN}")


def scores_of(rows: Sequence[Row], decimals: int | None = 10) -> dict[str, float]:
    """Every metric of the rows that they tell, in the order of their first appearance.

    It has ``decimals``, so that a sum's last bits are not seen; None: as it comes.
    """
    table = Table(rows)
    found = {name: float(value[0]) for name, value in table(np.ones((1, table.size))).items()}
    known = {name: value for name, value in found.items() if not np.isnan(value)}
    return known if decimals is None else {name: round(value, decimals) for name, value in known.items()}


def prefixed(row: Row, name: Callable[[str], str]) -> Row:
    """The row with other names of its metrics; those of a formula with names of its own stay."""
    renamed: Row = {part: {name(key): value for key, value in row[part].items()} for part in PARTS if part in row}
    if "sums" in row:
        sums = row["sums"].items()
        renamed["sums"] = {_renamed(key, name): value for key, value in sums}
    return {**row, **renamed}


def _renamed(key: str, name: Callable[[str], str]) -> str:
    metric = metric_of(key)
    return key if metric is None else key.removesuffix(metric) + name(metric)


class Table:
    """The rows of one file by image, ready to be weighted; ``size`` is the number I of images."""

    def __init__(self, rows: Sequence[Row]) -> None:
        images: dict[Any, int] = {}
        at = np.array([images.setdefault(row["image_id"], len(images)) for row in rows], dtype=np.int64)
        self.size = len(images)
        self.metrics = list(dict.fromkeys(name for row in rows for name, _ in _values(row)))
        self._means = np.zeros((self.size, 2, len(self.metrics)))  # sum and number of an image's values
        column = {name: number for number, name in enumerate(self.metrics)}
        cells = [(i, column[name], value) for i, row in zip(at, rows, strict=True) for name, value in _values(row)]
        place, metric = (np.array([cell[part] for cell in cells], dtype=np.int64) for part in (0, 1))
        values = np.array([value for _, _, value in cells], dtype=float)
        sums, counts = self._means[:, 0], self._means[:, 1]
        at_cells: Any = (place, metric)
        np.add.at(sums, at_cells, values)
        np.add.at(counts, at_cells, 1)
        self._sums = {name: self._summed(name, at, rows) for name in _names(rows, "sums")}
        self._ranks = {name: _sorted(name, at, rows) for name in _names(rows, "ranks")}
        self._areas = {name: _marked(name, at, rows) for name in _names(rows, "areas")}

    @property
    def names(self) -> list[str]:
        """Every metric, in the order of their first appearance."""
        return list(self(np.ones((1, self.size))))

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        """Every metric (R,) under each of R weightings (R, I) of the images; NaN where all that it is about weighs 0."""
        totals, counts = np.tensordot(weights, self._means, axes=1).transpose(1, 2, 0)  # (M, R) each
        with np.errstate(invalid="ignore", divide="ignore"):
            found = dict(zip(self.metrics, totals / counts, strict=True))
            for name, sums in self._sums.items():
                found |= computed(name, weights @ sums)
        found |= {name: _median(*order, weights) for name, order in self._ranks.items()}
        return found | {name: _area(*marked, weights) for name, marked in self._areas.items()}

    def _summed(self, name: str, at: NDArray[np.int64], rows: Sequence[Row]) -> Floats:
        has = [number for number, row in enumerate(rows) if name in row.get("sums", ())]
        of_rows = np.array([rows[number]["sums"][name] for number in has], dtype=float)
        if name in ADDENDS:
            of_rows = ADDENDS[name](of_rows)
        summed = np.zeros((self.size, of_rows.shape[1]))
        np.add.at(summed, at[has], of_rows)
        return summed


def _values(row: Row) -> Iterable[tuple[str, float]]:
    values: dict[str, float] = row.get("values", {})
    return values.items()


def _names(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.get(key, ())))


def _sorted(name: str, at: NDArray[np.int64], rows: Sequence[Row]) -> tuple[Floats, NDArray[np.int64]]:
    """The ranks, ascending, and the image of each."""
    has = [number for number, row in enumerate(rows) if name in row.get("ranks", ())]
    ranks = np.array([rows[number]["ranks"][name] for number in has], dtype=float)
    order = ranks.argsort(kind="stable")
    return ranks[order], at[has][order]


def _median(ranks: Floats, images: NDArray[np.int64], weights: Floats) -> Floats:
    """Weighted medians (R,); between two ranks of equal weight it is their mean, as usual."""
    below = weights[:, images].cumsum(axis=1)
    half = below[:, -1:] / 2
    lower, upper = (below >= half).argmax(axis=1), (below > half).argmax(axis=1)
    medians: Floats = (ranks[lower] + ranks[upper]) / 2
    return medians


def _marked(name: str, at: NDArray[np.int64], rows: Sequence[Row]) -> tuple[Floats, NDArray[np.int64]]:
    """Scores of what is true and of what is false, (N, 2), and the image of each row."""
    has = [number for number, row in enumerate(rows) if name in row.get("areas", ())]
    return np.array([rows[number]["areas"][name] for number in has], dtype=float), at[has]


def _area(scores: Floats, images: NDArray[np.int64], weights: Floats) -> Floats:
    """Weighted areas (R,) under the ROC curve in percent: how often what is true scores higher, an equal score counting half."""
    of_rows = weights[:, images]  # (R, N)
    order = scores[:, 1].argsort(kind="stable")
    false = scores[order, 1]
    below = np.pad(of_rows[:, order].cumsum(axis=1), ((0, 0), (1, 0)))  # weight of the n lowest false ones
    first, last = (np.searchsorted(false, scores[:, 0], side) for side in ("left", "right"))
    won = (below[:, first] + below[:, last]) / 2
    whole = below[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        areas: Floats = 100 * (of_rows * won).sum(axis=1) / whole**2
    return areas
