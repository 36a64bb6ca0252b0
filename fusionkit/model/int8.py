"""Linear layers whose weights are kept in 8 bits, a scale a row, for a model that does not train: torchao's int8 weights."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.model.adapters import adapted_layers
from fusionkit.model.parts import chosen_parts
from fusionkit.model.rounding import rounding_library

SCALE = "_scale"  # behind the name of a weight: its scales, where both are written to a file
Pairs = Mapping[
    str, tuple[Tensor, Tensor]
]  # by the name of a weight: int8 (out, in), and the scales of its rows (out,)


@dataclass(frozen=True)
class Quantised:
    """What was done: to which layers, and how many bytes the weights and buffers of model and tasks took and take."""

    layers: tuple[str, ...]
    before: int
    after: int

    def __str__(self) -> str:
        count, kept = len(self.layers), self.after / self.before
        return (
            f"int8: the weights of {count} linear layers; all weights {self.after / 1e6:,.2f} MB where they were "
            f"{self.before / 1e6:,.2f} MB ({kept:.0%})"
        )


def to_int8(module: nn.Module, chosen: Any) -> Quantised | None:
    """Round the weights of the linear layers of some parts of {"model", "tasks"} to 8 bits; None where none are chosen.

    A momentum "teacher" beside them stays as it is, and that it shares what is frozen changes nothing.
    ``chosen`` is what ``chosen_parts`` takes. A weight w becomes round(w / s) with a scale s for each row, and is multiplied in
    the precision of what it reads. Embeddings, a head that is tied to them, norms, convolutions, torch's own attention and the
    projections of contrast stay as they are. Raises ConfigError without torchao, for adapters,
    for weights that are rounded already, and where no layer is found.
    """
    parts = chosen_parts("int8", chosen)
    if not parts:
        return None
    module = nn.ModuleDict({name: part for name, part in module.named_children() if name != "teacher"})
    if any(is_int8(weight) for weight in module.parameters()):
        raise ConfigError(
            "int8: the checkpoint has weights of 8 bits already; leave int8 out, or give the one that they are of"
        )
    if adapted_layers(module):
        raise ConfigError(
            "int8: the checkpoint has adapters, which stand beside weights that are not rounded; add them to the weights first, "
            "by `fusionkit export`, and take the folder that it writes"
        )
    layers = linear_layers(module, parts)
    if not layers:
        raise ConfigError(
            f"int8: {', '.join(parts)} has no linear layer to round; leave int8 out, or choose other parts"
        )
    return _rounded(module, layers, "or leave int8 out")


def restore_int8(module: nn.Module, pairs: Pairs) -> Quantised | None:
    """Give layers the very weights in 8 bits that a checkpoint has, once it is loaded; None where it has none."""
    layers = {name: module.get_submodule(name.removesuffix(".weight")) for name in pairs}
    linear = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    if not linear:
        return None
    named = {name.removesuffix(".weight"): layer for name, layer in linear.items()}
    found = _rounded(module, named, "or take the checkpoint that its weights are of")
    for name, layer in linear.items():
        weight: Any = layer.weight
        weight.qdata.copy_(pairs[name][0])
        weight.scale.copy_(pairs[name][1][:, None])
    return found


@torch.no_grad()
def _rounded(module: nn.Module, layers: Mapping[str, nn.Linear], otherwise: str) -> Quantised:
    quantization = rounding_library("int8", "torchao.quantization", otherwise)
    before = _bytes(module)
    for layer in layers.values():
        quantization.quantize_(layer, quantization.Int8WeightOnlyConfig(set_inductor_config=False))
    return Quantised(tuple(layers), before, _bytes(module))


def linear_layers(module: nn.Module, parts: Iterable[str]) -> dict[str, nn.Linear]:
    """By name, the linear layers of these parts of {"model", "tasks"} that can be rounded: each once, and none that is tied."""
    owners = defaultdict[int, set[int]](set)
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            owners[id(parameter)].add(id(part))
    whole = dict(module.named_modules(remove_duplicate=False))
    # torch's attention reads the weights of its parts, and never calls them
    apart = tuple(f"{name}." for name, part in whole.items() if isinstance(part, nn.MultiheadAttention))
    places = tuple("tasks." if part == "task" else f"model.{part}." for part in parts)
    found: dict[int, tuple[str, nn.Linear]] = {}
    for name, part in whole.items():
        is_linear = isinstance(part, nn.Linear) and name.startswith(places) and not name.startswith(apart)
        if is_linear and len(owners[id(part.weight)]) == 1:
            found.setdefault(id(part), (name, part))
    return dict(found.values())


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file holds them: a weight in 8 bits as int8 under its name, and its scales (out,) behind that name."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if is_int8(tensor):
            weight: Any = tensor
            plain |= {name: weight.qdata, name + SCALE: weight.scale.flatten()}
        else:
            plain[name] = tensor
    return plain


def split_int8(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Pairs]:
    """What ``plain_state`` made, as tensors of the model, those in 8 bits multiplied out; and these as they are in the file."""
    pairs = {
        name: (tensor, state[name + SCALE])
        for name, tensor in state.items()
        if tensor.dtype == torch.int8 and tensor.dim() == 2 and _is_scale(state.get(name + SCALE), len(tensor))
    }
    scales = {name + SCALE for name in pairs}
    rest = {name: tensor for name, tensor in state.items() if name not in scales}
    return rest | {name: weight.float() * scale[:, None] for name, (weight, scale) in pairs.items()}, pairs


def _is_scale(scale: Tensor | None, rows: int) -> bool:
    return scale is not None and scale.dtype == torch.float32 and scale.shape == (rows,)


def is_int8(tensor: Tensor) -> bool:
    """Whether a tensor is one that ``to_int8`` made."""
    return hasattr(tensor, "qdata")


def _bytes(module: nn.Module) -> int:
    """Of all weights and buffers; what is shared counts once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    parts = [part for tensor in tensors.values() for part in plain_state({"": tensor}).values()]
    return sum(part.nbytes for part in parts)
