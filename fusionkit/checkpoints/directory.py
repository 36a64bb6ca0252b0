"""A checkpoint as a folder: ``config.json``, plain values, beside ``model.safetensors``. No code is stored, none is run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusionkit.errors import ConfigError, DataError
from fusionkit.files import plain as plain_files
from fusionkit.files.atomic import atomic_folder
from fusionkit.files.plain import other_kind, reason_of

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def is_directory(path: Path) -> bool:
    """Whether a checkpoint of this form lies there, as far as its names tell."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def require_new(folder: Path) -> None:
    """Raise ConfigError where a folder that is to be written holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"output={folder} is there already; choose another output=FOLDER")


def write_directory(
    folder: Path,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    texts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a checkpoint, whole or not at all; raises ConfigError where the folder holds something already.

    The hashes of the weights and of the configuration itself stand in it. ``texts`` are further files by their path in the
    folder.
    """
    require_new(folder)
    with atomic_folder(folder, "make room, or choose another output=FOLDER") as half_made:
        try:
            tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
            save_file(tensors, half_made / WEIGHTS)
        except SafetensorError as error:  # its words for an error of the file
            raise OSError(str(error)) from error
        plain = json.loads(json.dumps(config))  # as it is read back
        hashes = {WEIGHTS: sha256(half_made / WEIGHTS), CONFIG: _digest(plain)}
        content = json.dumps({**plain, "sha256": hashes}, indent=1) + "\n"
        for name, text in {CONFIG: content, **texts}.items():
            (half_made / name).parent.mkdir(parents=True, exist_ok=True)
            (half_made / name).write_text(text, encoding="utf-8")


def read_directory(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors; DataError where one of them cannot be read or is not what was written."""
    config = read_json(folder / CONFIG)
    if "fusionkit" not in config or "sha256" not in config:
        raise DataError(f"{folder} was not written by fusionkit; bring it over first: fusionkit import FAMILY={folder}")
    expected = config.pop("sha256")
    before = {WEIGHTS: sha256(folder / WEIGHTS)}  # an earlier version's
    found = before | {CONFIG: _digest(config)}
    if expected not in (found, before):
        expected = expected if isinstance(expected, dict) else {}
        changed = next((name for name in found if expected.get(name, found[name]) != found[name]), CONFIG)
        raise DataError(
            f"{folder / changed} is not the file that was written (another sha256); import or export it again"
        )
    return config, read_safetensors(folder / WEIGHTS)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        told = other_kind(path, "a safetensors file")
        told = told or f"{path} cannot be read: it is truncated or no safetensors file ({reason_of(error)})"
        raise DataError(told) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object that a json file holds."""
    content = plain_files.read_json(path, "take the whole folder again", has_nan=True)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__}, but has to hold an object")
    return content


def _digest(config: Mapping[str, Any]) -> str:
    """The hash of what a configuration says, in whatever layout."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
