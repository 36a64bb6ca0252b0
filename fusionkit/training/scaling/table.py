"""The section ``scaling`` of a plan: its keys, checked, and the table of step times by number of ranks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fusionkit.errors import ConfigError, suggest
from fusionkit.training.scaling.step_time import Cluster, Link, Work, step_time

KEYS = (
    "ranks",
    "ranks_per_node",
    "step_seconds",
    "backward",
    "gigabytes_per_second",
    "microseconds",
    "bucket_megabytes",
    "spread",
    "data_seconds",
    "workers",
)
COLUMNS = (
    "ranks",
    "global batch",
    "compute",
    "gradients",
    "exchanges",
    "slowest rank",
    "data",
    "s a step",
    "images/s",
    "efficiency",
)


class Scaling:
    """What is asked of machines: numbers of ranks, and what joins them."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        for key in section:
            if key not in KEYS:
                raise ConfigError(f"unknown key 'scaling.{key}'; {suggest(str(key), KEYS)}")
        if missing := [key for key in KEYS if key not in section]:
            raise ConfigError(f"scaling.{missing[0]} is not there; give it, or use scaling=h100")
        self._section = section
        within, between = self._pair("gigabytes_per_second", is_positive=True)
        latencies = self._pair("microseconds")
        node = self._whole("ranks_per_node", section["ranks_per_node"])
        inside, outside = Link(1e9 * within, 1e-6 * latencies[0]), Link(1e9 * between, 1e-6 * latencies[1])
        self.cluster = Cluster(node, inside, outside, self._number("spread"))
        self.ranks = self._ranks()
        self.step_seconds = self._optional("step_seconds", is_positive=True)
        self.backward = self._number("backward")
        if self.backward > 1:
            raise ConfigError(f"scaling.backward is {self.backward}; give a part of the step's time, from 0 to 1")
        bucket = self._optional("bucket_megabytes", is_positive=True)
        self.bucket = math.inf if bucket is None else bucket * 2**20
        self.data_seconds = self._optional("data_seconds")

    def workers(self, of_data: Any) -> int:
        """Of a rank, where ``of_data`` is what the data module has; raises ConfigError where no number is given."""
        given = self._section["workers"]
        if given is None and type(of_data) is not int:
            raise ConfigError(
                f"data.num_workers is {of_data}, which another machine may count otherwise; give scaling.workers=N"
            )
        return self._whole("workers", of_data if given is None else given, least=0)

    def with_data(self, work: Work, of_data: Any) -> Work:
        """The work with its loader; without workers the rank itself makes the batches, between its passes."""
        if self.data_seconds is None:
            return work
        workers = self.workers(of_data)
        if workers == 0:
            return replace(work, between=self.data_seconds)
        return replace(work, data=self.data_seconds / workers)

    def _ranks(self) -> list[int]:
        given, node = self._section["ranks"], self.cluster.ranks_per_node
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise ConfigError(f"scaling.ranks is {given!r}; give a list of whole numbers from 1, e.g. [8,64]")
        ranks = [self._whole("ranks", one) for one in given]
        for count in ranks:
            if count > node and count % node:
                raise ConfigError(
                    f"scaling.ranks has {count}, which is no multiple of scaling.ranks_per_node={node}; give whole nodes"
                )
        return ranks

    def _pair(self, key: str, is_positive: bool = False) -> tuple[float, float]:
        given = self._section[key]
        if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 2:
            raise ConfigError(
                f"scaling.{key} is {given!r}; give two numbers, within a node and between nodes, e.g. [200,25]"
            )
        first, second = (_number(f"scaling.{key}", one, is_positive) for one in given)
        return first, second

    def _number(self, key: str) -> float:
        return _number(f"scaling.{key}", self._section[key])

    def _optional(self, key: str, is_positive: bool = False) -> float | None:
        given = self._section[key]
        return None if given is None else _number(f"scaling.{key}", given, is_positive)

    @staticmethod
    def _whole(key: str, value: Any, least: int = 1) -> int:
        if type(value) is not int or value < least:
            raise ConfigError(f"scaling.{key} has {value!r}; give whole numbers from {least}")
        return value


def _number(key: str, value: Any, is_positive: bool = False) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < 0 or (is_positive and value == 0):
        raise ConfigError(f"{key} has {value!r}; give numbers {'above' if is_positive else 'from'} 0")
    return float(value)


def lines(work: Work, cluster: Cluster, ranks: Sequence[int], images: int) -> list[str]:
    """The table, a line a number of ranks; ``images`` of a pass and rank."""
    times = [step_time(work, cluster, count) for count in ranks]
    rows: list[Sequence[str]] = [COLUMNS]
    for count, time in zip(ranks, times, strict=True):
        batch = count * images * work.passes
        parts = (time.compute, time.gradients, time.exchanges, time.slowest, time.data, time.total)
        seconds = [f"{one:.4f}" for one in parts]
        rows.append(
            [f"{count:,}", f"{batch:,}", *seconds, f"{batch / time.total:,.0f}", f"{100 * time.efficiency:.1f}%"]
        )
    widths = [2 + max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
