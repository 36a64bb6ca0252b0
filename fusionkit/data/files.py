"""Annotation files: found, read and unwrapped, with one sentence for whatever is wrong with them."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusionkit.data.identity import check_id
from fusionkit.errors import DataError, UserError, suggest
from fusionkit.files.depends import note
from fusionkit.files.plain import AGAIN, PICKLE, collector_paused, other_kind, reason_of
from fusionkit.files.unicode import BadText


def annotation_file(template: str, split: str) -> Path:
    """The file that `template` names for a split; its `{split}`, if any, is filled in.

    Raises DataError where there is no such file, naming the splits that there are files for.
    """
    path = Path(template.replace("{split}", split))
    if path.is_file():
        note(path)
        return path
    parent, (before, found, after) = path.parent, Path(template).name.partition("{split}")
    if not found or not parent.is_dir():
        raise DataError(
            f"the annotation file {path} {'is a folder' if path.is_dir() else 'does not exist'}; check data.root and the "
            f"reader's path '{template}'"
        )
    known = [file.name[len(before) : len(file.name) - len(after)] for file in parent.glob(f"{before}*{after}")]
    raise DataError(f"the annotation file {path} of split '{split}' does not exist; {suggest(split, known)}")


def read_pickle(path: Path) -> Any:
    """The lists, dicts, strings and numbers of a pickle of either Python; DataError where it asks for anything else.

    A pickle can name any function to be called on loading; here none is, so that a file from a stranger is only read.
    """
    note(path)
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{path} {error}") from None
    except Exception as error:  # a broken pickle can raise nearly anything
        told = other_kind(path, PICKLE) or f"{path} is not a complete pickle file ({reason_of(error)}); {AGAIN}"
        raise DataError(told) from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise DataError(
            f"wants to run '{module}.{name}' when it is read, which a list of referring expressions never needs; "
            "it was not run: get the file from the data set's own site"
        )


def table(content: Any, name: str, path: Path, layout: str) -> list[Any]:
    """The list `content[name]`; DataError where the file has another layout or the list is empty."""
    rows = content.get(name) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        has = f"keys {', '.join(map(str, content))}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{path} has no list '{name}' (it has {has}); expected the {layout} layout")
    if not rows:
        raise DataError(f"the list '{name}' of {path} is empty; expected the {layout} layout with at least one entry")
    return rows


@contextmanager
def expecting(path: Path, layout: str) -> Iterator[None]:
    """Turns a missing key or a malformed value in the block into a DataError about `path`; fast where it makes many objects."""
    try:
        with collector_paused():
            yield
    except BadText as error:
        raise DataError(f"{path}: {error}") from error
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        reason = f"has no {error}" if isinstance(error, KeyError) else f"is malformed ({error})"
        raise DataError(f"an entry of {path} {reason}; expected the {layout} layout") from error


def require_split(split: str, known: dict[str, int], path: Path) -> None:
    """Raise DataError unless the file has entries of this split; `known` counts the entries by split."""
    if split not in known:
        counts = ", ".join(f"{count} of {name}" for name, count in sorted(known.items()))
        raise DataError(f"{path} has no entries of split '{split}'; {suggest(split, known)} (entries: {counts})")


def add_new(ids: set[Any], new: Any, what: str, path: Path) -> None:
    """Add an id that has to be unique; DataError where it is there already, or is no id."""
    check_id(new, what, path)
    if new in ids:
        raise DataError(f"{path} has {what} {new} twice; ids must be unique: remove one of the two entries")
    ids.add(new)
