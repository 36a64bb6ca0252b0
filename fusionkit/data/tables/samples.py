"""The samples of a split as a sequence over its columns: a Python object exists for the sample in hand."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from fusionkit.data.sample import WEIGHT, Sample, Text
from fusionkit.data.tables.column import ABSENT, Column, chunks
from fusionkit.data.tables.table import (
    COLLECTION,
    FACT,
    ID,
    KEY,
    OTHER_KEYS,
    OTHERS,
    PATH,
    PHOTO,
    TEXT,
    Tables,
    numbers,
    samples_of,
    tables_of,
    texts_in,
)

CHUNK = 1024  # samples, or texts, that are Python objects at a time while all are gone through


class Samples(Sequence[Sample]):
    """Rows of ``Tables``, all of them or those of some numbers, in their order; each is a ``Sample`` when it is asked for.

    What is asked of all samples is asked of their columns: ``keys``, ``counts``, ``ids``, ``strings``, ``facts``.
    """

    def __init__(self, tables: Tables, rows: NDArray[np.int64] | None = None) -> None:
        self.tables, self.rows = tables, rows

    def __len__(self) -> int:
        return len(self.tables) if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            return Samples(self.tables, self._numbers()[index])
        row = range(len(self))[index]
        return next(samples_of(self.tables, row if self.rows is None else int(self.rows[row]), 1))

    def __iter__(self) -> Iterator[Sample]:
        for start, count in self._stretches(CHUNK):
            yield from samples_of(self.tables, start, count)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return f"<{len(self):,} samples>"

    def where(self, is_kept: NDArray[np.bool_]) -> "Samples":
        """Those of the samples that a mask (N,) keeps."""
        return self if is_kept.all() else Samples(self.tables, self._numbers()[is_kept])

    @property
    def kinds(self) -> list[str]:
        """The kinds of text that the split has, perhaps none of these samples."""
        return list(self.tables.texts)

    @property
    def keys(self) -> NDArray[np.int64]:
        """The 64-bit key of each sample's own image, (N,)."""
        keys = numbers(self.tables.images[KEY])
        return keys if self.rows is None else keys[self.rows]

    @property
    def photos(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The keys of all images, and which sample (0 to N - 1) shows each; one's own first, then all the others."""
        own = self.keys
        rows = np.arange(len(own))
        if not self.has_others:
            return own, rows
        found = self._images(OTHER_KEYS)
        others = [() if each is ABSENT else each for each in found.values()]
        more = np.array([key for keys in others for key in keys], dtype=np.int64)
        return np.concatenate([own, more]), np.concatenate([rows, np.repeat(rows, [len(keys) for keys in others])])

    @property
    def has_others(self) -> bool:
        """Whether any sample has further images."""
        if self.tables.images[OTHERS].array.null_count == len(self.tables):
            return False
        found = self._images(OTHERS)
        return bool(found.array.null_count < len(found))

    @property
    def other_ends(self) -> NDArray[np.int64]:
        """How many other images the samples up to each have together, (N,)."""
        if not self.has_others:
            return np.zeros(len(self), dtype=np.int64)
        found = self._images(OTHERS).values()
        return np.cumsum([0 if each is ABSENT else len(each) for each in found], dtype=np.int64)

    @property
    def is_by_name(self) -> NDArray[np.bool_]:
        """Whether nothing but its file's name says which photo a sample shows, (N,)."""
        known = [self._images(name).array.is_null() for name in (COLLECTION, PHOTO)]
        unknown: list[NDArray[np.bool_]] = [each.to_numpy(zero_copy_only=False).astype(bool) for each in known]
        return np.logical_and(*unknown)

    def counts(self, kind: str) -> NDArray[np.int64]:
        """How many texts of a kind each sample has, (N,)."""
        if kind not in self.tables.texts:
            return np.zeros(len(self), dtype=np.int64)
        counts = np.diff(self.tables.ends[kind], prepend=0)
        return counts if self.rows is None else counts[self.rows]

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """How often each sample is to be drawn in proportion, (N,): the mean of what its texts say, 1 where they say nothing.

        None where none says anything.
        """
        said = [kind for kind, table in self.tables.texts.items() if FACT + WEIGHT in table]
        total, count = np.zeros(len(self.tables)), np.zeros(len(self.tables))
        for kind in said:
            values = [1.0 if each is ABSENT else each for each in self.tables.texts[kind][FACT + WEIGHT].values()]
            counts = np.diff(self.tables.ends[kind], prepend=0)
            count += counts
            total += np.bincount(np.repeat(np.arange(len(counts)), counts), values, len(counts))
        weights = np.divide(total, count, out=np.ones(len(total)), where=count > 0)
        return None if not said else weights if self.rows is None else weights[self.rows]

    @property
    def folders(self) -> NDArray[np.int64]:
        """The number of the folder, or of the table or tar in its place, that each sample's image is in, (N,)."""
        parents = pc.replace_substring_regex(self._images(PATH).array, pattern="/[^/]*$", replacement="")
        return np.asarray(pc.dictionary_encode(parents).indices.to_numpy(zero_copy_only=False), dtype=np.int64)

    def image_ids(self) -> list[int | str]:
        """The id of each sample's image."""
        return self._images(ID).values()

    def ids(self, kind: str) -> Iterator[int | str]:
        """The ids of all texts of a kind, in the order of the samples."""
        return self._texts(kind, ID)

    def strings(self, kind: str) -> Iterator[str]:
        """All texts of a kind."""
        return self._texts(kind, TEXT)

    def facts(self, kind: str, name: str) -> Iterator[Any]:
        """A fact of those texts of a kind that have it."""
        return (value for value in self._texts(kind, FACT + name) if value is not ABSENT)

    def first(self, kind: str) -> Text | None:
        """The first text of a kind."""
        place = next(self._places(kind), None)
        return None if place is None else texts_in(self.tables.texts[kind], place[0], 1)[0]

    def _texts(self, kind: str, name: str) -> Iterator[Any]:
        if (found := self.tables.texts.get(kind, {}).get(name)) is not None:
            for start, count in self._places(kind):
                for first, part in chunks(count, CHUNK):
                    yield from found.values(start + first, part)

    def _places(self, kind: str) -> Iterator[tuple[int, int]]:
        """Where the texts of a kind stand that belong to these samples: starts and lengths, none empty."""
        if kind not in self.tables.texts:
            return
        ends = self.tables.ends[kind]
        for start, count in self._stretches(len(self.tables)):
            first = int(ends[start - 1]) if start else 0
            if (length := int(ends[start + count - 1]) - first) > 0:
                yield first, length

    def _stretches(self, longest: int) -> Iterator[tuple[int, int]]:
        """The rows as stretches that stand together: starts and lengths."""
        if self.rows is None:
            yield from chunks(len(self), max(1, longest))
            return
        edges = np.flatnonzero(np.diff(self.rows) != 1) + 1
        for part in np.split(self.rows, edges) if len(self.rows) else ():
            for start, count in chunks(len(part), max(1, longest)):
                yield int(part[0]) + start, count

    def _images(self, name: str) -> Column:
        found = self.tables.images[name]
        return found if self.rows is None else found.take(self.rows)

    def _numbers(self) -> NDArray[np.int64]:
        return np.arange(len(self.tables)) if self.rows is None else self.rows


class ImagePaths(Sequence[Path]):
    """The images of samples, in their order, and behind them all their other ones."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = as_samples(samples)
        self.ends = self.samples.other_ends

    def __len__(self) -> int:
        return len(self.samples) + (int(self.ends[-1]) if len(self.ends) else 0)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        if place < len(self.samples):
            return self.samples[place].image
        owner = bisect_right(self.ends, place - len(self.samples))
        start = int(self.ends[owner - 1]) if owner else 0
        return self.samples[owner].others[place - len(self.samples) - start]

    def __iter__(self) -> Iterator[Path]:
        yield from (sample.image for sample in self.samples)
        yield from (path for sample in self.samples for path in sample.others) if len(self) > len(self.samples) else ()


class OtherPlaces(Sequence[range]):
    """Where in ``ImagePaths`` the other images of each sample stand."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.ends = as_samples(samples).other_ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> range: ...
    @overload
    def __getitem__(self, index: slice) -> list[range]: ...
    def __getitem__(self, index: int | slice) -> range | list[range]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place, count = range(len(self))[index], len(self.ends)
        return range(count + (int(self.ends[place - 1]) if place else 0), count + int(self.ends[place]))


def as_samples(samples: Sequence[Sample]) -> Samples:
    """The samples with columns."""
    return samples if isinstance(samples, Samples) else Samples(tables_of(samples))  # raises BadText
