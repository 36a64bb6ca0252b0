"""A checkpoint as a folder: ``config.json``, plain values, beside ``model.safetensors``. No code is stored, none is run."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusionkit.errors import ConfigError, DataError

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def is_directory(path: Path) -> bool:
    """Whether a checkpoint of this form lies there, as far as its names tell."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def write_directory(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; raises ConfigError where the folder holds something already.

    Tensors that share memory are written once each. The hash of the weights stands in the configuration.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"output={folder} is there already; choose another output=FOLDER")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as half_made:
            weights, content = Path(half_made) / WEIGHTS, dict(config)
            save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, weights)
            content["sha256"] = {WEIGHTS: sha256(weights)}
            (Path(half_made) / CONFIG).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            folder.mkdir(exist_ok=True)
            for name in (WEIGHTS, CONFIG):  # the configuration last: without it the folder is no checkpoint
                (Path(half_made) / name).replace(folder / name)
    except OSError as error:
        raise DataError(
            f"output={folder} cannot be written to ({error.strerror}); choose another output=FOLDER"
        ) from error


def read_directory(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors; DataError where one of them cannot be read or is not what was written."""
    config = read_json(folder / CONFIG)
    expected = config.get("sha256", {}).get(WEIGHTS)
    if "fusionkit" not in config or expected is None:
        raise DataError(f"{folder} was not written by fusionkit; bring it over first: fusionkit import FAMILY={folder}")
    if sha256(folder / WEIGHTS) != expected:
        raise DataError(
            f"{folder / WEIGHTS} is not the file that was written (another sha256); import or export it again"
        )
    return config, read_safetensors(folder / WEIGHTS)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read: it is truncated or no safetensors file ({reason})") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object that a json file holds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not valid json ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__}, but has to hold an object")
    return content


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
