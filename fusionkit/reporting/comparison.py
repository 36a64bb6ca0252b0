"""Runs beside a baseline: every score with its interval, and whether it differs, tested on the same samples or over seeds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from statistics import fmean, median

from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.reporting.config_differences import differences, group_name, group_seeds
from fusionkit.reporting.record import Interval, RunRecord, Scored
from fusionkit.reporting.run_costs import COSTS, Costs
from fusionkit.reporting.statistics import LEVEL, estimate, holm, welch
from fusionkit.scoring.bootstrap import Difference, compare, intervals
from fusionkit.scoring.corpus_metrics import is_of
from fusionkit.scoring.sample_scores import PARTS, Row, Table, is_error
from fusionkit.scoring.scorers import OURS
from fusionkit.visual.score_table import GUESSERS

GUESSES = tuple(f"_{suffix}" for suffix in GUESSERS)
SPEED = "train/images_per_s"
HEADLINES = {name for scorer in OURS for name in scorer.headlines_of_run()}


@dataclass(frozen=True)
class Entry:
    """What a comparison shows in one row: a run, or the seeds of one."""

    name: str
    runs: Sequence[RunRecord]

    def values(self, metric: str) -> list[float]:
        """Return the metric of each run that has it."""
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]

    def direction(self, metric: str) -> bool | None:
        """Return whether more is better, as the scorer said; None where it said nothing."""
        return next((run.directions[metric] for run in self.runs if metric in run.directions), None)

    @cached_property
    def costs(self) -> dict[str, float]:
        """Its known costs by the keys of ``COSTS``, means over the seeds."""
        known = [costs_of(run) for run in self.runs]
        return {name: fmean(found) for name in COSTS if (found := [each[name] for each in known if name in each])}

    @property
    def measured(self) -> Costs:
        """Its measured costs, the same for all seeds; empty where their growth was not measured."""
        return next((run.costs for run in self.runs if run.costs.growth), Costs())


@dataclass(frozen=True)
class Cell:
    """One score in %. ``difference`` from the baseline, and ``p`` corrected for all tests of the comparison, where tested."""

    score: float
    interval: Interval | None = None
    difference: Difference | None = None
    p: float | None = None

    @property
    def mark(self) -> str:
        """ "*" where the score differs from the baseline's; "(*)" where it seems to before the correction."""
        if self.difference is None or self.p is None:
            return ""
        return "*" if self.p < LEVEL else "(*)" if self.difference.p < LEVEL else ""


@dataclass(frozen=True)
class Comparison:
    """All that tables, plots and page show, the baseline first.

    ``cells`` by (entry, metric); ``notes`` are what has to be said beside them.
    """

    entries: Sequence[Entry]
    baseline: str
    metrics: Sequence[str]
    cells: Mapping[tuple[str, str], Cell]
    notes: Sequence[str]

    @cached_property
    def differences(self) -> dict[str, list[str]]:
        """By configuration key, the values that differ, in the order of the entries."""
        return differences([entry.runs[0] for entry in self.entries])

    @property
    def tested(self) -> int:
        """The number of scores that were tested against the baseline's."""
        return sum(cell.p is not None for cell in self.cells.values())

    @cached_property
    def costs(self) -> list[str]:
        """The keys of ``COSTS`` that any entry has; the logged time only where none was measured."""
        known = [name for name in COSTS if any(name in entry.costs for entry in self.entries)]
        return [name for name in known if name != "image_seconds" or "step_seconds" not in known]

    @cached_property
    def guesses(self) -> dict[str, dict[str, float]]:
        """By guesser ("text only", "chance"), what it reaches of each metric, where that is known."""
        found = {
            title: {metric: self._guess(metric, suffix) for metric in self.metrics}
            for suffix, title in GUESSERS.items()
        }
        known = {title: {m: value for m, value in row.items() if value is not None} for title, row in found.items()}
        return {title: row for title, row in known.items() if row}

    def _guess(self, metric: str, suffix: str) -> float | None:
        return max((value for entry in self.entries for value in entry.values(f"{metric}_{suffix}")), default=None)

    def gain(self, metric: str, value: float) -> float:
        """Return the value, with its sign turned where less is better."""
        return value if more_is_better(self.entries, metric) else -value


def more_is_better(entries: Sequence[Entry], metric: str) -> bool:
    """Return what the scorer of the metric said, else what its name tells."""
    said = [direction for entry in entries if (direction := entry.direction(metric)) is not None]
    return said[0] if said else not is_error(metric)


