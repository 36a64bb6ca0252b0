"""What training has measured since it was last logged."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from fusionkit.distributed import gather_objects, rank, world_size
from fusionkit.errors import ConfigError
from fusionkit.tasks.base import Task
from fusionkit.tasks.metrics import Summed, row_count
from fusionkit.types import TaskOutput

States = dict[str, dict[str, Any]]  # of metrics, by log key and name of the state


class MetricWindow:
    """The metrics of every objective by log key, copies of those that its task owns, and the means of the losses.

    They run over the steps and ranks since they were last logged, and are reset then. The numbers of a step wait until the step
    is known to count. A number that no metric of the task is named after is a mean over the rows of the outputs.
    """

    def __init__(self, objectives: Mapping[str, Mapping[str, float]], tasks: Mapping[str, Task[Any]]) -> None:
        names = [(source, name) for source, row in objectives.items() for name in row]
        self.loss_keys = [*(f"train/{source}/{name}_loss" for source, name in names), "train/loss"]
        self._metrics: dict[str, Metric] = {}
        for source, name in names:
            self._metrics |= tasks[name].metrics.clone(prefix=f"train/{source}/{name}_").items()
        self._metrics |= {key: Summed() for key in self.loss_keys}
        self._measured: set[str] = set()
        self._last: dict[str, tuple[Any, ...]] = {}  # what metrics are to be updated with, of the last outputs
        self._waiting: list[dict[str, tuple[Any, ...]]] = []
        self._rows: list[Tensor] = []
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Go on on this device."""
        self._device = device
        for metric in self._metrics.values():
            metric.to(device)

    def note(self, outputs: Mapping[str, TaskOutput]) -> None:
        """Let the outputs of a batch, by objective ("source/task") and in the order of the losses, wait for ``count``."""
        self._last, rows = {}, []
        for objective, output in outputs.items():
            count = row_count(output)
            rows.append(count if isinstance(count, Tensor) else output.loss.new_full((), count))
            for name, value in output.metrics.items():
                self._last[f"train/{objective}_{name}"] = value if isinstance(value, tuple) else (value * count, count)
        self._waiting.append(self._last)
        self._rows.append(torch.stack([count.float() for count in rows]))

    @property
    def rows(self) -> Tensor:
        """How many rows (K,) the objectives of the waiting outputs are about, on this rank."""
        return torch.stack(self._rows).sum(dim=0)

    def count(self, losses: Sequence[float], rows: Sequence[float]) -> None:
        """The step counts: its losses (K + 1), the balanced one last, are of so many rows (K), both means over the ranks."""
        for values in self._waiting:
            for key, value in values.items():
                self._update(key, value)
        for key, loss, number in zip(self.loss_keys, losses, [*rows, 1.0], strict=True):
            self._update(key, (loss * number, number))
        self._waiting, self._rows = [], []

    def drop(self) -> None:
        """The step is left out: what the tasks saw in it is no measure of anything."""
        self._last, self._waiting, self._rows = {}, [], []

    def last(self, ending: str) -> dict[str, Tensor]:
        """Of the last outputs alone, and on this rank, the formulas whose log keys end so."""
        metrics = {key: self._metric(key) for key in self._last if key.endswith(ending)}
        found = {key: metric for key, metric in metrics.items() if isinstance(metric, Summed)}
        return {key: metric.formula(*map(torch.as_tensor, self._last[key])) for key, metric in found.items()}

    def compute(self) -> dict[str, float]:
        """What all ranks measured, by log key, where there was anything to measure; then a new window begins."""
        keys = sorted(set(gather_objects(sorted(self._measured))))  # each metric is a collective
        found: dict[str, float] = {}
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "The ``compute`` method"
            )  # of a metric that another rank alone has updated
            for key in keys:
                value = self._metric(key).compute()
                parts = (
                    {f"{key}_{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
                )
                for name, part in parts.items():
                    if torch.as_tensor(part).numel() != 1:
                        raise ConfigError(
                            f"{name} is {tuple(torch.as_tensor(part).shape)} numbers, of which none can be logged; let the "
                            "task's metric give one number, or a map of them"
                        )
                    found[name] = float(part)
        self._reset()
        return {key: value for key, value in found.items() if value == value}  # NaN: no row on any rank

    def state(self) -> States:
        """What this rank has measured, on the CPU."""
        return {key: _on(torch.device("cpu"), self._metrics[key].metric_state) for key in sorted(self._measured)}

    def load(self, states: Sequence[States]) -> None:
        """Go on from what all ranks had measured; where there are fewer of them now, one takes over from several."""
        self._reset()
        for number, state in enumerate(states[rank() :: world_size()]):
            for key, values in state.items():
                metric, values = self._metric(key), _on(self._device, values)
                if not _fits(metric, values):  # of another fusionkit, or another task of that name
                    continue
                if number and key in self._measured:
                    with suppress(RuntimeError):  # of those that torchmetrics cannot merge, the first rank's is kept
                        metric.merge_state(values)
                else:
                    for name, value in values.items():
                        setattr(metric, name, value)
                self._measured.add(key)

    def _metric(self, key: str) -> Metric:
        if key not in self._metrics:
            self._metrics[key] = Summed().to(self._device)
        return self._metrics[key]

    def _update(self, key: str, value: tuple[Any, ...]) -> None:
        self._metric(key).update(*value)
        self._measured.add(key)

    def _reset(self) -> None:
        self._measured = set()
        for metric in self._metrics.values():
            metric.reset()


def _on(device: torch.device, state: Mapping[str, Any]) -> dict[str, Any]:
    """A metric's state on a device, copied."""
    copy = {}
    for name, value in state.items():
        parts = [part.detach().to(device, copy=True) for part in (value if isinstance(value, list) else [value])]
        copy[name] = parts if isinstance(value, list) else parts[0]
    return copy


def _fits(metric: Metric, state: Mapping[str, Any]) -> bool:
    own = metric.metric_state
    shapes = {name: getattr(value, "shape", list) for name, value in own.items()}
    return shapes == {name: getattr(value, "shape", list) for name, value in state.items()}
