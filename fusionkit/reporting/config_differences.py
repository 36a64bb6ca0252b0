"""What differs between the configurations of runs, and which runs are seeds of one another."""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from fusionkit.config import leaves
from fusionkit.reporting.record import RunRecord

# where a run lies and how it was begun says nothing about what it is
PLACES = ("name", "output_dir", "resume", "overwrite", "logger", "wandb")
FILES = ("root", "directory", "save_dir", "default_root_dir", "cache", "file")
BUILDING = ("_partial_", "_convert_", "_recursive_")  # Hydra's, of no interest beside the _target_
TARGET = "._target_"
ABSENT = "—"


def differences(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Return by dotted key the values that differ, in the order of the runs; paths and seeds only where nothing else does.

    A section that a run lacks as a whole is one row. Runs of unknown configuration are ignored.
    """
    flat = [_flat(record.config) for record in records]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    known = [values for values in flat if values]
    differing = [key for key in keys if len({values.get(key, ABSENT) for values in known}) > 1]
    telling = [key for key in differing if not is_noise(key)]
    shown = dict.fromkeys(_section(key, known) for key in telling or differing)
    return {key.removesuffix(TARGET): [values.get(key, ABSENT) for values in flat] for key in shown}


def group_seeds(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Group runs whose configurations differ in seeds and places alone, in the order of the first of each."""
    groups: dict[Any, list[RunRecord]] = {}
    for record in records:
        values = frozenset((key, value) for key, value in _flat(record.config).items() if not is_noise(key))
        groups.setdefault(values or record.name, []).append(record)
    return list(groups.values())


def group_name(group: Sequence[RunRecord]) -> str:
    """Return the common part of the names of the runs, such as "late" of late/1 and late/2."""
    if len(group) == 1:
        return group[0].name
    letters = takewhile(lambda at: len(set(at)) == 1, zip(*(record.name for record in group), strict=False))
    shared = "".join(letter for letter, *_ in letters)
    whole = re.sub(r"[^/_.=-]*$", "", shared)  # of seeds 10 and 11 the 1 is no name
    return whole.rstrip("/_.=-") or f"{group[0].name} and others"


def is_noise(key: str) -> bool:
    """Return whether a key names places of files or a seed, not what was done."""
    first, last = key.partition(".")[0], key.rpartition(".")[2]
    return first in PLACES or last in FILES or last == "seed" or last in BUILDING


def _flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Return by dotted key the value as text; the run's own name and folder in it become references."""
    own = [(str(config[key]), f"${{{key}}}") for key in ("output_dir", "name") if config.get(key)]
    return {key: _text(value, own, key) for key, value in leaves(config)}


def _text(value: Any, own: Sequence[tuple[str, str]], key: str) -> str:
    if key.endswith(TARGET):
        return str(value).rpartition(".")[2]  # the class
    if not isinstance(value, str):
        return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    for text, reference in own:
        if value == text or value.startswith(f"{text}/"):
            return reference + value[len(text) :]
    return value


def _section(key: str, flat: Sequence[Mapping[str, str]]) -> str:
    """Return the ``_target_`` of the largest section around the key that only some runs have, else the key."""
    parts = key.split(".")
    for length in range(1, len(parts)):
        section = ".".join(parts[:length])
        has = [any(name.startswith(f"{section}.") for name in values) for values in flat]
        if any(section + TARGET in values for values in flat) and not all(has):
            return section + TARGET
    return key
