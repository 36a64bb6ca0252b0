"""Several readers about the same images, read as one source."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fusionkit.data.identity import apart
from fusionkit.data.images import has_pixels, image_key
from fusionkit.data.sample import Reader, Sample, SupportsParts
from fusionkit.data.tables.column import ABSENT, Column, column, count_distinct, joined
from fusionkit.data.tables.samples import Samples, as_samples
from fusionkit.data.tables.table import (
    COLLECTION,
    ENDS,
    ID,
    KEY,
    OTHER_KEYS,
    PHOTO,
    SIZE,
    Table,
    Tables,
    images_of,
    numbers,
    tables_of,
)
from fusionkit.errors import DataError, suggest

HEAD = 4096  # bytes of a picture file, in which two photos differ


class Joint:
    """Merges the samples of several readers by image: captions, questions and expressions in one sample.

    Where two readers use one id for two things, all such ids come behind the number of their reader, from 1: "2/42".
    """

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = list(readers)

    def read(self, split: str) -> list[Sample]:
        """All images of any of the readers. Raises DataError."""
        return list(Samples(read_tables(self, split)))


class Named:
    """Several readers whose splits are asked for as "name/split": of some, one source may train, of others be validated."""

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self.readers = dict(readers)

    def read(self, split: str) -> list[Sample]:
        """One split of one reader. Raises DataError."""
        reader, part = self.part(split)
        return list(reader.read(part))

    def part(self, split: str) -> tuple[Reader, str]:
        """The reader of a split, and what it calls it. Raises DataError."""
        name, _, part = split.partition("/")
        if name not in self.readers or not part:
            raise DataError(f"the split '{split}' is no reader/split; {suggest(name, self.readers)}")
        return self.readers[name], part


def merge_samples(groups: Sequence[tuple[str, Sequence[Sample]]]) -> Samples:
    """As ``merge``, of samples."""
    return Samples(merge([(name, as_samples(samples).tables) for name, samples in groups]))


def read_tables(reader: Reader, split: str) -> Tables:
    """What a reader gives of a split, as columns; several readers are merged as they are."""
    if type(reader) is Joint:
        return merge([(str(number), read_tables(each, split)) for number, each in enumerate(reader.readers, start=1)])
    if type(reader) is Named:
        return read_tables(*reader.part(split))
    if isinstance(reader, SupportsParts):
        parts = [(name, tables_of(samples)) for name, samples in reader.read_in_parts(split)]
        return parts[0][1] if len(parts) == 1 else merge(parts)
    return tables_of(reader.read(split))


def merge(groups: Sequence[tuple[str, Tables]]) -> Tables:
    """One sample a photo, in order of first appearance, of groups that have a name; texts of a kind one after the other.

    Ids of two groups that would be of two things are told apart by the groups' names; what one group has under two ids stays
    two samples. Raises DataError where one group uses an id twice, where two samples of an image disagree about the size that
    their boxes refer to, and where two files that differ are named as one photo.
    """
    if not groups:
        return tables_of([])
    counts = [len(tables) for _, tables in groups]
    images = {
        name: joined([tables.images[name] for _, tables in groups])
        for name in groups[0][1].images
        if not name.startswith(ENDS)
    }
    group = np.repeat(np.arange(len(groups)), counts)
    names = [name for name, _ in groups]
    photos = _whole_photos(images)
    ids = images[ID]
    if (told := _told_apart("an image", ids, names, group, photos)) is not None:
        _keep_photos(images, told)
        images[ID] = told
    slots = _slots(images[ID], ids, group, photos)
    firsts = np.unique(slots, return_index=True)[1] if slots is not None else None
    texts, ends = {}, {}
    for kind in dict.fromkeys(kind for _, tables in groups for kind in tables.texts):
        owners = _owners(kind, [tables for _, tables in groups], counts)
        texts[kind] = _joined_texts(kind, [tables for _, tables in groups], names, group[owners])
        if slots is not None:
            owners = slots[owners]
            order = np.argsort(owners, kind="stable")
            texts[kind] = {name: each.take(order) for name, each in texts[kind].items()}
        many = len(group) if firsts is None else len(firsts)
        ends[ENDS + kind] = Column(pa.array(np.cumsum(np.bincount(owners, minlength=many)).astype(np.int64)))
    if slots is not None and firsts is not None:
        _merge_images(images, slots, firsts)
        images = {name: each.take(firsts) for name, each in images.items()}
    return Tables(images | ends, texts)


def _whole_photos(images: Table) -> NDArray[np.int64]:
    """A number for all images of each row, (N,): the key of its own, or a hash of all keys where it has others."""
    photos = numbers(images[KEY]).copy()
    if (found := images[OTHER_KEYS]).array.null_count < len(photos):
        for row in np.flatnonzero(found.array.is_valid().to_numpy(zero_copy_only=False)):
            keys = np.array([photos[row], *found.values(int(row), 1)[0]], dtype=np.int64)
            photos[row] = int.from_bytes(hashlib.blake2b(keys.tobytes(), digest_size=8).digest(), "little", signed=True)
    return photos


def _told_apart(
    what: str, ids: Column, names: Sequence[str], group: NDArray[np.int64], things: NDArray[np.int64]
) -> Column | None:
    """The ids behind the names of their groups where two things would have one; None where they may stay."""
    if count_distinct(ids) == len(ids):
        return None
    given = ids.values()
    named = apart(what, [names[number] for number in group], given, things.tolist())
    return None if named == given else column(named)


def _keep_photos(images: Table, told: Column) -> None:
    """Where an id becomes another, keep what its collection calls the photo."""
    rows = zip(*(images[name].values() for name in (ID, PHOTO, COLLECTION)), told.values(), strict=True)
    images[PHOTO] = column(
        [
            f"{collection}/{id}" if id != new and photo is ABSENT and collection is not ABSENT else photo
            for id, photo, collection, new in rows
        ]
    )


def _slots(
    ids: Column, first_ids: Column, group: NDArray[np.int64], photos: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Which sample each row belongs to, numbered in order of first appearance; None where no two rows are one.

    A photo that a group has under two ids stays two samples: only rows of its first id join others.
    """
    _, place, counts = np.unique(photos, return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts[place] > 1)
    if not len(several):
        return None
    given, new = first_ids.take(several).values(), ids.take(several).values()
    firsts: dict[tuple[int, int], int | str] = {}
    owners: dict[object, int] = {}
    owner = np.arange(len(photos))
    for row, id, named in zip(several.tolist(), given, new, strict=True):
        photo = int(photos[row])
        is_first = firsts.setdefault((int(group[row]), photo), id) == id
        owner[row] = owners.setdefault(photo if is_first else (photo, named), row)
    return np.unique(owner, return_inverse=True)[1].reshape(-1)


