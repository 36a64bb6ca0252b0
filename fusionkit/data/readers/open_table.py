"""What was understood of a user's own table, and its rows as samples."""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionkit.data.boxes import Size
from fusionkit.data.files import require_split
from fusionkit.data.identity import short_names
from fusionkit.data.joint import merge_samples
from fusionkit.data.readers.open_files import OpenFiles
from fusionkit.data.readers.row_boxes import number_table, recognise, told_by, with_boxes
from fusionkit.data.readers.row_columns import Columns, convention_of
from fusionkit.data.readers.row_pictures import (
    Picture,
    Row,
    digest_of,
    drawn,
    fullest,
    name_pictures,
    pictures_of,
    size_of,
)
from fusionkit.data.readers.row_places import Place, role_of
from fusionkit.data.readers.row_shards import Shard
from fusionkit.data.readers.row_texts import texts_in
from fusionkit.data.readers.rows import Stored
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError, suggest
from fusionkit.files.depends import again

if TYPE_CHECKING:
    from fusionkit.data.readers.table import Table

BOXES = 200  # pictures by whose boxes a convention is recognised
# Where pictures lie, from the table's folder.
FOLDERS = ("", "images", "Images", "imgs", "img", "photos", "pictures", "../images")
TEXTS = ("caption", "question", "answer", "expression", "label", "conversation")  # roles of what is said of pictures
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


