"""Whether a checkpoint's adapters are those of a run that begins or goes on with it: weights alone do not tell their share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fusionkit.assembly.trust import read_stored
from fusionkit.errors import ConfigError
from fusionkit.model.adapters import Adapters, adapted_layers, by_layer, has_adapters, rules_of

OR_MERGED = "or start from what `fusionkit export` makes of it, in which they are part of the weights"


def require_same_adapters(model: nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Raise ConfigError where a checkpoint has adapters, and the model none, or some that count for more or less.

    Layers that only one of them has are told where the weights are loaded.
    """
    names = checkpoint["state_dict"]
    if not has_adapters(names):
        return
    layers = adapted_layers(model)
    if not layers:
        raise ConfigError(f"checkpoint {path} has adapters, and this run none; choose them as there, {OR_MERGED}")
    stored = read_stored(checkpoint["fusionkit"]["config"], path).get("adapters")
    end = ".lora_A.default.weight"
    theirs = {name for name in names if name.startswith("model.") and name.endswith(end)}
    ours = f"{Adapters.__module__}.{Adapters.__qualname__}"
    is_ours = bool(stored) and stored.get("_target_", ours) == ours
    if not is_ours or theirs != {f"model.{name}{end}" for name in layers}:
        return
    for name, rule in by_layer(rules_of(stored.get("rules")), layers).items():
        there = _told(rule.rank, rule.alpha, bool(stored.get("decomposed", False)))
        layer = layers[name]
        here = _told(layer.r["default"], layer.lora_alpha["default"], bool(layer.lora_magnitude_vector))
        if here != there:
            raise ConfigError(
                f"checkpoint {path} has adapters of {there} beside {name}, and this run of {here}; choose them as there, "
                f"{OR_MERGED}"
            )


def _told(rank: int, alpha: float, decomposed: bool) -> str:
    return f"rank {rank} and alpha {alpha:g}{' (decomposed)' if decomposed else ''}"
