"""An index of one's own images on disk: vectors that are mapped into memory, and a table of what each one is of.

A folder holds ``index.json``, which names the files that belong together and their hashes: ``features-*.npy`` (N, E) float32,
and ``table-*.arrow`` with a row an image: ``image``, its path in the folder of images, and ``content``, a hash of its bytes.
Whoever kills a writer finds the index of before; ``parts`` has what was embedded by then.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fusionkit.data.tables.table import digest_of
from fusionkit.errors import ConfigError, DataError
from fusionkit.files.atomic import atomic_write, write_text
from fusionkit.files.names import is_file_name, is_inside
from fusionkit.files.plain import reason_of

ABOUT, PARTS, FORMAT = "index.json", ".fusionkit-parts", 1
OURS = re.compile(r"(features|table)-[0-9a-f]{12}\.(npy|arrow)")
ADVICE = "make room, or name another folder as index=DIR"
CONTENT = 16  # bytes of a hash
ROWS = 8192  # written at a time
CHUNK = 2**22  # bytes read at a time
SCHEMA = pa.schema([("image", pa.binary()), ("content", pa.binary(CONTENT))])


@dataclass(frozen=True)
class Maker:
    """What vectors are a function of: weights, how images are read, and the precision; ``checkpoint`` is what it is called."""

    checkpoint: str
    weights: str
    reading: str
    precision: str

    def require_same(self, other: "Maker", folder: Path) -> None:
        """Raise ConfigError unless the vectors in a folder, which ``other`` made, are this one's."""
        names = {"weights": "weights", "reading": "ways to read images", "precision": "precision"}
        differ = [told for name, told in names.items() if getattr(self, name) != getattr(other, name)]
        if differ:
            raise ConfigError(
                f"index={folder} was made by {other.checkpoint}, whose {' and '.join(differ)} are others than those of "
                f"{self.checkpoint}; search it with that checkpoint, or name another folder as index=DIR"
            )


@dataclass(frozen=True)
class Row:
    """An image of an index."""

    image: str  # its path in the folder of images
    content: bytes  # the hash of its bytes


class ImageIndex:
    """The vectors (N, E) of a folder's images, read from the disk as they are asked for.

    Raises DataError for an index that is not there, half made or damaged, and ConfigError for one that another ``maker`` made.
    One that an update replaces meanwhile is read again.
    """

    def __init__(self, folder: Path, maker: Maker, width: int) -> None:
        seen = list[dict[str, Any]]()
        while (about := _read_about(folder)) not in seen:
            seen.append(about)
            try:
                self._open(about, folder, maker, width)
            except DataError as error:
                fault = error
            else:
                return
        raise fault

    def _open(self, about: dict[str, Any], folder: Path, maker: Maker, width: int) -> None:
        self.folder, self.images = folder, Path(about["images"])
        maker.require_same(Maker(**about["maker"]), folder)
        for file in (about["features"], about["table"]):
            try:
                is_whole = digest_of(folder / file["name"]) == file["digest"]
            except OSError as error:
                raise damaged(folder, f"{file['name']}: {error.strerror}") from error
            if not is_whole:
                raise damaged(folder, f"the bytes of {file['name']} are not those that were written")
        try:
            self.features = _mapped(folder / about["features"]["name"])
            self.table = pa.ipc.open_file(pa.memory_map(str(folder / about["table"]["name"]))).read_all()
            self.table.validate(full=True)
        except Exception as error:  # numpy's and Arrow's readers raise nearly anything
            raise damaged(folder, reason_of(error)) from error
        is_whole = self.table.schema == SCHEMA and not any(column.null_count for column in self.table.columns)
        if self.features.shape != (len(self.table), width) or not is_whole:
            raise damaged(folder, "its files do not belong together")
        if not all(is_inside(self.images, os.fsdecode(name)) for name in self.table["image"].to_pylist()):
            raise damaged(folder, "a name in it leads out of the folder of images")
        if not all(np.isfinite(self.features[start : start + ROWS]).all() for start in range(0, len(self), ROWS)):
            raise damaged(folder, "it holds numbers that are not finite")

    def __len__(self) -> int:
        return len(self.features)

    def name(self, row: int) -> str:
        """The path of an image in the folder of images."""
        return os.fsdecode(self.table["image"][row].as_py())

    def path(self, row: int) -> Path:
        """The file of an image."""
        return self.images / self.name(row)

    def contents(self) -> list[bytes]:
        """The hash of each image's bytes."""
        found: list[bytes] = self.table["content"].to_pylist()
        return found

    def rows(self) -> list[Row]:
        """What each vector is of."""
        columns = (self.table[name].to_pylist() for name in SCHEMA.names)
        return [Row(os.fsdecode(image), content) for image, content in zip(*columns, strict=True)]


