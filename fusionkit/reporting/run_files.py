"""The files of a run, each read to what it has to be, or told in a sentence that names it."""

import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fusionkit.assembly.trust import fault_of_yaml
from fusionkit.errors import DataError, UserError
from fusionkit.files import plain as plain_files
from fusionkit.scoring.records import read_records
from fusionkit.scoring.sample_scores import Row, check_rows

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C's is ten times as fast, where it is built
WORDS = {dict: "a section", str: "a text", int: "a whole number"}


def read_json(path: Path) -> dict[str, Any]:
    """An object of a file; empty where there is none."""
    if not path.exists():
        return {}
    content = plain_files.read_json(path, "evaluate that run again")
    if not isinstance(content, dict):
        raise DataError(f"{path} is no map of metrics to numbers; evaluate that run again")
    return content


def read_metrics(path: Path) -> dict[str, Any]:
    """By metric, its number, or None where it has none; empty where there is no such file."""
    content = read_json(path)
    for name, value in content.items():
        is_number = type(value) in (int, float) and abs(value) <= sys.float_info.max
        if value is not None and not is_number:
            raise DataError(f"{path}: {name} is {repr(value)[:40]}, but has to be a number; evaluate that run again")
    return content


def read_yaml(path: Path) -> dict[str, Any]:
    """A section of a file; empty where there is none."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if fault := fault_of_yaml(text):
            raise DataError(f"{path} {fault}; restore it or leave out the run")
        content = yaml.load(text, LOADER)
    except UserError:
        raise
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not valid yaml ({reason}); restore it or leave out the run") from error
    return content if isinstance(content, dict) else {}


def part(content: Mapping[str, Any], key: str, kind: type, place: Path) -> Any:
    """A value of a file, None where it has none; DataError where it is of another kind."""
    value = content.get(key)
    if value is not None and not isinstance(value, kind):
        shown = repr(value)[:40]
        raise DataError(f"{place}: {key} is {shown}, but has to be {WORDS[kind]}; restore it or leave out the run")
    return value


def read_details(path: Path) -> dict[str, dict[str, Any]]:
    """By label, the ``intervals`` of its metrics and its ``split``."""
    details = read_json(path)
    for label in details:
        about = part(details, label, dict, path) or {}
        intervals = part(about, "intervals", dict, path) or {}
        part(about, "split", str, path)
        part(about, "prefix", str, path)
        for name, ends in intervals.items():
            if not isinstance(ends, list) or len(ends) != 2 or not all(isinstance(end, int | float) for end in ends):
                raise DataError(f"{path}: the interval of {label}/{name} is no pair of numbers; score that run again")
    return {label: about for label, about in details.items() if about}


def read_rows(path: Path) -> list[Row]:
    """What each sample scored."""
    rows = read_records(path)
    check_rows(rows, path)
    return rows


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The lines of a csv logger."""
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return list(csv.DictReader(lines))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no csv file of a logger ({error}); restore it or leave out the run") from error
