"""What never trains is kept once, in a file beside a run's checkpoints, which name it by the hash of its content."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from xxhash import xxh3_128

from fusionkit.errors import DataError
from fusionkit.files.names import is_file_name
from fusionkit.files.tensors import is_whole, read_tensors, save_tensors

KEY = (
    "frozen"  # of a checkpoint: names of tensors, and where they were set apart, the file that holds them and its hash
)


class FrozenWeights:
    """Takes the tensors that a checkpoint names under ``KEY`` out of it, into a file that is written where it is not there yet.

    The file is called by its content, so that a checkpoint's own is never replaced; it is looked for beside the checkpoint alone,
    whatever that says.
    """

    def __init__(self) -> None:
        self._seen: set[Path] = set()  # files that have been found whole

    def set_apart(self, checkpoint: Mapping[str, Any], folder: Path, advice: str) -> Mapping[str, Any]:
        """The checkpoint without them, to be written to the folder; the given one stays as it is."""
        names = set(checkpoint.get(KEY) or ())
        if not names:
            return checkpoint
        state = checkpoint["state_dict"]
        apart = {name: tensor.cpu() for name, tensor in state.items() if name in names}
        digest = content_hash(apart)
        file = folder / f"frozen-{digest}.pt"
        if not file.is_file() or (file not in self._seen and not is_whole(file)):
            save_tensors(apart, file, advice=advice)
        self._seen.add(file)
        rest = {name: tensor for name, tensor in state.items() if name not in names}
        return {**checkpoint, "state_dict": rest, KEY: {"file": file.name, "hash": digest}}


def with_frozen(content: Any, path: Path) -> Any:
    """The content of a checkpoint with what was set apart from it; DataError where that is missing or is something else."""
    kept = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(kept, dict) or not isinstance(content.get("state_dict"), dict):
        return content
    name = kept.get("file")
    if not is_file_name(name):
        raise DataError(f"checkpoint {path} is damaged: its frozen weights are in {name!a}, which is no name of a file")
    file = path.with_name(str(name))
    if not file.is_file():
        raise DataError(
            f"checkpoint {path} has its frozen weights in a file of their own, {name}, which is not there; copy it from where "
            "the checkpoint was written, where it lay beside it"
        )
    frozen = read_tensors(file)
    if (
        not isinstance(frozen, dict)
        or not all(map(is_plain, frozen.values()))
        or content_hash(frozen) != kept.get("hash")
    ):
        raise DataError(
            f"{file} does not hold the frozen weights of checkpoint {path} (another hash); copy it again from where the "
            "checkpoint was written"
        )
    whole = {key: value for key, value in content.items() if key != KEY}
    return {**whole, "state_dict": {**frozen, **content["state_dict"]}}


def content_hash(state: Mapping[str, Tensor]) -> str:
    """One hash of names, kinds, shapes and numbers, in hexadecimal digits, whatever the order."""
    digest = xxh3_128()
    for name in sorted(state):
        tensor = state[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_plain(value: Any) -> bool:
    """Whether it is a tensor whose numbers stand one after the other."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not (value.is_quantized or value.is_meta)