def content_of(path: Path) -> bytes:
    """The hash of a file's bytes."""
    digest = hashlib.blake2b(digest_size=CONTENT)
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            digest.update(part)
    return digest.digest()


def is_index(folder: Path) -> bool:
    """Whether there is an index, whole or not."""
    return (folder / ABOUT).is_file()


def write_index(
    folder: Path, images: Path, maker: Maker, rows: list[Row], width: int, vectors: Iterator[NDArray[np.float32]]
) -> None:
    """Put an index in the place of the one before; ``vectors`` (R, E) come in the order of the rows, some at a time."""
    name = secrets.token_hex(6)
    features, table = folder / f"features-{name}.npy", folder / f"table-{name}.arrow"
    with atomic_write(features, advice=ADVICE) as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (len(rows), width)}
        )
        for part in vectors:
            file.write(np.ascontiguousarray(part, dtype="<f4").tobytes())
    columns = [[os.fsencode(row.image) for row in rows], [row.content for row in rows]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    with atomic_write(table, advice=ADVICE) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
    files = {
        key: {"name": path.name, "digest": digest_of(path)} for key, path in (("features", features), ("table", table))
    }
    about = {"fusionkit index": FORMAT, "images": os.path.abspath(images), "maker": asdict(maker)}
    write_text(folder / ABOUT, json.dumps(about | files, indent=1) + "\n")
    for old in (*folder.glob("features-*.npy"), *folder.glob("table-*.arrow")):
        if old not in (features, table) and OURS.fullmatch(old.name):
            old.unlink(missing_ok=True)


def damaged(folder: Path, fault: str) -> DataError:
    """The sentence for an index that cannot be read."""
    return DataError(f"index={folder} is damaged ({fault}); remove it, and make it anew with images=FOLDER")


def _read_about(folder: Path) -> dict[str, Any]:
    """``index.json``, of which all that is read is of the type that it has to be."""
    path = folder / ABOUT
    if not path.is_file():
        if (folder / PARTS).is_dir():
            raise DataError(f"index={folder} is half made; the same command with images=FOLDER goes on with it")
        what = "holds no index" if folder.is_dir() else "is no folder" if folder.exists() else "does not exist"
        raise DataError(f"index={folder} {what}; make one there with images=FOLDER, a folder of pictures")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about, dict) or "fusionkit index" not in about:
            raise DataError(f"{path} is a file of something else; name another folder as index=DIR")
        if about["fusionkit index"] != FORMAT:
            raise DataError(f"{path} is of another version of fusionkit; make the index anew in another folder")
        said = [about["images"], *(about["maker"][name] for name in Maker.__dataclass_fields__)]
        files: list[Mapping[str, Any]] = [about["features"], about["table"]]
        said += [file["digest"] for file in files]
        is_right = all(isinstance(each, str) for each in said) and os.path.isabs(about["images"])
        if is_right and all(is_file_name(file["name"]) for file in files):
            about["maker"] = {name: about["maker"][name] for name in Maker.__dataclass_fields__}
            return dict(about)
        fault = f"{ABOUT} does not say what an index is made of"
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        fault = f"{ABOUT} is not what was written"
    raise damaged(folder, fault)


def _mapped(path: Path) -> NDArray[np.float32]:
    """The array of a file. ValueError where it is none of float32."""
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(found, np.ndarray) or found.dtype != np.float32:
        raise ValueError(f"{path.name} holds other numbers")
    return found
