"""How sure a score is, and whether two runs differ: the bootstrap over images (Efron 1979; paired: Koehn 2004).

Images are drawn with replacement, each with all its rows, since the questions of one image are not independent.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fusionkit.errors import ConfigError, DataError
from fusionkit.scoring.sample_scores import Floats, Row, Table

RESAMPLES, LEVEL = 1000, 0.95
CELLS = 4_000_000  # of a matrix of weights, which bounds the memory


class Difference(NamedTuple):
    """A metric of one run less that of another, its interval, and the two-sided p-value of there being none."""

    value: float
    low: float
    high: float
    p: float


def intervals(
    rows: Sequence[Row], resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> dict[str, tuple[float, float]]:
    """The percentile interval of every metric of the rows (``sample_scores``) that any of the draws has."""
    drawn = _drawn([Table(rows)], resamples, seed)[0]
    return {name: _range(values, level) for name, values in drawn.items() if not np.isnan(values).all()}


def compare(
    rows: Sequence[Row], others: Sequence[Row], resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> dict[str, Difference]:
    """By metric, what the first run has more than the other on the same samples; both are resampled alike.

    p is (1 + the draws that do not favour the sign seen) / (1 + draws), doubled; a metric that no draw has is left out. Raises
    DataError where the samples differ.
    """
    tables = [Table(rows), Table(_in_order_of(rows, others))]
    ones = np.ones((1, tables[0].size))
    first, second = (table(ones) for table in tables)
    drawn, of_others = _drawn(tables, resamples, seed)
    found = {}
    for name in drawn.keys() & of_others.keys():
        moved = drawn[name] - of_others[name]
        moved = moved[~np.isnan(moved)]
        if not len(moved):
            continue
        against = min((moved <= 0).sum(), (moved >= 0).sum())
        p = min(1.0, 2 * (1 + int(against)) / (1 + len(moved)))
        found[name] = Difference(float(first[name][0] - second[name][0]), *_range(moved, level), p)
    return {name: found[name] for name in drawn if name in found}


def check_draws(resamples: int, seed: int) -> None:
    """Raise ConfigError where nothing can be drawn so; for a caller whose samples take long to come."""
    if resamples < 1:
        raise ConfigError(
            f"resamples is {resamples}, but an interval needs at least 1 draw; the default is {RESAMPLES:,}"
        )
    if seed < 0:
        raise ConfigError(f"seed is {seed}, but has to be a whole number from 0 up")


def _in_order_of(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    by_id: dict[Any, Row] = {row["id"]: row for row in others}
    for row in rows:
        if row["id"] not in by_id:
            raise DataError(f"the runs were scored on different samples: only one has {row['id']!r}; score both alike")
    if len(by_id) > len(rows):
        extra = next(iter(by_id.keys() - {row["id"] for row in rows}))
        raise DataError(f"the runs were scored on different samples: only one has {extra!r}; score both alike")
    found = [by_id[row["id"]] for row in rows]
    for row, other in zip(rows, found, strict=True):
        if row["image_id"] != other["image_id"]:
            images = f"{row['image_id']!r} and {other['image_id']!r}"
            raise DataError(f"the runs disagree on the image of {row['id']!r} ({images}); score both alike")
    return found


def _drawn(tables: Sequence[Table], resamples: int, seed: int) -> list[dict[str, Floats]]:
    """Every metric (resamples,) of each table; draw number n is the same for all tables."""
    check_draws(resamples, seed)
    parts: list[list[dict[str, Floats]]] = [[] for _ in tables]
    for weights in _weights(tables[0].size, resamples, seed):
        for table, found in zip(tables, parts, strict=True):
            found.append(table(weights))
    return [{name: np.concatenate([part[name] for part in found]) for name in found[0]} for found in parts]


def _weights(size: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each of ``size`` images is drawn, (R, size) at a time."""
    rng = np.random.default_rng(seed)
    chunk = max(1, CELLS // size)
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        drawn = rng.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size).astype(float)


def _range(values: Floats, level: float) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