def compare_runs(
    records: Sequence[RunRecord],
    baseline: str | None = None,
    metrics: Sequence[str] = (),
    seeds_together: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
    sort: str | None = None,
) -> Comparison:
    """Compare runs with the one called ``baseline``, by default the first.

    ``metrics`` are names or patterns; none: the headline of each task. ``sort`` is a metric whose best run comes first.
    ConfigError for a name that is unknown, DataError where the runs share no metric.
    """
    groups = group_seeds(records) if seeds_together else [[record] for record in records]
    entries = [Entry(group_name(group), group) for group in groups]
    if sort is not None:
        entries = _ranked(entries, sort)
    base = _baseline(entries, baseline)
    entries.sort(key=lambda entry: entry is not base)  # the baseline first, the others as they were given
    chosen = sorted(choose_metrics(entries, metrics), key=lambda metric: metric != sort)
    notes: dict[str, None] = {}
    cells = {}
    for entry in entries:
        found = _tests(entry, base, chosen, resamples, seed, notes) if entry is not base else {}
        bounds = _intervals(entry, chosen, resamples, seed)
        for metric in chosen:
            if values := entry.values(metric):
                cells[entry.name, metric] = Cell(fmean(values), bounds.get(metric), found.get(metric))
    cells = _corrected(cells)
    comparison = Comparison(entries, base.name, chosen, cells, [*notes])
    return replace(comparison, notes=[*_said(comparison, resamples), *notes])


def choose_metrics(entries: Sequence[Entry], patterns: Sequence[str]) -> list[str]:
    """The metrics to show: those that fit a pattern; without patterns the headlines, or all where there is none."""
    names = list(dict.fromkeys(name for entry in entries for run in entry.runs for name in run.metrics))
    known = [name for name in names if not name.endswith(GUESSES)]
    count = {name: sum(bool(entry.values(name)) for entry in entries) for name in known}
    if not known:
        raise DataError(
            f"{entries[0].name} has no scores; finish it, or evaluate it: fusionkit evaluate checkpoint=PATH"
        )
    if len(entries) > 1 and max(count.values()) < 2:
        has = [f"{e.name} has {next((name for name in known if e.values(name)), 'none')}" for e in entries[:2]]
        raise DataError(
            f"the runs have no metric in common: {', '.join(has)}; evaluate them on the same data, such as "
            "fusionkit evaluate -m checkpoint=A,B benchmark=[NAME]"
        )
    firsts = {first for entry in entries for run in entry.runs for first in _firsts(run)}
    headlines = [name for name in known if name.rpartition("/")[2] in HEADLINES or name in firsts] or known
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ConfigError(
                f"metrics: no run has '{pattern}' (metrics=['*'] shows all); {suggest(pattern, headlines)}"
            )
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns or headlines)]


def _ranked(entries: Sequence[Entry], metric: str) -> list[Entry]:
    """Sort by mean, the best first, those without the metric last."""
    means = {entry.name: fmean(values) for entry in entries if (values := entry.values(metric))}
    if not means:
        names = list(dict.fromkeys(name for entry in entries for run in entry.runs for name in run.metrics))
        raise ConfigError(f"sort: no run has '{metric}'; {suggest(metric, names)}")
    sign = -1 if more_is_better(entries, metric) else 1
    return sorted(entries, key=lambda entry: sign * means[entry.name] if entry.name in means else math.inf)


def _firsts(run: RunRecord) -> Iterator[str]:
    """The first metric of each file of rows that has none of our own scorers' headlines, as of a scorer of one's own."""
    for scored in run.samples.values():
        names = Table(scored.rows).names
        if names and not HEADLINES & {name.rpartition("/")[2] for name in names}:
            yield f"{scored.prefix}/{names[0]}"


def _baseline(entries: Sequence[Entry], name: str | None) -> Entry:
    if name is None:
        return entries[0]
    for entry in entries:
        paths = [path for run in entry.runs for path in run.paths]
        names = {entry.name, *(run.name for run in entry.runs), *(path.name for path in paths)}
        if name in names or Path(name).resolve() in paths:
            return entry
    raise ConfigError(f"baseline: there is no run '{name}'; {suggest(name, [entry.name for entry in entries])}")


