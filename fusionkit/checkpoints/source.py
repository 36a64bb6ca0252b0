"""A checkpoint that others wrote: its tensors by name, without running code of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionkit.checkpoints.directory import CONFIG, WEIGHTS, is_directory, read_json, read_safetensors, sha256
from fusionkit.errors import DataError

WRAPPERS = ("model", "state_dict", "module")  # what trainers put a state dict under


@dataclass(frozen=True)
class Source:
    """What a published checkpoint holds."""

    path: Path
    state: Mapping[str, Tensor]
    config: Mapping[str, Any] | None  # transformers' own configuration, where the source is a folder that it saved
    sha256: str  # of the file of the weights

    def has(self, beginning: str) -> bool:
        """Whether a name begins so."""
        return any(name.startswith(beginning) for name in self.state)


def read_source(path: str | Path) -> Source:
    """Read a file (.pth, .ckpt, .bin, .safetensors), or a folder with config.json and model.safetensors.

    Raises DataError for what is truncated, no checkpoint at all, or a pickle of more than tensors and plain values.
    """
    path = Path(path).expanduser()
    if is_directory(path):
        weights = path / WEIGHTS
        return Source(path, read_safetensors(weights), read_json(path / CONFIG), sha256(weights))
    if not path.is_file():
        raise DataError(f"{path} is no checkpoint: give a file, or a folder with {CONFIG} and {WEIGHTS}")
    content = read_safetensors(path) if path.suffix == ".safetensors" else _unpickled(path)
    return Source(path, _state_dict(path, content), None, sha256(path))


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle can fail anywhere in it
        reason = str(error).partition(". ")[0].splitlines()[:1] or [type(error).__name__]
        raise DataError(
            f"{path} cannot be read: it is truncated, no checkpoint, or holds more than tensors and plain values, which "
            f"would run its code ({reason[0]})"
        ) from error


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        found = ", ".join(list(map(str, content))[:5]) if isinstance(content, dict) else type(content).__name__
        raise DataError(
            f"{path} holds no state dict of tensors, also not under {' or '.join(WRAPPERS)}: it holds {found}"
        )
    return content
