"""Which parts of a run are computed anew in the backward pass (``activation_checkpointing``)."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from fusionkit.encoders.base import SupportsRecompute
from fusionkit.encoders.recompute import blocks_of, recompute
from fusionkit.errors import ConfigError
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.parts import chosen_parts


def recompute_parts(chosen: Any, model: VisionLanguageModel, tasks: Mapping[str, nn.Module]) -> list[str]:
    """Have the blocks of the chosen parts (True: of all, or a list of names) computed anew in the backward pass.

    Gives a sentence for each part that keeps everything, since it has no blocks; ConfigError for such a part that is named.
    """
    told = []
    for name in chosen_parts("activation_checkpointing", chosen):
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


def _recompute(part: nn.Module) -> int:
    """How many blocks a part has."""
    return part.recompute() if isinstance(part, SupportsRecompute) else recompute(blocks_of(part))
