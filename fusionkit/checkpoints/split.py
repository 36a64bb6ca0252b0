"""Checkpoints of split weights: each process keeps its parts in a file beside them, which they name by its hash."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusionkit.checkpoints.frozen import content_hash, is_plain
from fusionkit.errors import DataError
from fusionkit.files.names import is_file_name
from fusionkit.files.tensors import glance, is_hashed, is_whole, read_tensors, save_tensors

KEY = "split"  # of a checkpoint: the files of its parts, in the order of the processes, and by place what they hold
SECTIONS = ("state_dict", "optimizer_states")  # of a checkpoint, where tensors may be split
PART = re.compile(r"split-\d+-\d+of\d+-[0-9a-f]{32}\.pt")


def save_part(own: Mapping[str, Tensor], folder: Path, who: str, advice: str) -> tuple[Path, str, bool]:
    """Write the parts of one process, by their places; gives the file, the hash of its content, and whether it is new.

    The file is called by ``who`` (``STEP-RANKofRANKS``) and that hash, so that none is replaced that another checkpoint names.
    """
    digest = content_hash(own)
    file = folder / f"split-{who}-{digest}.pt"
    is_new = not file.is_file() or not is_whole(file)
    if is_new:
        save_tensors(dict(own), file, advice=advice)
    return file, digest, is_new


def with_parts(content: Any, path: Path) -> Any:
    """The content of a checkpoint with its split tensors put together; DataError where a part is missing or another one."""
    kept = content.get(KEY) if isinstance(content, dict) else None
    if kept is None:
        return content
    parts = _parts(kept, path)
    table = _table(kept, path)
    found = set[str]()

    def join(place: str, value: Any) -> Any:
        if value is not None or place not in table:
            return value
        found.add(place)
        shape, dim = table[place]
        try:
            tensor = torch.cat([part[place] for part in parts], dim)
        except (KeyError, RuntimeError, IndexError) as error:
            raise _damaged(path, f"{place} has parts that do not fit ({type(error).__name__})") from error
        if tensor.shape != shape or len({part[place].dtype for part in parts}) > 1:
            raise _damaged(path, f"{place} is {tuple(tensor.shape)} in them and {tuple(shape)} in the checkpoint")
        return tensor

    whole = {
        key: change_leaves(value, join, key) if key in SECTIONS else value
        for key, value in content.items()
        if key != KEY
    }
    if missing := table.keys() - found:
        raise _damaged(path, f"{min(missing)} has no place in the checkpoint")
    return whole


def is_readable(path: Path) -> bool:
    """Whether a checkpoint reads, and all files of its parts do."""
    try:
        content = read_tensors(path, mmap=True)
        if isinstance(content, dict) and content.get(KEY) is not None:
            _parts(content[KEY], path)
    except DataError:
        return False
    return True


def remove_unnamed(folder: Path) -> None:
    """Remove the files of parts in a folder that no checkpoint in it names any more: none where one cannot be asked.

    A damaged checkpoint names nothing: it will never be read.
    """
    files = [path for path in folder.glob("split-*.pt") if PART.fullmatch(path.name)]
    if not files:
        return
    named = set[str]()
    for path in folder.iterdir():
        if path.is_file() and not PART.fullmatch(path.name) and not path.name.startswith("."):
            names = _named_by(path)
            if names is None:
                return
            named |= names
    for file in files:
        if file.name not in named:
            with suppress(OSError):
                file.unlink()


def change_leaves(value: Any, change: Callable[[str, Any], Any], place: str = "") -> Any:
    """A nested state with each leaf changed, in their order; ``change`` is given its place, as ``optimizer_states/0/state/3``."""
    if isinstance(value, Mapping):
        changed = ((key, change_leaves(each, change, f"{place}/{key}")) for key, each in value.items())
        return type(value)(changed)  # type: ignore[call-arg]
    if isinstance(value, list):
        return [change_leaves(each, change, f"{place}/{number}") for number, each in enumerate(value)]
    return change(place, value)


def _parts(kept: Any, path: Path) -> list[dict[str, Tensor]]:
    """What the files hold that a checkpoint names, mapped and not read; DataError where one is missing or is another."""
    files = kept.get("files") if isinstance(kept, dict) else None
    if not isinstance(files, list) or not files or not all(isinstance(each, dict) for each in files):
        raise _damaged(path, "it names none of their files")
    names = [each.get("file") for each in files]
    if wrong := [name for name in names if not is_file_name(name)]:
        raise _damaged(path, f"they are in {wrong[0]!a}, which is no name of a file")
    parts = []
    for name, digest in zip(names, (each.get("hash") for each in files), strict=True):
        file = path.with_name(name)
        if not file.is_file():
            raise DataError(
                f"checkpoint {path} has its split weights in files of their own ({len(names)}: {_pattern(names)}), of which "
                f"{name} is not there; copy them from where the checkpoint was written, where they lay beside it"
            )
        part = read_tensors(file, mmap=True)
        if not isinstance(part, dict) or not all(map(is_plain, part.values())) or content_hash(part) != digest:
            raise DataError(
                f"{file} does not hold the split weights of checkpoint {path} (another hash); copy it again from where the "
                "checkpoint was written"
            )
        parts.append(part)
    return parts


def _table(kept: Mapping[str, Any], path: Path) -> dict[str, tuple[torch.Size, int]]:
    """By place, the shape of what is put together, and the dimension along which it was split."""
    try:
        return {str(place): (torch.Size(each["shape"]), int(each["dim"])) for place, each in kept["tensors"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, "it does not say what they are") from error


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"checkpoint {path} is damaged: of its split weights, {what}")


def _pattern(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{'-'.join(names[0].split('-')[:2])}-*"


def _named_by(path: Path) -> set[str] | None:
    """The files of parts that a file names; None where it cannot be read at the moment, though it is whole."""
    try:
        content = glance(path)
        files = content.get(KEY, {}).get("files", []) if isinstance(content, dict) else []
        return {str(each["file"]) for each in files}
    except Exception:  # no file of tensors, a damaged one, or a disk that does not answer
        try:
            return None if is_hashed(path) else set()
        except OSError:
            return None
