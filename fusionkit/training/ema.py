"""The exponential moving average (EMA) of the weights that train, which is validated, saved and used in their place."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.errors import ConfigError, suggest
from fusionkit.internals import lerp_all
from fusionkit.types import at_least_fp32

KEYS = ("decay", "warmup")


class WeightAverage:
    """mean <- decay * mean + (1 - decay) * weight, of each weight that trains, after each optimiser step that counts.

    ``warmup``  at update t, from 0 on, the decay is min(decay, (1 + t) / (10 + t)), so that a short run forgets where it began.

    Buffers (batch-norm statistics) are not averaged: those of the last step stand beside the averages. Averages are fp32 at
    least, since in bf16 a small share of the way is none. A checkpoint has them among its weights, and the weights that go on
    training beside its progress.
    """

    def __init__(self, decay: float, warmup: bool = False) -> None:
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self._weights: Mapping[str, nn.Parameter] = {}
        self._means: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] = {}  # while the averages are in use

    @torch.no_grad()
    def begin(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Average these parameters, from what they are now, or what ``load`` gave, on."""
        start = {name: self._means.get(name, weight.detach()) for name, weight in weights.items()}
        self._weights = weights
        self._means = {name: at_least_fp32(mean.to(weights[name].device, copy=True)) for name, mean in start.items()}

    @staticmethod
    def size(weights: Mapping[str, nn.Parameter]) -> int:
        """The bytes that the averages of these parameters take."""
        return sum(weight.numel() * max(4, weight.element_size()) for weight in weights.values())

    @torch.no_grad()
    def update(self) -> None:
        """One step towards the weights of now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        lerp_all(list(self._means.values()), [at_least_fp32(w.detach()) for w in self._weights.values()], 1 - decay)
        self.updates += 1

    def put_in(self) -> None:
        """Let the model compute with the averages, until ``take_out``; nothing is copied."""
        if not self._raw:
            self._raw = {name: weight.data for name, weight in self._weights.items()}
            for name, weight in self._weights.items():
                weight.data = self._means[name].to(weight.dtype)

    def take_out(self) -> None:
        """Let it compute with the weights themselves again, if it does not."""
        for name, weight in self._raw.items():
            self._weights[name].data = weight
        self._raw = {}

    def save(self, state: dict[str, Any], named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Any]:
        """Put the averages into a ``state`` of all these parameters by name, under all their names; gives what goes on."""
        state |= _by_all_names(self._means, self._weights, named)
        weights = {name: self._raw.get(name, weight.detach()) for name, weight in self._weights.items()}
        return {"updates": self.updates, "weights": weights}

    def load(self, state: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
        """Go on from the averages in a state, where ``save`` has ``kept`` the weights."""
        self._means = {name: state[name] for name in kept["weights"]}
        self.updates = kept["updates"]


def put_back(state: dict[str, Any], kept: Mapping[str, Any], named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Put the weights that ``WeightAverage.save`` has ``kept`` into its state again."""
    named = list(named)
    state |= _by_all_names(kept["weights"], dict(named), named)


def _by_all_names(
    values: Mapping[str, Tensor], weights: Mapping[str, nn.Parameter], named: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """The values, which have one name for each parameter, by all the names that it has (tied weights have several)."""
    by_parameter = {id(weights[name]): value for name, value in values.items()}
    return {name: by_parameter[id(parameter)] for name, parameter in named if id(parameter) in by_parameter}


def average_of(section: Any) -> WeightAverage | None:
    """What the section ``ema`` asks for; None where it has no decay. Raises ConfigError for a mistake in it."""
    section = section or {}
    if not isinstance(section, dict):
        raise ConfigError(f"ema is {section!r}, but has to be a section of keys: ema.decay=0.999")
    for key in section:
        if key not in KEYS:
            raise ConfigError(f"ema.{key}: there is no such key; {suggest(str(key), KEYS)}")
    decay, warmup = section.get("decay"), section.get("warmup", False)
    if not isinstance(warmup, bool):
        raise ConfigError(f"ema.warmup is {warmup!r}, but has to be true or false")
    if decay is None:
        return None
    if type(decay) not in (int, float) or not 0 < decay < 1:
        raise ConfigError(f"ema.decay is {decay!r}; give a number between 0 and 1, such as 0.999, or null")
    return WeightAverage(decay, warmup)
