"""Which parameter learns how fast: an ordered table of rules, and AdamW over the groups that come out of it."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from fusionkit.errors import ConfigError, find_names

Rule = tuple[str, float, float | None]  # (pattern searched in the parameter's name, lr scale, weight decay or None)
Named = Sequence[tuple[str, nn.Parameter]]

_TOWER = re.compile(r"^(.*?\b(?:image_encoder|text_encoder))\.(.*)$")
_LAYER = re.compile(r"\b(?:blocks|stages|layers|layer)\.(\d+)\b")  # timm: the first three, transformers: the last
_INPUT = re.compile(r"embed|stem|cls_token|reg_token|norm_pre")


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float = 0.02,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    rules: Sequence[Sequence[str | float | None]] = (),
    layer_decay: float | None = None,
    fused: bool = True,
) -> torch.optim.AdamW:
    """AdamW over every trainable parameter, in the groups of ``parameter_groups``."""
    groups = parameter_groups(named_parameters, lr, weight_decay, rules, layer_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=fused)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    rules: Sequence[Sequence[str | float | None]] = (),
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Optimiser groups of all trainable parameters, one for each (learning rate, weight decay).

    ``rules``        ordered (regex, lr scale, weight decay); the first that is found in a parameter's name decides. A
                     weight decay of None is the default: ``weight_decay``, but 0 for biases, norms and the temperature
                     (fewer than two dimensions). A scale of 0 leaves the parameter as it is (freeze the encoder to save
                     its time too).
    ``layer_decay``  multiplies the rate of block n of N of an encoder (n from 0) by layer_decay ** (N - n), and of its
                     embeddings by layer_decay ** (N + 1) (BEiT); None: all alike.

    What a strategy has split stands in groups of its own.
    Raises ConfigError for a malformed rule and for one that matches no parameter. Each group keeps its ``lr_scale``.
    """
    named = list(named_parameters)
    table = [_checked_rule(number, rule, [name for name, _ in named]) for number, rule in enumerate(rules)]
    depth_scale = layer_scales([name for name, _ in named], layer_decay) if layer_decay is not None else {}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        scale, decay = next(
            ((scale, decay) for pattern, scale, decay in table if re.search(pattern, name)), (1.0, None)
        )
        if decay is None:
            decay = weight_decay if parameter.ndim >= 2 else 0.0
        if parameter.requires_grad and scale > 0:
            place = (scale * depth_scale.get(name, 1.0), decay, isinstance(parameter, DTensor))
            groups.setdefault(place, []).append(parameter)
    if not groups:
        raise ConfigError(
            "optimizer: every parameter is frozen; unfreeze an encoder or give an lr scale above 0 in optimizer.rules"
        )
    return [
        {"params": parameters, "lr": lr * scale, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay, _), parameters in groups.items()
    ]


def layer_scales(names: Sequence[str], decay: float) -> dict[str, float]:
    """By parameter name, layer_decay's factor for each parameter of an encoder (others are absent).

    Blocks are counted in the order of their numbers; where stages hold blocks (Swin, ConvNeXt), through all stages.
    """
    towers: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if match := _TOWER.match(name):
            towers.setdefault(match[1], []).append((name, match[2]))
    scales = {}
    for members in towers.values():
        place = {name: tuple(int(number) for number in _LAYER.findall(inner)) for name, inner in members}
        depth = {numbers: index for index, numbers in enumerate(sorted(set(place.values()) - {()}))}
        for name, inner in members:
            if place[name]:
                scales[name] = decay ** (len(depth) - depth[place[name]])
            else:
                scales[name] = decay ** (len(depth) + 1) if _INPUT.search(inner) else 1.0
    return scales


def _checked_rule(number: int, rule: Sequence[str | float | None], names: Sequence[str]) -> Rule:
    place = f"optimizer.rules[{number}]"
    try:
        pattern, scale, decay = rule
        checked = (str(pattern), float(scale), None if decay is None else float(decay))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{place}: expected [regex, lr scale, weight decay or null], got {rule} ({error}); e.g. ['^tasks', 5, null]"
        ) from error
    if checked[1] < 0:
        raise ConfigError(f"{place}: the lr scale {checked[1]} is negative; 0 leaves a parameter as it is")
    find_names(place, checked[0], names)
    return checked
