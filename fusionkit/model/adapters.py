"""Low-rank adapters beside linear layers, found by name: LoRA (Hu et al. 2021), DoRA (Liu et al. 2024), by the package peft."""

import importlib
import math
import re
import reprlib
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import regex
import torch
from torch import Tensor, nn

from fusionkit.encoders.frozen import ADAPTER, BASE, is_adapted
from fusionkit.encoders.tower import LINEAR, quiet
from fusionkit.errors import ConfigError, find_names, install_extra, suggest
from fusionkit.model.base_weights import RoundedLinear, round_base

LONGEST, PATIENCE = 1000, 5.0  # characters of a regex; seconds in which all are looked for in all names


@dataclass(frozen=True)
class Rule:
    """Linear layers whose names in the model the regex ``names`` finds: W becomes W + alpha / rank * B A, with B (out, rank)
    zeros and A (rank, in) drawn at the start."""

    names: str
    rank: int = 16
    alpha: float = 32.0


class Adapters:
    """Puts adapters into a model that is built; the model then says what it said, to the bit.

    ``rules``      by name, each a ``Rule`` or a mapping of what one takes; where two find a layer, the later one counts.
    ``dropout``    of what the adapters read.
    ``decomposed`` DoRA: the length of each row of W + B A is learnt by itself.
    ``base_weights`` "int8" or "nf4": W is frozen, and kept in 8 or 4 bits (``RoundedLinear``).

    What trains is not their choice: stages, and ``frozen`` of an encoder, choose. Within a frozen encoder they train alone, and
    what is frozen stays in evaluation mode. Raises ConfigError for a rule that finds no linear layer
    or cannot be used, and without peft.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule | Mapping[str, Any]],
        dropout: float = 0.0,
        decomposed: bool = False,
        base_weights: str | None = None,
    ) -> None:
        self.rules, self.dropout, self.decomposed, self.base_weights = rules, dropout, decomposed, base_weights

    def __call__(self, model: nn.Module) -> None:
        try:
            peft = importlib.import_module("peft")
        except ImportError as error:
            raise ConfigError(
                f"adapters need the package peft: {install_extra('adapters')}; or set adapters=none"
            ) from error
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            raise ConfigError(f"adapters.dropout is {_short(self.dropout)}; give a number from 0 up to 1, without 1")
        rules, flags = self._chosen(model), {id(p): p.requires_grad for p in model.parameters()}
        config = peft.LoraConfig(
            target_modules="|".join(map(re.escape, rules)),
            rank_pattern={re.escape(name): rule.rank for name, rule in rules.items()},
            alpha_pattern={re.escape(name): rule.alpha for name, rule in rules.items()},
            lora_dropout=self.dropout,
            use_dora=self.decomposed,
        )
        with quiet():
            peft.inject_adapter_in_model(config, model)  # which freezes all but them
        for parameter in model.parameters():
            parameter.requires_grad_(flags.get(id(parameter), True))
        if self.base_weights is not None:
            round_base(adapted_layers(model), self.base_weights, self.decomposed)
        for layer in adapted_layers(model).values():
            layer.train(layer.get_base_layer().training)
        for part in model.modules():
            if getattr(part, "is_frozen", False) and any(is_adapted(inner) for inner in part.modules()):
                part.takes_gradients = True  # type: ignore[assignment]  # its own weights stay frozen, in evaluation mode
                part.train(part.training)  # for Lightning leaves the modes as they are

    def _chosen(self, model: nn.Module) -> dict[str, Rule]:
        """The rule of each layer."""
        frozen = tuple(f"{name}." for name, part in model.named_modules() if getattr(part, "is_frozen", False))
        apart = tuple(  # torch's attention reads the weights of its parts, and never calls them
            f"{name}." for name, part in model.named_modules() if isinstance(part, nn.MultiheadAttention)
        )
        linear = {
            name: part
            for name, part in model.named_modules()
            if isinstance(part, LINEAR)
            and not name.startswith(apart)
            and (part.weight.requires_grad or name.startswith(frozen))  # elsewhere nothing depends on a frozen one
        }
        found = by_layer(rules_of(self.rules), linear)
        for key, rule in rules_of(self.rules).items():
            widest = max(
                (min(linear[name].weight.shape) for name, chosen in found.items() if chosen == rule), default=rule.rank
            )
            if rule.rank > widest:
                raise ConfigError(
                    f"adapters.rules.{key}: rank is {rule.rank}, but no layer that it finds has a weight of rank above {widest}; "
                    "give no more than that"
                )
        return found


def by_layer(rules: Mapping[str, Rule], names: Iterable[str]) -> dict[str, Rule]:
    """The rule of each of these layers that one finds; ConfigError for a rule that finds none, or searches for too long."""
    found, known, end = dict[str, Rule](), list(names), time.monotonic() + PATIENCE
    for key, rule in rules.items():
        place = f"adapters.rules.{key}.names"
        found |= dict.fromkeys(find_names(place, rule.names, known, Search(place, end)), rule)
    return found


def rules_of(given: Any) -> dict[str, Rule]:
    """The rules of a configuration; ConfigError for what is none."""
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(
            f"adapters.rules is {_short(given)}; give rules by name, each with the names of its layers, or set adapters=none"
        )
    return {str(key): _rule(f"adapters.rules.{key}", rule) for key, rule in given.items()}


def _rule(key: str, given: Any) -> Rule:
    known = [field.name for field in fields(Rule)]
    if isinstance(given, Mapping):
        values = {str(name): value for name, value in given.items() if name != "_target_"}
        for name in values:
            if name not in known:
                raise ConfigError(f"{key}: a rule takes no '{name}'; {suggest(name, known)}")
        if "names" not in values:
            raise ConfigError(f"{key}.names is not there; give a regex for the names of its layers")
        given = Rule(**values)
    if not isinstance(given, Rule):
        raise ConfigError(f"{key} is {_short(given)}, but has to be a section of {', '.join(known)}")
    names, rank, alpha = given.names, given.rank, given.alpha
    if not isinstance(names, str) or len(names) > LONGEST:
        raise ConfigError(f"{key}.names is {_short(names)}, but has to be a regex of at most {LONGEST} characters")
    if not (type(rank) is int and rank > 0 and _is_number(alpha) and alpha > 0):
        raise ConfigError(
            f"{key}: rank is {_short(rank)} and alpha {_short(alpha)}; give a whole number and a number above 0"
        )
    return Rule(names, rank, alpha)


class Search:
    """``re.search`` that gives up: a regex may come in a file of somebody's, and one can be made to search for ever.

    ``key`` has the regex; ConfigError where it is not found out by ``end`` (of ``time.monotonic``, in seconds).
    """

    def __init__(self, key: str, end: float) -> None:
        self.key, self.end = key, end

    def __call__(self, pattern: str, name: str) -> bool:
        try:
            left = max(self.end - time.monotonic(), 0.001)
            return regex.search(pattern, name, timeout=left) is not None
        except TimeoutError as error:
            raise ConfigError(
                f"{self.key}: to look for {_short(pattern)} takes too long; write it without one repetition in another"
            ) from error
        except (regex.error, RecursionError) as error:
            raise re.error(str(error)) from error


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _short(value: Any) -> str:
    return "null" if value is None else reprlib.repr(value)


def has_adapters(names: Iterable[str]) -> bool:
    """Whether parameters of adapters are among these names."""
    return any(ADAPTER in name for name in names)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that adapters stand beside, by name."""
    return {name: part for name, part in model.named_modules() if is_adapted(part)}


