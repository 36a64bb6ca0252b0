"""A checkpoint as a folder: ``config.json``, plain values, beside ``model.safetensors``. No code is stored, none is run."""

import hashlib
import json
import re
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
from fusionkit.files.names import is_file_name
from fusionkit.files.plain import other_kind, reason_of

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # of shards, as transformers writes it


def is_directory(path: Path) -> bool:
    """Whether a checkpoint of this form lies there, as far as its names tell."""
    return (path / CONFIG).is_file() and any((path / name).is_file() for name in (WEIGHTS, INDEX))


def require_new(folder: Path) -> None:
    """Raise ConfigError where a folder that is to be written holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"output={folder} is there already; choose another output=FOLDER")


def write_directory(
    folder: Path,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    texts: Mapping[str, str] = MappingProxyType({}),
    max_shard_size: int | None = None,
) -> None:
    """Write a checkpoint, whole or not at all; raises ConfigError where the folder holds something already.

    The hashes of the weights and of the configuration itself stand in it. ``texts`` are further files by their path in the
    folder. Weights of more bytes than ``max_shard_size`` are several files and an index, each of no more but where one tensor is.
    """
    require_new(folder)
    with atomic_folder(folder, "make room, or choose another output=FOLDER") as half_made:
        shards = shards_of(state, max_shard_size)
        try:
            for file, names in shards.items():
                save_file({name: state[name].detach().clone().contiguous() for name in names}, half_made / file)
        except SafetensorError as error:  # its words for an error of the file
            raise OSError(str(error)) from error
        if len(shards) > 1:
            total = sum(tensor.nbytes for tensor in state.values())
            places = {name: file for file, names in shards.items() for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            (half_made / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        plain = json.loads(json.dumps(config))  # as it is read back
        files = [*shards, *([INDEX] if len(shards) > 1 else [])]
        hashes = {name: sha256(half_made / name) for name in files} | {CONFIG: _digest(plain)}
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
    files = weight_files(folder)
    is_split = files != [WEIGHTS]
    before = {name: sha256(folder / name) for name in ([INDEX, *files] if is_split else files)}  # an earlier version's
    found = before | {CONFIG: _digest(config)}
    if expected not in (found, before):
        expected = expected if isinstance(expected, dict) else {}
        changed = next((name for name in found if expected.get(name, found[name]) != found[name]), CONFIG)
        raise DataError(
            f"{folder / changed} is not the file that was written (another sha256); import or export it again"
        )
    parts = [read_safetensors(folder / name) for name in files]
    state = {name: tensor for part in parts for name, tensor in part.items()}
    if len(state) < sum(map(len, parts)):
        raise DataError(f"{folder / INDEX}: a tensor stands in several of its files; export it again")
    return config, state


def shards_of(state: Mapping[str, Tensor], most: int | None) -> dict[str, list[str]]:
    """The names of the tensors in each file: in their order, as many as ``most`` bytes hold, one at least."""
    groups, size = [list[str]()], 0
    for name, tensor in state.items():
        if groups[-1] and most is not None and size + tensor.nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, start=1)}


def weight_files(folder: Path) -> list[str]:
    """The names of a folder's files of weights; DataError where an index names what is no file of the folder."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise DataError(
            f"{folder / INDEX} has no weight_map from names of tensors to files; take the whole folder again"
        )
    files = sorted(set(places.values()))
    for name in files:
        if not is_file_name(name) or not (folder / name).is_file():
            raise DataError(
                f"{folder / INDEX} names {name!a}, which is no file of the folder; take the whole folder again"
            )
    return files


def bytes_of(size: Any) -> int | None:
    """What ``max_shard_size`` says in bytes, 5GB or 200MB; None for null. Raises ConfigError."""
    if size is None:
        return None
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(KB|MB|GB)", str(size).upper())
    count = 0 if found is None else int(float(found[1]) * units[found[2]])
    if count < 1:
        raise ConfigError(f"max_shard_size is {size}, but has to be a size such as 5GB or 200MB, or null for one file")
    return count


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
