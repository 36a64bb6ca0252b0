"""One run as read from disk: readers make it; tables, plots and page show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionkit.reporting.run_costs import Costs
from fusionkit.scoring.sample_scores import Row

Interval = tuple[float, float]


@dataclass(frozen=True)
class Scored:
    """One file of scored samples: its rows (``scoring.sample_scores``), and the file of predictions, where kept.

    A metric ``m`` of the rows is the run's metric ``<prefix>/m``.
    """

    prefix: str
    rows: Sequence[Row]
    predictions: Path | None = None
    split: str | None = None  # as its benchmark calls it; None: the prefix is a source of the run, with its role
    role: str | None = None  # that the bare name of a source stands for: the first that was evaluated


@dataclass(frozen=True)
class RunRecord:
    """One run, or what several evaluations of one checkpoint found.

    ``name``       tells it apart from the others of a comparison.
    ``paths``      the folders it was read from.
    ``config``     nested, as in its config.yaml; empty where it is not known.
    ``metrics``    flat, ``<source>/<metric>`` or ``<benchmark>/<metric>``, in %.
    ``directions`` of those metrics whose scorer says so, whether more is better.
    ``intervals``  95%, of those metrics that were stored with one.
    ``base``       what relative paths of the configuration start from.
    ``history``    what was logged while it trained, one map a step, each with its ``step``.
    ``samples``    what each sample scored, by the name of its file: runs that have the same samples are compared on them.
    ``checkpoint`` what was evaluated; None where there is none, as for a file of predictions.
    ``parameters`` of model and heads.
    ``benchmarks`` the configurations of the published benchmarks among its scores, by name.
    ``costs``      of its variant of a sweep, measured apart from the training.
    """

    name: str
    paths: tuple[Path, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    directions: Mapping[str, bool] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    base: Path = Path()
    history: Sequence[Mapping[str, float]] = ()
    samples: Mapping[str, Scored] = field(default_factory=dict)
    checkpoint: Path | None = None
    parameters: float | None = None
    benchmarks: Mapping[str, Any] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)
