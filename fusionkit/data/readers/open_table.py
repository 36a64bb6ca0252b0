"""What was understood of a user's own table, and its rows as samples."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionkit.data.boxes import Size
from fusionkit.data.files import require_split
from fusionkit.data.identity import short_names
from fusionkit.data.joint import merge_samples
from fusionkit.data.readers.row_boxes import number_table, recognise, told_by, with_boxes
from fusionkit.data.readers.row_columns import Columns, convention_of, map_columns
from fusionkit.data.readers.row_filters import Filters
from fusionkit.data.readers.row_pictures import (
    Picture,
    Row,
    drawn,
    fullest,
    name_pictures,
    pictures_of,
    size_of,
)
from fusionkit.data.readers.row_places import Place, find_places, role_of
from fusionkit.data.readers.row_shards import Shard
from fusionkit.data.readers.row_texts import Meaning, label_of, texts_in, what_is_meant
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.files.depends import Seen, again, noting

if TYPE_CHECKING:
    from fusionkit.data.readers.table import Table

HEAD = 1000  # rows of the first table that guesses are made of
BOXES = 200  # pictures by whose boxes a convention is recognised
SHARES = {"val": 0.1, "test": 0.1}  # of the images, where no column and no file names the splits
# Where pictures lie, from the table's folder.
FOLDERS = ("", "images", "Images", "imgs", "img", "photos", "pictures", "../images")
OPTIONAL = (
    "id",
    "answer",
    "answer_type",
    "question_type",
    "weights",
    "label",
    "image_id",
    "width",
    "height",
    "sample_weight",
)


class OpenTable:
    """The files of a ``Table``, its columns, its splits, and how its boxes are written: each looked at once."""

    def __init__(self, table: "Table") -> None:
        self.files, self.root, self.images, self.collection = table.files, table.root, table.images, table.collection
        self.columns, self.boxes, self.missing = table.columns, table.boxes, table.missing
        self.label_question, self.shares, self.filters = table.label_question, table.shares, Filters(table.filters)
        self.skipped: dict[str, int] = {}  # by split, rows whose picture is not there
        self._digests: dict[Path, bytes] = {}  # of pictures
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
        """The first rows of the first table. DataError where it has none."""
        with self._kept():
            rows = self.places[0].table.head(HEAD)
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
        return what_is_meant(self.mapped, self.head, self.places[0].table.classes, self.label_question)

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

    def read(self, split: str) -> Sequence[Sample]:
        """The images of a split that have texts. Raises DataError."""
        parts = list(self.parts(split))
        return parts[0][1] if len(parts) == 1 else merge_samples(parts)

    def parts(self, split: str) -> Iterator[tuple[str, list[Sample]]]:
        """As ``read``, shard by shard, each by its name: of millions of rows only those of one are in memory."""
        again(self._seen)
        split = role_of(split)
        if split not in self.splits:
            require_split(split, {name: self.named.get(name) or 0 for name in self.splits}, self.path)
        asked = "train" if split in self.hashed else split
        places = [(number, place) for number, place in enumerate(self.places) if place.split in (None, asked)]
        paths = [place.table.path for _, place in places]
        names, groups = (short_names(paths), [[each] for each in places]) if self.is_sharded else ([split], [places])
        self.skipped[split], is_empty = 0, True
        self.filters.clear()
        for name, group in zip(names, groups, strict=True):
            if samples := self._part(group, split, asked):
                is_empty = False
                yield name, samples
        for sentence in self.filters.told():
            warnings.warn(f"{self.called}: {sentence}", stacklevel=2)
        if is_empty:
            raise DataError(self._empty(split))

    def _part(self, places: Sequence[tuple[int, Place]], split: str, asked: str) -> list[Sample]:
        """The samples of a split in some of the tables, which are numbered; ``asked`` is the split of the files."""
        pictures: list[Picture] = []
        for number, place in places:
            start = f"{number}/" if len(self.places) > 1 else ""
            found, missing = pictures_of(
                self.filters.among(self._rows(place, asked, start), self.meaning.captions, len(self.meaning.kinds) > 1),
                self.folder(place, asked),
                self.mapped,
                place.table.path,
                self.missing == "skip",
            )
            pictures += found
            self.skipped[split] += missing
        if self.hashed and asked == "train":
            pictures = [each for each in pictures if drawn(each, self.hashed, self._digests) == split]
        name_pictures(pictures, self.mapped, self.path)
        return self._samples(pictures)

    def _empty(self, split: str) -> str:
        fix = f"known: {', '.join(self.splits)}"
        if self.hashed:
            fix = f"give it a larger part of the pictures, data.split_by.{split}=0.3, or none, data.split_by.{split}=0"
        return f"the split '{split}' of {self.path} is empty; {fix}"

    def _rows(self, place: Place, split: str, start: str) -> Iterator[Row]:
        """The rows of one table that are of a split, each with its name."""
        used = (name for names in self.mapped.values() for name in names)
        needed = list(dict.fromkeys([*used, *self.filters.columns]))
        optional = {name for role in OPTIONAL for name in self.mapped.get(role, ())}
        lacking = [name for name in needed if name not in place.table.columns]
        if missing := next((name for name in lacking if name not in optional), None):
            raise DataError(
                f"{place.table.path} has no column '{missing}', which {self.path} has; {suggest(missing, place.table.columns)}"
            )
        is_mixed = "split" in self.mapped and place.split is None
        for at, cells in enumerate(place.table.rows([name for name in needed if name not in lacking])):
            if not is_mixed or self._split_in(cells, place) == split:
                yield Row(place.table.path, f"{start}{at}" if start else at, cells)

    def _split_in(self, cells: Mapping[str, Any], place: Place) -> str:
        name = self.mapped["split"][0]
        said = label_of(cells.get(name), place.table.classes.get(name))
        if said is None:
            raise DataError(f"{place.table.path} has a row without a value of '{name}'; name a split in each row")
        return role_of(said)

    def folder(self, place: Place, split: str) -> Path:
        """Where the pictures of a table lie: as it is said, else the first of the usual places that has some of them."""
        if self.images is not None:
            given = self.files if isinstance(self.files, Mapping) else {}
            spelt = next((str(name) for name in given if role_of(name) == split), split)
            return self.root / os.path.expanduser(self.images).replace("{split}", spelt)
        usual = [Path(os.path.normpath(place.folder / name)) for name in (*FOLDERS, split)]
        return fullest([folder for folder in usual if folder.is_dir()], place.table, self.mapped) or place.folder

    def _samples(self, pictures: Sequence[Picture]) -> list[Sample]:
        """The pictures with their texts; ids that are used twice give way to the numbers of the rows."""
        columns = self.mapped
        texts = self._texts(pictures, columns)
        ids = [(kind, text.id) for each in texts for kind, text in each]
        if len(set(ids)) < len(ids) and "id" in columns:
            texts = self._texts(pictures, {role: names for role, names in columns.items() if role != "id"})
        sizes: list[Size | None] = [None] * len(pictures)
        if "expressions" in self.meaning.kinds:
            sizes = [self._size(picture) for picture in pictures]
            texts = with_boxes(texts, sizes, lambda: self.convention, self.path)
        samples = []
        for picture, said, size in zip(pictures, texts, sizes, strict=True):
            kinds: dict[str, list[Text]] = {}
            for kind, text in said:
                kinds.setdefault(kind, []).append(text)
            by_kind = {kind: tuple(found) for kind, found in kinds.items()}
            if by_kind:
                own, *others = picture.files
                samples.append(
                    Sample(
                        *(picture.image_id, own, by_kind, size, self.collection, tuple(others)),
                        photo=picture.photo,
                        upright=size is None,
                    )
                )
        return samples

    def _texts(self, pictures: Sequence[Picture], columns: Columns) -> list[list[tuple[str, Text]]]:
        first = self.places[0].table.classes  # of tables that do not name them
        classes = {place.table.path: {**first, **place.table.classes} for place in self.places}
        return [
            [found for row in picture.rows for found in texts_in(row, self.meaning, columns, classes[row.path])]
            for picture in pictures
        ]

    def _size(self, picture: Picture) -> Size | None:
        return size_of(picture, self.mapped, self.missing == "skip")

    @cached_property
    def convention(self) -> str:
        """How the boxes are written: as it is said, else as it is recognised by the first of the training images."""
        if self.boxes is not None:
            return self.boxes
        with self._kept():
            return self._recognised()

    def _recognised(self) -> str:
        place = next((place for place in self.places if place.split in (None, "train")), self.places[0])
        split = place.split or ("train" if not self.named or "train" in self.named else next(iter(self.named)))
        rows = [row for row, _ in zip(self._rows(place, split, ""), range(5 * BOXES), strict=False)]
        pictures, _ = pictures_of(rows, self.folder(place, split), self.mapped, place.table.path, True)
        found = [
            (text.facts["box"], size, text.id)
            for picture in pictures[:BOXES]
            if (size := self._size(picture)) is not None
            for row in picture.rows
            for kind, text in texts_in(row, self.meaning, self.mapped, place.table.classes)
            if kind == "expressions"
        ]
        if not found:
            raise DataError(
                f"{place.table.path} has no boxes in its first rows; name their column as data.columns.box=COLUMN"
            )
        boxes, sizes, names = (list(each) for each in zip(*found, strict=True))
        kind = told_by(boxes) or convention_of(self.mapped["box"])
        return recognise(number_table(boxes, names, place.table.path), sizes, kind, place.table.path)
