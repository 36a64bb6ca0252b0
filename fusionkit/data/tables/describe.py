"""What a reader is, in words that are equal where it reads the same: its class, its arguments and the version of its code."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
from xxhash import xxh3_128

OWN = "fusionkit."
ROOMS = ("data", "files")  # whose code decides what a reading gives


class Unknown(Exception):
    """Nothing tells whether two of these are equal."""


def describe(value: Any) -> Any:
    """A reader, or an argument of one, as plain values. Raises Unknown.

    A class of one's own is known where it says its ``version``, as a number or a text that changes with what it reads.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return {"path": str(value)}
    if isinstance(value, Mapping):
        return {"mapping": [[describe(key), describe(part)] for key, part in value.items()]}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return {"list": [describe(part) for part in value]}
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if not hasattr(value, "__dict__") or not (kind.__module__.startswith(OWN) or _version(value) is not None):
        raise Unknown(f"a {name}")
    return {
        "class": name,
        "code": _code(kind.__module__),
        "version": _version(value),
        "arguments": describe(vars(value)),
    }


@cache
def code_version() -> str:
    """A hash of all code of fusionkit that decides what a reading gives, and of Arrow's version."""
    package = Path(__file__).parents[2]
    digest = xxh3_128(pa.__version__.encode())
    for room in ROOMS:
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(value: Any) -> int | str | None:
    version = getattr(value, "version", None)
    return version if isinstance(version, int | str) else None


@cache
def _code(module: str) -> str:
    """A hash of the file that a class of one's own stands in; of ours the version of all code is known."""
    if module.startswith(OWN):
        return ""
    try:
        path = inspect.getsourcefile(sys.modules[module])
        return xxh3_128(Path(str(path)).read_bytes()).hexdigest()
    except (OSError, TypeError, KeyError):  # of a notebook, say
        return ""
