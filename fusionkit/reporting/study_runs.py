"""Reads the runs of a sweep from the files that they wrote: SWEEP/VARIANT/SEED/{config.yaml,metrics.json}."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionkit.errors import DataError
from fusionkit.files.plain import read_json


@dataclass(frozen=True)
class Run:
    """One finished run."""

    variant: str  # what the sweep compares: the name of its fusion, its balancer
    seed: str
    metrics: dict[str, float]  # in %, without the source's name


def read_runs(sweep: Path, source: str) -> list[Run]:
    """The finished runs below a sweep's folder, by variant and seed; DataError where there is none."""
    paths = sorted(sweep.glob("*/*/metrics.json"))
    if not paths:
        raise DataError(f"{sweep} holds no finished run (VARIANT/SEED/metrics.json); run the sweep, or name its folder")
    return [_read(path, f"{source}/") for path in paths]


def _read(path: Path, prefix: str) -> Run:
    content = read_json(path, advice := "remove it and run the sweep again")
    if not isinstance(content, dict):
        raise DataError(f"{path} is no map of metrics to numbers; {advice}")
    metrics = {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
    return Run(path.parent.parent.name, path.parent.name, metrics)


def values_of(runs: Sequence[Run], variant: str, metric: str) -> list[float]:
    """One metric of one variant by seed; empty where it was not measured, as a refused task's."""
    return [run.metrics[metric] for run in runs if run.variant == variant and metric in run.metrics]


def variants_of(runs: Sequence[Run]) -> list[str]:
    """The names of the variants, each once."""
    return list(dict.fromkeys(run.variant for run in runs))