@torch.no_grad()
def merge(model: nn.Module) -> bool:
    """Add what the adapters have learnt to the weights beside which they stand, and take them away; tells whether there were any.

    The names of the parameters are then those of the model without adapters.
    """
    layers = adapted_layers(model)
    for name, layer in layers.items():
        if isinstance(layer.get_base_layer(), RoundedLinear):
            layer.base_layer = layer.get_base_layer().plain()
        layer.merge()
        place, _, last = name.rpartition(".")
        setattr(model.get_submodule(place), last, layer.get_base_layer())
    return bool(layers)


def with_adapters(model: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the model without adapters, as those of one that has them: these as they are drawn in ``model``.

    Where ``found`` has adapters, or the model has none, it is given back as it is.
    """
    layers = adapted_layers(model)
    if not layers or has_adapters(found):
        return dict(found)
    renamed = {_beside(name, layers): tensor for name, tensor in found.items()}
    own = {name: tensor for name, tensor in model.state_dict().items() if ADAPTER in name}
    for name, layer in layers.items():
        for key in layer.lora_magnitude_vector:  # DoRA starts with the lengths of the weights
            weight = renamed.get(f"{name}{BASE}weight", layer.get_base_layer().weight)
            is_torchs = isinstance(layer.get_base_layer(), nn.Linear)  # (out, in); GPT-2's are the other way round
            own[f"{name}.lora_magnitude_vector.{key}.weight"] = weight.norm(dim=1 if is_torchs else 0)
    return renamed | own


def _beside(name: str, layers: Container[str]) -> str:
    """The name of a parameter, where an adapter may stand beside its layer."""
    place, _, last = name.rpartition(".")
    return f"{place}{BASE}{last}" if place in layers else name
