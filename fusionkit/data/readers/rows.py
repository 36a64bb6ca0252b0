"""What a table on disk is to a reader: columns, and rows that are dicts by column."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

BATCH = 4096  # rows


@dataclass(frozen=True)
class Stored:
    """A picture that stands in the table itself: where its bytes are, and the name that the table gives it.

    Of a member of a shard also the hash of its bytes; its name begins with a key, which is of that shard alone.
    """

    path: Path
    name: str | None = None
    digest: bytes | None = None


@dataclass(frozen=True)
class RowFile:
    """One table: its file, its columns, and the names of the classes that numbers of a column stand for."""

    path: Path
    columns: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """The number of the first row, as people count: 1, or 2 below a header."""
        return 1

    def rows(self, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        """Every row, with these columns at least. Raises DataError for a row that cannot be read."""
        raise NotImplementedError

    def head(self, most: int = 1000) -> list[dict[str, Any]]:
        """The first rows."""
        return list(islice(self.rows(), most))
