"""A split as columns: one table of its images, one of the texts of each kind; in memory, or files that are mapped into it."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from xxhash import xxh3_128

from fusionkit.data.images import image_key
from fusionkit.data.sample import Sample, Text
from fusionkit.data.tables.column import ABSENT, JSON, Column, column
from fusionkit.files.unicode import BadText

Table = dict[str, Column]
IMAGES = "images"
ID, TEXT, FACT = "id", "text", "fact "  # columns of texts; a fact's name stands behind its mark
KEY, PATH, SIZE, COLLECTION, PHOTO, UPRIGHT, OTHERS, OTHER_KEYS = (
    *("key", "path", "size", "collection", "photo", "upright"),
    *("others", "other keys"),
)
ENDS = "ends "  # before a kind: where the texts of each image end
HOW = b"how"


@dataclass
class Tables:
    """The columns of a split. The texts of an image stand together, in the order of the images."""

    images: Table
    texts: dict[str, Table]
    folder: Path | None = None  # whose files they are mapped from
    ends: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ends = {kind: numbers(self.images[ENDS + kind]) for kind in self.texts}

    def __len__(self) -> int:
        return len(self.images[ID])

    def __reduce__(self) -> Any:
        """To another process as its files, which that one maps itself."""
        if self.folder is None:
            return Tables, (self.images, self.texts)
        return _mapped_tables, (self.folder, list(self.texts))

    def starts(self, kind: str) -> NDArray[np.int64]:
        """Where the texts of each image begin."""
        return np.concatenate([[0], self.ends[kind][:-1]])

    def fact_names(self, kind: str) -> list[str]:
        """The facts that texts of a kind have."""
        return [name.removeprefix(FACT) for name in self.texts[kind] if name.startswith(FACT)]

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(each.array.nbytes for table in (self.images, *self.texts.values()) for each in table.values())


def numbers(found: Column) -> NDArray[Any]:
    """A column of numbers without nulls as an array, not copied."""
    array: NDArray[Any] = found.array.to_numpy(zero_copy_only=True)
    return array


def tables_of(samples: Iterable[Sample]) -> Tables:
    """The columns of some samples. Raises BadText for a fact that no column can hold."""
    samples = samples if isinstance(samples, list) else list(samples)
    kinds = dict.fromkeys(kind for sample in samples for kind in sample.texts)
    others = [sample.others for sample in samples]
    images = {
        ID: column([sample.image_id for sample in samples]),
        KEY: Column(pa.array([image_key(sample) for sample in samples], pa.int64())),
        PATH: column([os.fsencode(sample.image) for sample in samples]),
        SIZE: column([ABSENT if sample.size is None else tuple(sample.size) for sample in samples]),
        COLLECTION: column(_optional([sample.collection for sample in samples])),
        PHOTO: column(_optional([sample.photo for sample in samples])),
        UPRIGHT: column([sample.upright or ABSENT for sample in samples]),
        OTHERS: column([tuple(map(os.fsencode, paths)) if paths else ABSENT for paths in others]),
        OTHER_KEYS: column(
            [
                tuple(image_key(sample, place) for place in range(1, len(paths) + 1)) if paths else ABSENT
                for sample, paths in zip(samples, others, strict=True)
            ]
        ),
    }
    texts = {}
    for kind in kinds:
        counts = [len(sample.texts.get(kind, ())) for sample in samples]
        images[ENDS + kind] = Column(pa.array(list(accumulate(counts)), pa.int64()))
        texts[kind] = _table_of_texts([text for sample in samples for text in sample.texts.get(kind, ())])
    return Tables(images, texts)


def _optional(values: Sequence[Any]) -> list[Any]:
    return [ABSENT if value is None else value for value in values]


def sizes_of(tables: Tables) -> NDArray[np.float64]:
    """The images' sizes (N, 2), infinite where they are not known."""
    found = tables.images[SIZE]
    known = np.asarray(found.array.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
    sizes = np.full((len(tables), 2), np.inf)
    if known.any():
        there = found.array.drop_null().flatten().to_numpy() if found.how != JSON else _present(found)
        sizes[known] = np.asarray(there, dtype=float).reshape(-1, 2)
    return sizes


def _present(found: Column) -> list[Any]:
    return [value for value in found.values() if value is not ABSENT]


def _table_of_texts(texts: Sequence[Text]) -> Table:
    table = {ID: column([text.id for text in texts]), TEXT: column([text.text for text in texts])}
    facts = [text.facts for text in texts]
    for name in dict.fromkeys(chain.from_iterable(facts)):
        values = [each.get(name, ABSENT) for each in facts]
        try:
            table[FACT + str(name)] = column(values)
        except BadText as error:
            raise BadText(f"{_first_bad(texts, name)}, '{name}': {error}") from None
    return table


def _first_bad(texts: Sequence[Text], name: str) -> str:
    for text in texts:
        try:
            column([text.facts.get(name, ABSENT)])
        except BadText:
            return f"text {text.id}"
    return "a text"


def samples_of(tables: Tables, start: int, count: int) -> Iterator[Sample]:
    """The samples of some rows that stand together."""
    kinds = {kind: _texts_of(tables, kind, start, count) for kind in tables.texts}
    texts = ({kind: found[row] for kind, found in kinds.items() if found[row]} for row in range(count))
    return _samples(tables.images, texts, start, count)


def images_of(images: Table, rows: NDArray[np.int64]) -> Iterator[Sample]:
    """The samples of rows by their numbers, without their texts."""
    taken = {name: found.take(rows) for name, found in images.items()}
    return _samples(taken, ({} for _ in rows), 0, len(rows))


def _samples(
    images: Table, texts: Iterable[Mapping[str, tuple[Text, ...]]], start: int, count: int
) -> Iterator[Sample]:
    names = (ID, PATH, SIZE, COLLECTION, OTHERS, PHOTO, UPRIGHT)
    columns = [images[name].values(start, count) for name in names]
    for said, row in zip(texts, zip(*columns, strict=True), strict=True):
        plain: list[Any] = [None if value is ABSENT else value for value in row]
        id, path, size, collection, others, photo, upright = plain
        more = tuple(Path(os.fsdecode(path)) for path in others or ())
        yield Sample(id, Path(os.fsdecode(path)), said, size, collection, more, photo, bool(upright))


def _texts_of(tables: Tables, kind: str, start: int, count: int) -> list[tuple[Text, ...]]:
    """The texts of some images that stand together, by image."""
    ends = tables.ends[kind][start : start + count].tolist()
    first = int(tables.ends[kind][start - 1]) if start else 0
    texts = texts_in(tables.texts[kind], first, ends[-1] - first) if ends else []
    edges = [0, *(end - first for end in ends)]
    return [tuple(texts[edges[row] : edges[row + 1]]) for row in range(count)]


def texts_in(table: Table, start: int, count: int) -> list[Text]:
    """Some texts that stand together."""
    ids, said = table[ID].values(start, count), table[TEXT].values(start, count)
    names = [name for name in table if name.startswith(FACT)]
    if not names:
        return [Text(id, text) for id, text in zip(ids, said, strict=True)]
    columns = [table[name].values(start, count) for name in names]
    plain = [name.removeprefix(FACT) for name in names]
    facts: list[Mapping[str, Any]] = [
        {name: value for name, value in zip(plain, row, strict=True) if value is not ABSENT}
        for row in zip(*columns, strict=True)
    ]
    return [Text(*row) for row in zip(ids, said, facts, strict=True)]


def write_tables(tables: Tables, folder: Path) -> dict[str, dict[str, Any]]:
    """Write each table as an Arrow file of one batch; gives, by file name, what it is, its size and the hash of its bytes."""
    written = {}
    for number, (kind, table) in enumerate([(None, tables.images), *tables.texts.items()]):
        name = f"{number}.arrow"
        fields = [pa.field(key, each.array.type, metadata={HOW: each.how}) for key, each in table.items()]
        batch = pa.record_batch([each.array for each in table.values()], schema=pa.schema(fields))
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        written[name] = {"kind": kind, "size": (folder / name).stat().st_size, "digest": digest_of(folder / name)}
    return written


def open_tables(folder: Path, written: Mapping[str, Mapping[str, Any]]) -> Tables:
    """Map what ``write_tables`` wrote into memory; ValueError or OSError where the files are not those."""
    found: dict[str | None, Table] = {}
    for name, said in written.items():
        path = folder / name
        if path.stat().st_size != said["size"] or digest_of(path) != said["digest"]:
            raise ValueError(f"{path} is damaged")
        found[said["kind"]] = _mapped(path)
    return Tables(found.pop(None), {str(kind): table for kind, table in found.items()}, folder)


def _mapped_tables(folder: Path, kinds: Sequence[str]) -> Tables:
    """As ``open_tables``, of files that this process's parent has looked at."""
    images, *texts = (_mapped(folder / f"{number}.arrow") for number in range(1 + len(kinds)))
    return Tables(images, dict(zip(kinds, texts, strict=True)), folder)


def _mapped(path: Path) -> Table:
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    batch = reader.get_batch(0)
    hows = [(each.metadata or {}).get(HOW, b"").decode() for each in batch.schema]
    return {each.name: Column(array, how) for each, array, how in zip(batch.schema, batch.columns, hows, strict=True)}


def digest_of(path: Path) -> str:
    """The hash of a file's bytes."""
    digest = xxh3_128()
    with path.open("rb") as file:
        while part := file.read(2**22):
            digest.update(part)
    return digest.hexdigest()
