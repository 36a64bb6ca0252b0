"""What was understood of the files of a user's own table: its columns, what they mean, and its splits."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionkit.data.readers.row_columns import Columns, map_columns
from fusionkit.data.readers.row_filters import Filters
from fusionkit.data.readers.row_places import Place, find_places, role_of
from fusionkit.data.readers.row_shards import Shard
from fusionkit.data.readers.row_texts import Meaning, label_of, what_is_meant
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.files.depends import Seen, noting

if TYPE_CHECKING:
    from fusionkit.data.readers.table import Table

SHARDS = 20  # that are looked at where the first lacks columns
HEAD = 1000  # rows of the first table that guesses are made of
SHARES = {"val": 0.1, "test": 0.1}  # of the images, where no column and no file names the splits


class OpenFiles:
    """The files of a ``Table``, its columns and its splits: each looked at once."""

    def __init__(self, table: "Table") -> None:
        self.files, self.root, self.columns = table.files, table.root, table.columns
        self.label_question, self.shares, self.filters = table.label_question, table.shares, Filters(table.filters)
        self._seen: dict[str, Seen] = {}  # what the properties were made of, on which every split depends

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Hold what the block reads: it is done once, and perhaps before the splits are read."""
        with noting() as files:
            yield
        self._seen = files.seen | self._seen

    @cached_property
    def places(self) -> list[Place]:
        """The tables, each with the split that it is. Raises DataError."""
        with self._kept():
            return find_places(self.files, self.root)

    @property
    def path(self) -> Path:
        """The first table."""
        return self.places[0].table.path

    @property
    def called(self) -> str:
        """The first table, and how many more there are."""
        more = len(self.places) - 1
        return f"{self.path} and {more:,} more" if more else str(self.path)

    @property
    def is_sharded(self) -> bool:
        """Whether the tables are shards."""
        return all(isinstance(place.table, Shard) for place in self.places)

    @cached_property
    def head(self) -> list[dict[str, Any]]:
        """The first rows of the first table, and of more shards where it lacks columns. DataError where there are none."""
        with self._kept():
            rows = self.places[0].table.head(HEAD)
            lacking = set(self.places[0].table.columns) - {name for row in rows for name in row}
            for place in self.places[1:SHARDS] if lacking and self.is_sharded else ():
                rows += place.table.head(HEAD // 10)
        if not rows:
            raise DataError(f"{self.path} has columns and no rows; give a table with one row an image or a text")
        return rows

    @cached_property
    def mapped(self) -> Columns:
        """The columns of each role. Raises DataError and ConfigError."""
        columns = self.places[0].table.columns
        if lacking := next((name for name in self.filters.columns if name not in columns), None):
            raise ConfigError(
                f"data.filters names the column '{lacking}', which {self.path} has not; {suggest(lacking, columns)}"
            )
        return map_columns(columns, self.head, self.columns, self.path)

    @cached_property
    def meaning(self) -> Meaning:
        """Which texts the columns are."""
        meaning = what_is_meant(self.mapped, self.head, self.places[0].table.classes, self.label_question)
        if self.filters.reads_texts and not meaning.captions:
            raise ConfigError(
                f"data.filters keeps captions by words, characters, repeated or copies, and {self.path} has "
                f"{' and '.join(meaning.kinds)}; "
                "leave rows out by scores and values, or name the captions as data.columns.caption=COLUMN"
            )
        return meaning

    @cached_property
    def named(self) -> dict[str, int | None]:
        """By split that a column or a file names, its rows, where they are counted; empty where none does."""
        if any(place.split for place in self.places):
            return dict.fromkeys(str(place.split) for place in self.places)
        column = self.mapped.get("split")
        names = (self._split_in(row, place) for place in self.places for row in place.table.rows(column or ()))
        with self._kept():
            return dict(Counter(names)) if column else {}

    @cached_property
    def hashed(self) -> dict[str, float]:
        """By split that is drawn from the training images by a hash, its share of them."""
        for split in self.shares:
            if split in self.named and self.shares[split]:
                raise ConfigError(
                    f"data.split_by.{split}: {self.path} has a split '{split}' already; leave it out, or point "
                    "data.columns.split at another column"
                )
        if self.named and "train" not in self.named:
            return {}
        return {split: share for split, share in (SHARES | self.shares).items() if share and split not in self.named}

    @property
    def splits(self) -> list[str]:
        """The names of all splits, training first."""
        first = ["train"] if not self.named or "train" in self.named else []
        return list(dict.fromkeys([*first, *self.named, *self.hashed]))

    def _split_in(self, cells: Mapping[str, Any], place: Place) -> str:
        name = self.mapped["split"][0]
        said = label_of(cells.get(name), place.table.classes.get(name))
        if said is None:
            raise DataError(f"{place.table.path} has a row without a value of '{name}'; name a split in each row")
        return role_of(said)