def _intervals(entry: Entry, metrics: Sequence[str], resamples: int, seed: int) -> dict[str, Interval]:
    """Return intervals over several seeds; of one run those that its evaluation stored, else a bootstrap of its samples."""
    if len(entry.runs) > 1:
        found = {metric: estimate(entry.values(metric)) for metric in metrics if len(entry.values(metric)) > 1}
        return {name: (each.mean - each.margin, each.mean + each.margin) for name, each in found.items()}
    (run,) = entry.runs
    known = dict(run.intervals)
    for scored in run.samples.values():
        if rows := _only(scored, [metric for metric in metrics if metric not in run.intervals]):
            known |= {f"{scored.prefix}/{name}": ends for name, ends in intervals(rows, resamples, seed).items()}
    return known


def _tests(
    entry: Entry, base: Entry, metrics: Sequence[str], resamples: int, seed: int, notes: dict[str, None]
) -> dict[str, Difference]:
    """Test by metric how the entry differs from the baseline, where that can be tested."""
    if len(entry.runs) > 1 or len(base.runs) > 1:
        tested = {metric: welch(entry.values(metric), base.values(metric)) for metric in metrics}
        return {metric: difference for metric, difference in tested.items() if difference}
    found: dict[str, Difference] = {}
    (run,), (other,) = entry.runs, base.runs
    for label, scored in run.samples.items():
        if label not in other.samples:
            continue
        rows, others = _only(scored, metrics), _only(other.samples[label], metrics)
        try:
            compared = compare(rows, others, resamples, seed) if rows and others else {}
        except DataError as error:
            notes[f"{label}: {run.name} and {other.name} are not tested: {error}"] = None
            continue
        found |= {f"{scored.prefix}/{name}": difference for name, difference in compared.items()}
    return found


def _only(scored: Scored, metrics: Sequence[str]) -> list[Row]:
    """The rows with what these metrics are computed from; none where they have nothing to do with them."""
    wanted = {metric.removeprefix(f"{scored.prefix}/") for metric in metrics if metric.startswith(f"{scored.prefix}/")}
    kept = [
        row
        | {part: {name: value for name, value in row.get(part, {}).items() if name in wanted} for part in PARTS}
        | {"sums": {name: value for name, value in row.get("sums", {}).items() if any(is_of(m, name) for m in wanted)}}
        for row in scored.rows
    ]
    return kept if any(row[part] for row in kept for part in (*PARTS, "sums")) else []


def _corrected(cells: Mapping[tuple[str, str], Cell]) -> dict[tuple[str, str], Cell]:
    """Return the cells with p-values corrected for the number of tests."""
    tested = {place: cell.difference.p for place, cell in cells.items() if cell.difference is not None}
    p_values = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {place: replace(cell, p=p_values.get(place)) for place, cell in cells.items()}


def _said(comparison: Comparison, resamples: int) -> Iterator[str]:
    """Yield how the tests were made and what they cannot show."""
    if len(comparison.entries) < 2:
        return
    counts = {len(entry.runs) for entry in comparison.entries}
    grouped = counts != {1}
    seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))
    method = (
        f"Student's intervals and Welch's test over {seeds} seeds"
        if grouped
        else f"Bootstrap over images, {resamples:,} draws, the same of both runs"
    )
    count = comparison.tested
    if not count:
        yield (
            f"no score could be tested against {comparison.baseline}: that takes the samples (samples/*.jsonl) of both runs, as "
            "fusionkit evaluate and score write them, or several seeds of both and group_seeds=true"
        )
        return
    corrected = (
        f" after Holm's correction for all {count} tests of this table; (*) only before it, as one test in {1 / LEVEL:g} "
        "would by chance alone"
    )
    yield f"* differs from {comparison.baseline}: p < {LEVEL:g}{corrected if count > 1 else ''}. {method}."
    if not grouped and count * 2 / (1 + resamples) > LEVEL:
        yield f"with {resamples:,} draws none of {count} tests can pass; give resamples={math.ceil(2 * count / LEVEL):,} or more"


def costs_of(run: RunRecord) -> dict[str, float]:
    """Return the known costs of a run, by the keys of ``COSTS``: measured, and as its own log counted and timed."""
    measured = {"fusion_parameters" if name == "parameters" else name: n for name, n in run.costs.step.items()}
    speeds = [row[SPEED] for row in run.history if row.get(SPEED)]
    logged = {"parameters": run.parameters, "image_seconds": 1 / median(speeds) if speeds else None}
    found = {**measured, **{name: value for name, value in logged.items() if value}}
    return {name: found[name] for name in COSTS if name in found}