class OpenTable(OpenFiles):
    """The rows of a ``Table`` as samples, and how its boxes are written."""

    def __init__(self, table: "Table") -> None:
        super().__init__(table)
        self.images, self.collection, self.boxes, self.missing = (
            table.images,
            table.collection,
            table.boxes,
            table.missing,
        )
        self.streams = table.streams
        self.skipped: dict[str, int] = {}  # by split, rows whose picture is not there
        self._there = 0  # pictures of it that are
        self.bare = 0  # pictures of the split that was read last which have no text
        self._draws: dict[Path, str] = {}  # by picture, the split that its hash gives it

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
        self.skipped[split], self._there, self.bare, is_empty = 0, 0, 0, True
        self.filters.clear()
        for name, group in zip(names, groups, strict=True):
            if samples := self._part(group, split, asked):
                is_empty = False
                yield name, samples
        for sentence in self.filters.told():
            warnings.warn(f"{self.called}, {split if self._draws_rows else asked}: {sentence}", stacklevel=1)
        if (count := self.skipped[split]) and self.missing != "skip" and split not in self.hashed:
            warnings.warn(f"{self.called}: {count:,} rows have no picture, and are left out", stacklevel=1)
        if self.bare:
            named = ", ".join(name for role in TEXTS for name in self.mapped.get(role, ()))
            warnings.warn(
                f"{self.called}, {split}: {self.bare:,} pictures have no text in the columns that are read "
                f"({named}), and are left out",
                stacklevel=1,
            )
        if is_empty:
            raise DataError(self._empty(split))

    def _part(self, places: Sequence[tuple[int, Place]], split: str, asked: str) -> list[Sample]:
        """The samples of a split in some of the tables, which are numbered; ``asked`` is the split of the files."""
        pictures: list[Picture] = []
        for number, place in places:
            start = f"{number}/" if len(self.places) > 1 else ""
            captions, has_others = self.meaning.captions, len(self.meaning.kinds) > 1
            found, missing = pictures_of(
                self.filters.among(self._rows(place, asked, start, split), captions, has_others),
                self.folder(place, asked),
                self.mapped,
                place.table.path,
                self.missing == "skip",
                partial(self.filters.unrepeated, captions=captions, has_others=has_others),
            )
            pictures += found
            self._there += len(found)
            self.skipped[split] += missing
        if self.hashed and asked == "train" and not self._draws_rows:
            pictures = [each for each in pictures if self._drawn(each) == split]
        name_pictures(pictures, self.mapped, self.path)
        return self._samples(pictures)

    def _empty(self, split: str) -> str:
        if (rows := self.skipped[split]) and not self._there:
            return (
                f"the split '{split}' of {self.path} is empty: the pictures of its {rows:,} rows are not there; name their "
                "folder as data.images=FOLDER"
            )
        fix = f"known: {', '.join(self.splits)}"
        if split in self.hashed:
            fix = f"give it a larger part of the pictures, data.split_by.{split}=0.3, or none, data.split_by.{split}=0"
        return f"the split '{split}' of {self.path} is empty; {fix}"

    def _rows(self, place: Place, split: str, start: str, wanted: str | None = None) -> Iterator[Row]:
        """The rows of one table that are of a split, each with its name; of shards those drawn into the ``wanted`` one."""
        used = (name for names in self.mapped.values() for name in names)
        needed = list(dict.fromkeys([*used, *self.filters.columns]))
        optional = {name for role in OPTIONAL for name in self.mapped.get(role, ())}
        lacking = [name for name in needed if name not in place.table.columns]
        if missing := next((name for name in lacking if name not in optional), None):
            raise DataError(
                f"{place.table.path} has no column '{missing}', which {self.path} has; {suggest(missing, place.table.columns)}"
            )
        is_mixed = "split" in self.mapped and place.split is None
        there = [name for name in needed if name not in lacking]
        rows: Iterable[tuple[int, dict[str, Any]]] = enumerate(place.table.rows(there))
        if (
            isinstance(place.table, Shard)
            and self._draws_rows
            and self.hashed
            and split == "train"
            and wanted is not None
        ):
            rows = place.table.rows_where(
                there, lambda digest: drawn(digest, self.hashed) == wanted, self.mapped.get("image", ())
            )
        for at, cells in rows:
            if not is_mixed or self._split_in(cells, place) == split:
                yield Row(place.table.path, at + place.table.first, f"{start}{at}" if start else at, cells)

    def folder(self, place: Place, split: str) -> Path:
        """Where the pictures of a table lie: as it is said, else the first of the usual places that has some of them."""
        if self.images is not None:
            given = self.files if isinstance(self.files, Mapping) else {}
            spelt = next((str(name) for name in given if role_of(name) == split), split)
            return self.root / os.path.expanduser(self.images).replace("{split}", spelt)
        usual = [Path(os.path.normpath(place.folder / name)) for name in (*FOLDERS, split)]
        return fullest([folder for folder in usual if folder.is_dir()], place.table, self.mapped) or place.folder

    @property
    def _draws_rows(self) -> bool:
        """Whether only the rows of one split are read; copies are counted over those of all, as in any table."""
        return self.is_sharded and self.filters.copies is None

    def _drawn(self, picture: Picture) -> str:
        """The split that a picture's hash gives it."""
        path, stored = picture.files[0], picture.reference
        if path not in self._draws:
            known = stored.digest if isinstance(stored, Stored) else None
            self._draws[path] = drawn(known or digest_of(path), self.hashed)
        return self._draws[path]

    def _samples(self, pictures: Sequence[Picture]) -> list[Sample]:
        """The pictures with their texts; ids that are used twice give way to the numbers of the rows."""
        columns = self.mapped
        texts = self._texts(pictures, columns)
        ids = [(kind, text.id) for each in texts for kind, text in each]
        if len(set(ids)) < len(ids) and "id" in columns:
            texts = self._texts(pictures, {role: names for role, names in columns.items() if role != "id"})
        sizes: list[Size | None] = [None] * len(pictures)
        if "expressions" in self.meaning.kinds and self.streams:
            raise DataError(
                f"{self.path} has boxes, but of a stream none is read; leave them unread with ++data.columns.expression=[] and "
                "++data.columns.box=[], or ground in single pictures (data=table)"
            )
        if "expressions" in self.meaning.kinds:
            sizes = [self._size(picture) for picture in pictures]
            texts = with_boxes(texts, sizes, lambda: self.convention, self.path)
        samples = []
        for picture, said, size in zip(pictures, texts, sizes, strict=True):
            kinds: dict[str, list[Text]] = {}
            for kind, text in said:
                kinds.setdefault(kind, []).append(text)
            by_kind = {kind: tuple(found) for kind, found in kinds.items()}
            self.bare += not by_kind
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
            [
                found
                for row in picture.rows
                for found in texts_in(
                    row, self.meaning, columns, classes[row.path], 1 if self.streams else len(picture.files)
                )
            ]
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
