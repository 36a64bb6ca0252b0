"""The data module of a user's own table: as any other, but that it says what it understood of the table."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from fusionkit.data.datamodule import DataModule
from fusionkit.data.readers.open_table import OpenTable
from fusionkit.data.readers.table import ASKED, Table
from fusionkit.data.source import Source
from fusionkit.errors import ConfigError, suggest


class TableData(DataModule):
    """Sources to batches, of which one or several read tables.

    The first arguments are those of ``Table``, to which the readers of the sources refer (``${data.files}``), so that one
    names them as data.files; the others are those of ``DataModule``.
    """

    def __init__(
        self,
        files: Any = None,
        images: str | None = None,
        columns: Mapping[str, Any] | None = None,
        boxes: str | None = None,
        split_by: Mapping[str, float | None] | None = None,
        missing: str = "error",
        label_question: str = ASKED,
        filters: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        known = inspect.signature(DataModule).parameters
        if unknown := next((name for name in options if name not in known), None):
            raise ConfigError(f"data has no key '{unknown}'; {suggest(unknown, known)}")
        super().__init__(missing=missing, **options)
        given = {"images": images, "columns": columns, "boxes": boxes, "split_by": split_by, "filters": filters}
        _tell_unread(given | {"label_question": label_question}, self.sources)
        self._is_told = False

    def setup(self, stage: str | None = None) -> None:
        """Says once what was understood of the tables. Raises DataError."""
        super().setup(stage)
        if not self._is_told:
            self._is_told = True
            for name, source in self.sources.items():
                if isinstance(source.reader, Table):
                    for sentence in told(source.reader.opened):
                        rank_zero_only(print)(f"{name}: {sentence}")


def _tell_unread(given: Mapping[str, Any], sources: Mapping[str, Source]) -> None:
    """Warn of what is given as data.NAME and read by none of the sources' tables."""
    tables = {name: source.reader for name, source in sources.items() if isinstance(source.reader, Table)}
    for name, value in given.items():
        own = "shares" if name == "split_by" else name
        if tables and _is_said(value) and not any(_is_said(getattr(table, own)) for table in tables.values()):
            place = f"data.sources.{next(iter(tables))}.reader.{name}"
            warnings.warn(
                f"data.{name} is {value!r}, but no source reads it; to have it read, set ++{place}=VALUE", stacklevel=1
            )


def _is_said(value: Any) -> bool:
    return any(map(_is_said, value.values())) if isinstance(value, Mapping) else value not in (None, ASKED)


def told(table: OpenTable) -> list[str]:
    """What was understood of a table, in sentences: columns, splits and pictures. Raises DataError."""
    used = {role: names[0] if len(names) == 1 else list(names) for role, names in table.mapped.items()}
    free = [
        name
        for name in table.places[0].table.columns
        if name not in {each for n in table.mapped.values() for each in n}
    ]
    sentences = [
        f"{table.called}: {_listed(f'{role}={_word(name)}' for role, name in used.items())} (say otherwise as data.columns.NAME="
        f"COLUMN){f'; not read: {_listed(free[:20])}' if free else ''}",
        f"texts: {_listed(table.meaning.kinds)}"
        + (f", of which pictures are asked {table.meaning.asked!r}" if table.meaning.asked else ""),
        f"splits: {_listed(table.splits)}; {_of_splits(table)}",
    ]
    if "expressions" in table.meaning.kinds:
        how = "as data.boxes says" if table.boxes else "recognised, data.boxes=NAME says otherwise"
        sentences.append(f"boxes: {table.convention} ({how})")
    return sentences


def _of_splits(table: OpenTable) -> str:
    shares = " and ".join(f"{split} {share:g}" for split, share in table.hashed.items())
    by_hash = f"{shares} of the training pictures, by a hash of each (data.split_by)" if shares else ""
    named = (
        ""
        if not table.named
        else "named by the files"
        if any(p.split for p in table.places)
        else "named by their column"
    )
    return "; ".join(part for part in (named, by_hash) if part)


def _word(name: str | Sequence[str]) -> str:
    return name if isinstance(name, str) else f"[{','.join(name)}]"


def _listed(words: Any) -> str:
    return ", ".join(words)
