"""Short names that differ where what they stand for does: of texts, and of weights."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fusionkit import __version__
from fusionkit.model.int8 import plain_state


def digest(*parts: Iterable[Any]) -> str:
    """Twenty letters that differ where the texts of the parts do."""
    content = hashlib.blake2b(digest_size=10)
    for part in parts:
        for item in part:
            content.update(f"{item}\n".encode())
    return content.hexdigest()


def weights_digest(*modules: nn.Module, has_versions: bool = True) -> str:
    """Twenty letters that differ where any weight, its name or its type does.

    With ``has_versions`` they also do where fusionkit or torch is another, by which computations may be.
    """
    versions = f"{__version__} {torch.__version__}" if has_versions else ""
    content = hashlib.blake2b(versions.encode(), digest_size=10)
    for module in modules:
        for name, tensor in plain_state(module.state_dict()).items():
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()
