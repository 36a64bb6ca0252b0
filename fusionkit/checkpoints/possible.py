"""Counts in a stranger's configuration that no checkpoint of its tensors has: they would be built, one by one."""

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fusionkit.config import leaves
from fusionkit.errors import DataError

LAYERS = re.compile(r"(?!max_)(.*_)?(layers|depths?)")  # max_window_layers is of those that there may be
LENGTHS = re.compile(r"(.*_)?(sizes?|dims?|channels|width|heads|latents|queries|experts|query_tokens)|d_(model|ff|kv)")
POSITIONS = re.compile(r"(n|max)_.*(positions?|embeddings|length)")  # of which there need be no table
MANY_POSITIONS = 2**20
PARTS = ("image_encoder", "text_encoder", "fusion", "model")


class Most(NamedTuple):
    """What a checkpoint can have at most: as many layers as tensors, and nothing longer than the largest has numbers."""

    tensors: int
    longest: int

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "Most":
        """That of these tensors."""
        return cls(len(state), max((tensor.numel() for tensor in state.values()), default=0))

    def fault(self, name: str, value: int) -> str | None:
        """What is wrong with a count, by its name; None where it can be."""
        if LAYERS.fullmatch(name) and value > self.tensors:
            return f"the checkpoint has {self.tensors} tensors"
        if LENGTHS.fullmatch(name) and value > self.longest:
            return f"the largest tensor of the checkpoint has {self.longest} numbers"
        return None


def require_possible_parts(config: DictConfig, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise DataError for a count in a stored configuration that is more than its tensors can have.

    A task's sizes are its own: its queue lies in no checkpoint.
    """
    most = Most.of(state)
    for section in (*PARTS, "task"):
        for key, value in leaves(OmegaConf.to_container(config[section], resolve=True), section):
            name = next(part for part in reversed(key.split(".")) if not part.isdecimal())  # a list's, of its entries
            if type(value) is not int or (section not in PARTS and not LAYERS.fullmatch(name)):
                continue
            told = most.fault(name, value)
            if POSITIONS.fullmatch(name) and value > max(most.longest, MANY_POSITIONS):
                told = f"the largest tensor of the checkpoint has {most.longest} numbers"
            if told:
                raise DataError(f"checkpoint {path}: {key} is {reprlib.repr(value)}, but {told}; is it damaged?")
