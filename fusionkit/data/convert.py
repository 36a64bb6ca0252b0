"""Published region features into a folder of npz files, one an image, as ``fusionkit.data.regions`` reads them."""

import base64
import binascii
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusionkit.data.stores import is_lmdb, lmdb_keys, stored_bytes
from fusionkit.errors import ConfigError, DataError
from fusionkit.files.atomic import atomic_write
from fusionkit.files.names import is_file_name
from fusionkit.files.plain import other_kind

# the columns of a line, by their number: bottom-up attention's own, and LXMERT's
COLUMNS = {
    6: ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    10: (
        *("image_id", "image_h", "image_w", "objects_id", "conf", "attrs_id", "attrs_conf"),
        *("num_boxes", "boxes", "features"),
    ),
}
LAYOUT = "a tsv of bottom-up attention"


def convert_bottom_up(tsv: str, root: str, name: str = "%012d", limit: int | None = None) -> int:
    """A tsv of bottom-up attention (one image a line; boxes and features in base64) -> ROOT/<name>.npz; gives their number.

    ``name``   of an image's file, "%s" or the like being its id; COCO's own by default.
    ``limit``  only so many images.
    """
    path, folder = _existing(tsv), Path(root)
    if told := other_kind(path, LAYOUT):
        raise DataError(told)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for row in _rows(path):
        if limit is not None and count == limit:
            break
        _save(folder, name, row, path)
        count += 1
    if not count:
        raise DataError(f"{path} is empty; give {LAYOUT}")
    return count


def convert_uniter(lmdb: str, root: str) -> int:
    """UNITER's lmdb of region features -> ROOT/<its key>, whose values are npz files already; gives their number."""
    store, folder = Path(lmdb), Path(root)
    if not is_lmdb(store):
        below = sorted(str(found.parent) for found in store.glob("*/data.mdb"))
        hint = f"; did you mean {below[0]}?" if below else "; give a folder with data.mdb"
        raise ConfigError(f"lmdb={lmdb} is no lmdb{hint}")
    folder.mkdir(parents=True, exist_ok=True)
    names = lmdb_keys(store)
    for name in names:
        with atomic_write((folder / Path(name).name).with_suffix(".npz")) as file:
            file.write(stored_bytes(store / name))
    return len(names)


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise DataError(f"tsv={path}: no such file; give a tsv of bottom-up attention")
    return Path(path)


def _rows(path: Path) -> Iterator[Mapping[str, str]]:
    csv.field_size_limit(2**31 - 1)  # the features of an image are one field
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:  # what is none of base64 is told below
        for number, values in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            if len(values) not in COLUMNS:
                wanted = " or ".join(map(str, COLUMNS))
                raise DataError(f"line {number} of {path} has {len(values)} columns, where {LAYOUT} has {wanted}")
            yield dict(zip(COLUMNS[len(values)], values, strict=True))


def _save(folder: Path, name: str, row: Mapping[str, str], path: Path) -> None:
    count, *size = (_whole(row, column, path) for column in ("num_boxes", "image_w", "image_h"))
    boxes = _array(row, "boxes", count, path, 4) / np.array(size * 2, dtype=np.float32)
    arrays: dict[str, Any] = {
        "features": _array(row, "features", count, path).astype(np.float16),
        "norm_bb": np.concatenate([boxes, boxes[:, 2:] - boxes[:, :2]], axis=1),
        "size": np.array(size),
    }
    if "conf" in row:
        arrays["conf"] = _array(row, "conf", count, path, 1)[:, 0]
    place = folder / f"{_file_name(name, row['image_id'], path)}.npz"
    if "\0" in str(place) or not place.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"the image id {row['image_id']!r} in {path} is no name of a file below {folder}")
    with atomic_write(place) as file:
        np.savez(file, **arrays)


def _whole(row: Mapping[str, str], column: str, path: Path) -> int:
    value = row[column]
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value)):
        raise DataError(
            f"the {column} of image {row['image_id']} in {path} is '{value[:20]}', but has to be a number from 1 up"
        )
    return int(value)


def _array(row: Mapping[str, str], column: str, count: int, path: Path, width: int = -1) -> np.ndarray[Any, Any]:
    try:
        return np.frombuffer(base64.b64decode(row[column]), dtype=np.float32).reshape(count, width)
    except (ValueError, binascii.Error) as error:
        raise DataError(
            f"the {column} of image {row['image_id']} in {path} are no {count} rows of numbers ({error})"
        ) from error


def _file_name(name: str, image_id: str, path: Path) -> str:
    try:
        named = name % (int(image_id) if image_id.isdigit() else image_id)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"name={name} cannot hold the image id '{image_id}' ({error}); try name=%s") from error
    if not is_file_name(named):
        raise DataError(
            f"the image id {image_id!a} in {path} is no part of a plain file name, and could lie outside of root; mend the ids"
        )
    return named
