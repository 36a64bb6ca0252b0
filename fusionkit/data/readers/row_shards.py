"""Shards as tables: a row is a sample, with a column for each of its pictures, its texts and the keys of its json."""

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import compute

from fusionkit.data.readers.rows import BATCH, RowFile, Stored
from fusionkit.data.readers.shard_index import index_of
from fusionkit.data.stores import state_of, tar_member
from fusionkit.errors import ConfigError, DataError
from fusionkit.files.depends import FOLDER, STORE, note

ENDING = ".tar"
PACKED = re.compile(r"\.(tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|lz4|lzma|z))$", re.IGNORECASE)
BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?")
LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])")
MOST = 1_000_000  # names that braces stand for


@dataclass(frozen=True)
class Shard(RowFile):
    """One shard; what is wrong with it is told as a warning, and the rest is read.

    Of ``pictures``, the columns of all shards' pictures, what a json says is not read: a picture that could not be downloaded
    is missing.
    """

    pictures: frozenset[str] = frozenset()

    def rows(self, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        return (row for _, row in self.rows_where(columns))

    def rows_where(
        self,
        columns: Iterable[str] | None = None,
        is_kept: Callable[[bytes | None], bool] = lambda digest: True,
        by: Sequence[str] = (),
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows of the samples whose picture, the first of the columns ``by``, has a hash that is kept (None: there is none).

        With their numbers.
        """
        note(self.path, STORE)
        state = state_of(self.path.stat())
        table, faults = index_of(self.path)
        for fault in faults:
            warnings.warn(fault, stacklevel=1)
        wanted = None if columns is None else list(columns)
        first = 0
        for batch in table.to_batches(BATCH):
            kept = [is_kept(digest) for digest in _digests(batch.column("pictures"), by)]
            numbers = [at for at, is_in in enumerate(kept, first) if is_in]
            first += len(kept)
            there = batch.filter(pyarrow.array(kept)).select(["key", "pictures", "said"])
            for place, key, pictures, said in zip(numbers, *(each.to_pylist() for each in there.columns), strict=True):
                row = {name: value for name, value in json.loads(said).items() if name not in self.pictures}
                for each in pictures:
                    name = f"{key}.{each['ending']}"
                    row[each["column"]] = Stored(
                        tar_member(self.path, name, each["start"], each["size"], state), name, each["digest"]
                    )
                yield place, row if wanted is None else {name: row.get(name) for name in wanted}


def is_shard(path: Path) -> bool:
    """Whether a file's name is that of a tar, compressed or not; hidden ones are those that are still being copied."""
    return not path.name.startswith(".") and (path.suffix.lower() == ENDING or PACKED.search(path.name) is not None)


def _digests(pictures: Any, by: Sequence[str]) -> list[bytes | None]:
    """Of each row the hash of the first of its pictures in the columns ``by``."""
    found: list[bytes | None] = [None] * len(pictures)
    parents, flat = pictures.value_parent_indices(), pictures.flatten()
    for name in reversed(by):
        is_it = compute.equal(flat.field("column"), name)
        rows, digests = (each.filter(is_it).to_pylist() for each in (parents, flat.field("digest")))
        for row, digest in zip(rows, digests, strict=True):
            found[row] = digest
    return found


def open_shards(paths: Sequence[Path]) -> list[Shard]:
    """Those shards that can be read, each with the columns of all; others are told as warnings.

    DataError where none can be read.
    """
    there: list[Path] = []
    columns: dict[str, None] = {}
    pictures: dict[str, None] = {}
    faults: list[DataError] = []
    for path in paths:
        note(path.parent, FOLDER)
        try:
            if not path.is_file():
                raise DataError(f"the shard {path} is missing; complete the download")
            note(path, STORE)
            about = index_of(path)[0].schema.metadata
            columns |= dict.fromkeys(json.loads(about[b"columns"]))
            pictures |= dict.fromkeys(json.loads(about[b"pictures"]))
        except DataError as error:
            faults.append(error)
        else:
            there.append(path)
    if not there:
        raise faults[0]
    for fault in faults:
        warnings.warn(
            f"{fault}: it is left out, and {len(there):,} others are read", stacklevel=1
        )  # one place, so that each is told once
    return [Shard(path, tuple(columns), pictures=frozenset(pictures)) for path in there]


def unbraced(pattern: str) -> list[str]:
    """The names that a pattern stands for, as a shell has it: ``{000..009}.tar``, ``{a,b}.tar``, ``{a..c}.tar``.

    ConfigError for too many.
    """
    names = list(islice(_unbraced(pattern), MOST + 1))
    if len(names) > MOST:
        raise ConfigError(f"{pattern} stands for more than {MOST:,} files; name fewer")
    return names


def _unbraced(pattern: str) -> Iterator[str]:
    found = BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    words: Iterable[str]
    numbers, letters = RANGE.fullmatch(found[1]), LETTERS.fullmatch(found[1])
    if letters is not None:
        first, last = ord(letters[1]), ord(letters[2])
        words = map(chr, range(first, last + 1) if first <= last else range(first, last - 1, -1))
    elif numbers is None:
        words = found[1].split(",")
    else:
        first, last = int(numbers[1]), int(numbers[2])
        step = int(numbers[3] or 1) or 1
        places = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
        has_zeros = any(len(text) > 1 and text[0] == "0" for text in numbers.groups()[:2])
        width = max(map(len, numbers.groups()[:2])) if has_zeros else 0
        words = (f"{number:0{width}}" for number in places)
    before, behind = pattern[: found.start()], pattern[found.end() :]
    for word in words:
        yield from _unbraced(before + word + behind)