def _owners(kind: str, groups: Sequence[Tables], counts: Sequence[int]) -> NDArray[np.int64]:
    """For each text of a kind the row of its image, over all groups."""
    starts = np.cumsum([0, *counts[:-1]])
    parts = [
        np.repeat(np.arange(len(tables)) + start, np.diff(tables.ends[kind], prepend=0))
        for tables, start in zip(groups, starts, strict=True)
        if kind in tables.texts
    ]
    return np.concatenate(parts)


def _joined_texts(kind: str, groups: Sequence[Tables], names: Sequence[str], group: NDArray[np.int64]) -> Table:
    """The texts of all groups, whose ids are unique; ``group`` is the number of each text's."""
    there = [tables.texts[kind] for tables in groups if kind in tables.texts]
    found = {
        name: joined([table.get(name, len(table[ID])) for table in there])
        for name in dict.fromkeys(name for table in there for name in table)
    }
    told = _told_apart(f"one of the {kind}", found[ID], names, group, np.arange(len(group)))
    return found if told is None else found | {ID: told}


def _merge_images(images: Table, slots: NDArray[np.int64], firsts: NDArray[np.int64]) -> None:
    """Give the first row of each sample the size that it lacks and another has; they must not contradict each other."""
    more = np.setdiff1d(np.arange(len(slots)), firsts)
    rows = np.unique(np.concatenate([firsts[slots[more]], more]))
    sample = dict(zip(rows.tolist(), images_of(images, rows), strict=True))
    sizes = images[SIZE].values()
    for row in more.tolist():
        first = int(firsts[slots[row]])
        sample[first] = _merge(sample[first], sample[row])
        sizes[first] = sample[first].size or ABSENT
    images[SIZE] = column(sizes)


def _merge(first: Sample, second: Sample) -> Sample:
    if first.size and second.size and first.size != second.size:
        raise DataError(
            f"image {first.image_id} is {first.size[0]} x {first.size[1]} pixels in one annotation file and "
            f"{second.size[0]} x {second.size[1]} in another ({first.image}); correct its size in one of them"
        )
    require_one_photo(first, second)
    return first if first.size else replace(first, size=second.size)


def require_one_photo(first: Sample, second: Sample) -> None:
    """Raise DataError where two samples show one photo by their files' names alone, and those files differ."""
    if any(each.collection is not None or each.photo is not None for each in (first, second)):
        return
    shown = {image_key(second, place): path for place, path in enumerate((second.image, *second.others))}
    for place, one in enumerate((first.image, *first.others)):
        other = shown.get(image_key(first, place), one)
        if other != one and has_pixels(one) and has_pixels(other) and _head(one) != _head(other):
            raise DataError(
                f"{one} and {other} have names of one photo, but are not one file; where they are two photos, give one of "
                "their readers a name of its own (reader.collection=mine), where they are one, both the same name"
            )


def _head(path: Path) -> tuple[int, bytes]:
    """The size of a file and its first bytes; of none, nothing."""
    if not path.is_file():
        return 0, b""
    with path.open("rb") as file:
        return path.stat().st_size, file.read(HEAD)
