"""Which parts of a run are computed anew in the backward pass (``activation_checkpointing``)."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from fusionkit.encoders.base import SupportsRecompute
from fusionkit.encoders.recompute import blocks_of, recompute
from fusionkit.errors import ConfigError, suggest
from fusionkit.model.model import VisionLanguageModel

PARTS = ("image_encoder", "text_encoder", "fusion", "task")


def recompute_parts(chosen: Any, model: VisionLanguageModel, tasks: Mapping[str, nn.Module]) -> list[str]:
    """Have the blocks of the chosen parts (True: of all, or a list of ``PARTS``) computed anew in the backward pass.

    Gives a sentence for each part that keeps everything, since it has no blocks; ConfigError for such a part that is named.
    """
    told = []
    for name in _names(chosen):
        if name == "task":  # most have no blocks, but heads
            for task in tasks.values():
                _recompute(task)
            continue
        part = model.get_submodule(name)
        if _recompute(part):
            continue
        sentence = f"activation_checkpointing: {name} {type(part).__name__} has no blocks of layers to compute anew"
        if chosen is not True:
            raise ConfigError(f"{sentence}; leave {name} out")
        told.append(f"{sentence}; it keeps all")
    return told


def _names(chosen: Any) -> tuple[str, ...]:
    if isinstance(chosen, bool) or chosen is None:
        return PARTS if chosen else ()
    names = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    for name in names:
        if name not in PARTS:
            raise ConfigError(
                f"activation_checkpointing is '{name}'; give true, false or parts: {suggest(name, PARTS)}"
            )
    return names


def _recompute(part: nn.Module) -> int:
    """How many blocks a part has."""
    return part.recompute() if isinstance(part, SupportsRecompute) else recompute(blocks_of(part))
