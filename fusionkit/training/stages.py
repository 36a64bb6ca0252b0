"""Stages of a run: what trains, for how many steps, at what share of the scheduled rate."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from fusionkit.errors import ConfigError, find_names

ALWAYS = ("balance.", "distillation.")  # what trains in every stage


@dataclass(frozen=True)
class Stage:
    """``steps`` optimiser steps (None: to the end) in which the parameters that a regex of ``trains`` finds train.

    ``lr_scale`` multiplies the learning rates of the schedule, which runs on through all stages. What a stage freezes gets no
    gradient and keeps its optimiser state; dropout and batch-norm statistics are not frozen. A balancer's own parameters,
    and the maps of features that a teacher has, always train.
    """

    steps: int | None
    trains: Sequence[str] = (".",)
    lr_scale: float = 1.0


class Stages:
    """The stages of one run over its trainable parameters; which one it is in is a function of the step alone."""

    def __init__(self, stages: Mapping[str, Stage], named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        named = dict(named_parameters)
        self._all = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        self._rounded = (
            [name for name, parameter in named.items() if not parameter.is_floating_point()] if stages else []
        )
        self._stages = dict(stages) or {"all": Stage(None)}
        self._chosen = [self._checked(name, stage) for name, stage in self._stages.items()]
        self._ends = list(accumulate(stage.steps or 0 for stage in list(self._stages.values())[:-1]))
        self._index = -1
        self.training: Mapping[str, nn.Parameter] = self._all
        self._check_lengths()

    def __len__(self) -> int:
        return len(self._stages)

    @property
    def is_all(self) -> bool:
        """Whether one stage trains everything, at its own rates."""
        return list(self._stages.values()) == [Stage(None)]

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """All that any stage may train."""
        return self._all

    @property
    def starts(self) -> Mapping[str, int]:
        """The optimiser step at which each stage begins, by its name."""
        return dict(zip(self._stages, [0, *self._ends], strict=True))

    @property
    def trained(self) -> Mapping[str, Mapping[str, nn.Parameter]]:
        """The parameters that each stage trains, by its name."""
        return dict(zip(self._stages, self._chosen, strict=True))

    @property
    def lr_scale(self) -> float:
        """Of the stage that the run is in."""
        return list(self._stages.values())[self._index].lr_scale

    def enter(self, step: int) -> bool:
        """Freeze and unfreeze for the stage of an optimiser step; tells whether anything changed."""
        index = sum(step >= end for end in self._ends)
        if index == self._index:
            return False
        self._index, self.training = index, self._chosen[index]
        for name, parameter in self._all.items():
            parameter.requires_grad_(name in self.training)
            if name not in self.training:
                parameter.grad = None  # an optimiser would go on with the last one
        return True

    @contextmanager
    def all_training(self) -> Iterator[None]:
        """Everything that any stage may train is trainable within."""
        for parameter in self._all.values():
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for name, parameter in self._all.items():
                parameter.requires_grad_(name in self.training)

    @contextmanager
    def scaled_rates(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """The rates of the optimiser's groups are the stage's share within; a schedule never sees it."""
        rates: list[Any] = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self.lr_scale
        try:
            yield
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def _checked(self, name: str, stage: Stage) -> dict[str, nn.Parameter]:
        if not stage.lr_scale > 0:
            raise ConfigError(f"stages.{name}.lr_scale is {stage.lr_scale}; give a number above 0")
        found = {key for pattern in stage.trains for key in find_names(f"stages.{name}.trains", pattern, self._all)}
        if not found:
            raise ConfigError(
                f"stages.{name}.trains is empty; name what trains by regexes, e.g. ['^tasks', '^model.fusion']"
            )
        for rounded in self._rounded:
            if any(re.search(pattern, rounded) for pattern in stage.trains):
                raise ConfigError(
                    f"stages.{name}.trains finds {rounded}, which is kept in few bits and cannot train; name other parts, or set "
                    "adapters.base_weights=null"
                )
        return {key: p for key, p in self._all.items() if key in found or key.startswith(ALWAYS)}

    def _check_lengths(self) -> None:
        *before, last = self._stages
        for name in before:
            if not (self._stages[name].steps or 0) > 0:
                raise ConfigError(
                    f"stages.{name}.steps is {self._stages[name].steps}; give a number above 0, as only the last stage has no end"
                )
        if self._stages[last].steps is not None:
            raise ConfigError(f"stages.{last}.steps: the last stage lasts to the end of the run; set it to null")
