"""A checkpoint that others wrote: its tensors by name, without running code of it."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionkit.checkpoints.directory import CONFIG, WEIGHTS, read_json, read_safetensors, sha256
from fusionkit.checkpoints.pickled import read_pickled
from fusionkit.errors import DataError
from fusionkit.files.plain import CHECKPOINT, other_kind

PICKLED = "pytorch_model.bin"
SAVED = (WEIGHTS, f"{WEIGHTS}.index.json", PICKLED, f"{PICKLED}.index.json")  # by transformers, one of
PARTS = ("model-*.safetensors", "pytorch_model-*.bin")
WRAPPERS = ("model", "state_dict", "module", "model_state_dict")  # what trainers put a state dict under
WRAPPED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
HOLDERS = ("model", "net", "network")  # what a LightningModule calls its model: before all names


@dataclass(frozen=True)
class Source:
    """What a published checkpoint holds."""

    path: Path
    state: Mapping[str, Tensor]
    config: Mapping[str, Any] | None  # transformers' own configuration, where the source is a folder that it saved
    sha256: str  # of the file of the weights, or of the hashes of several, in the order of their names

    def has(self, beginning: str) -> bool:
        """Whether a name begins so."""
        return any(name.startswith(beginning) for name in self.state)


def read_source(path: str | Path) -> Source:
    """Read a file (.pth, .ckpt, .bin, .safetensors), or a folder with config.json and weights, here or on the hub.

    The weights of a folder are model.safetensors or pytorch_model.bin, whole or in several files that an index names.
    Raises DataError for what is truncated, no checkpoint at all, or a pickle of more than tensors and plain values.
    """
    path = local(path)
    if (path / CONFIG).is_file() and (files := _files(path)):
        state = plain_names(path, {name: tensor for file in files for name, tensor in _tensors(file).items()})
        hashes = [sha256(file) for file in files]
        whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        return Source(path, state, plain_config(path / CONFIG), whole)
    if not path.is_file():
        raise DataError(f"{path} is no checkpoint: give a file, or a folder with {CONFIG} and {WEIGHTS}")
    return Source(path, plain_names(path, _tensors(path)), None, sha256(path))


def plain_config(path: Path) -> dict[str, Any]:
    """The configuration in a folder, parts of which go into ours; DataError where it holds what ours would look up or build."""
    config = read_json(path)
    for key, value in config.items():
        if named := next((word for word in _words(value, key) if word == "_target_" or "${" in word), None):
            raise DataError(
                f"{path}: {key} holds {named}, by which a configuration would run code; take the folder again"
            )
    return config


def _words(node: Any, *keys: str) -> Iterator[str]:
    """All keys and texts in plain values."""
    yield from keys
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _words(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from _words(value)
    elif isinstance(node, str) and "${" in node:
        yield node


def _files(folder: Path) -> list[Path]:
    """The files of weights in a folder that transformers saved; none where it holds no such."""
    found = next((folder / name for name in SAVED if (folder / name).is_file()), None)
    if found is None or found.suffix != ".json":
        return [] if found is None else [found]
    index = read_json(found).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise DataError(f"{found} has no weight_map from names of tensors to files; is the folder complete?")
    files = [folder / Path(name).name for name in sorted(set(index.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise DataError(f"{folder} lacks {', '.join(missing[:3])}, which {found.name} names; complete the download")
    return files


def _tensors(path: Path) -> dict[str, Tensor]:
    return _state_dict(path, read_safetensors(path) if path.suffix == ".safetensors" else _unpickled(path))


def local(path: str | Path) -> Path:
    """The path; or, where nothing is there and it is OWNER/NAME, the folder of that model of the Hugging Face hub."""
    found = Path(path).expanduser()
    if found.exists() or found.suffix or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)):
        return found
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path), allow_patterns=[CONFIG, *SAVED, *PARTS]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path} is no checkpoint here, and the hub does not give one of that name ({reason})"
        ) from error


def _unpickled(path: Path) -> Any:
    try:
        return read_pickled(path)
    except Exception as error:  # bytes that are no pickle can fail anywhere in it
        said = str(error).partition("WeightsUnpickler error:")
        reason = (said[2] or said[0]).strip().partition(". ")[0].splitlines()[:1] or [type(error).__name__]
        if told := other_kind(path, CHECKPOINT):
            raise DataError(told) from error
        raise DataError(
            f"{path} cannot be read: it is truncated, no checkpoint, or holds more than tensors and plain values, which "
            f"would run its code ({reason[0]})"
        ) from error


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors of a file, without the plain values between them; DataError where they are not to be had."""
    while isinstance(content, dict) and (inner := [content[k] for k in WRAPPERS if isinstance(content.get(k), dict)]):
        content = inner[0]
    named = content if isinstance(content, dict) else {}
    state = {name: value for name, value in named.items() if isinstance(value, Tensor) and isinstance(name, str)}
    if not state:
        told = ", ".join(list(map(str, content))[:5]) if isinstance(content, dict) else type(content).__name__
        found = told or "nothing, or a model as an object: save its state_dict()"
        raise DataError(
            f"{path} holds no state dict of tensors, also not under {' or '.join(WRAPPERS)}: it holds {found}"
        )
    if odd := [(name, kind) for name, tensor in state.items() if (kind := _odd_kind(tensor))]:
        raise DataError(f"{path}: {odd[0][0]} is {odd[0][1]}, not a plain tensor of numbers; save it as one")
    return state


def _odd_kind(tensor: Tensor) -> str | None:
    """What keeps a tensor from being read as numbers that lie there one by one, in words."""
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout is not torch.strided:
        return f"of the layout {tensor.layout}"
    if tensor.is_nested or tensor.is_meta or tensor.is_complex():
        return "nested" if tensor.is_nested else "without numbers (meta)" if tensor.is_meta else "complex"
    return None


def plain_names(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names of the model itself, without those that wrappers put before or between them.

    Anywhere "module." of DataParallel and DeepSpeed, "_orig_mod." of torch.compile and those of FSDP; Lightning's "model." where
    all have it. Raises DataError where two tensors then have one name.
    """
    short = {name: ".".join(part for part in name.split(".") if part not in WRAPPED) for name in state}
    while holder := next((h for h in HOLDERS if all(s.startswith(f"{h}.") for s in short.values())), None):
        short = {name: part.removeprefix(f"{holder}.") for name, part in short.items()}
    found: dict[str, Tensor] = {}
    for name, part in short.items():
        if part in found:
            raise DataError(f"{path} holds {part} twice, once as {name}; save the unwrapped model's state dict")
        found[part] = state[name]
    return found
