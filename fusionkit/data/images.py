"""Image files: where they are, what identifies them, and their pixels."""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from posixpath import normpath
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from fusionkit.data.depths import as_rgb
from fusionkit.data.identity import coco_number, photo_of
from fusionkit.data.sample import Sample
from fusionkit.data.stores import ChangedError, is_lmdb, lmdb_keys, stored_bytes
from fusionkit.errors import DataError
from fusionkit.files.depends import FOLDER, STORE, note
from fusionkit.files.names import is_inside

ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp")
ORIENTATION = "orientation"


_missing_may_be: ContextVar[bool] = ContextVar("_missing_may_be", default=False)


@contextmanager
def missing_images() -> Iterator[None]:
    """``find_images`` within gives an image that is not there the path where it would be, and raises no error for it."""
    token = _missing_may_be.set(True)
    try:
        yield
    finally:
        _missing_may_be.reset(token)


class CorruptImage(Exception):
    """An image file that cannot be decoded; the data set decides whether it is skipped or told to the user."""


class Decoded(NamedTuple):
    """An RGB image, perhaps smaller than its file, or what a detector found in it."""

    image: Any  # a PIL image, whose `info` has the EXIF orientation (ORIENTATION), or regions.Found
    size: tuple[int, int]  # width and height of the file itself


def image_key(sample: Sample, place: int = 0) -> int:
    """A 64-bit number that is equal where two samples show the same image, in every process and every run.

    Of the sample's own image, or from a `place` of 1 on of its others.
    """
    own, suffix = (sample.image, "") if place == 0 else (sample.others[place - 1], f"/{place}")
    name = sample.photo if sample.photo is not None and place == 0 else None
    name = name or photo_of(sample.collection, f"{sample.image_id}{suffix}", own)
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def photo_keys(sample: Sample) -> tuple[int, ...]:
    """The keys of all images of a sample."""
    return tuple(image_key(sample, place) for place in range(1 + len(sample.others)))


def image_places(image_id: int | str, file_name: str = "", subtype: str = "") -> list[str]:
    """Where an image may lie below its folder, likeliest first: where `file_name` says, and only there.

    A photo that is COCO's by its file's name, or by its id where none is given, has any of COCO's names, and may lie in the
    folder of its part. `subtype` is COCO's own word, e.g. "train2014"; `COCO_val2014_000000000042.jpg` knows better. VQA's
    "test-dev2015" questions are about images of test2015. An id that is a text is a file's name, perhaps without its ending.
    """
    name = normpath(file_name) if file_name else str(image_id)
    number = coco_number(name)
    if number is None and not file_name and str(image_id).isdecimal():
        number = int(image_id)
    places = [name] if file_name else [name + ending for ending in ENDINGS if isinstance(image_id, str)]
    if number is None:
        return places
    said = re.match(r"COCO_([a-z]+\d{4})_", Path(name).name)
    part = said.group(1) if said else subtype.replace("-dev", "")
    return places + [_coco_key(number)] + ([f"{part}/{_coco_key(number)}"] if part else [])


def _coco_key(number: int) -> str:
    """What a listing calls a file that has any of COCO's names of a photo."""
    return f"{number:012d}.jpg"


def folder_of(template: str | None, split: str) -> Path | None:
    """The image folder of a split: `{split}`, if any, is filled in."""
    return None if template is None else Path(str(template).replace("{split}", split))


def find_images(folder: Path | None, wanted: Mapping[int | str, list[str]], annotations: Path) -> dict[int | str, Path]:
    """The file of each image, by image id; `wanted` gives the names to try, relative to `folder`.

    Without a folder none is looked for, and the paths are empty: scoring needs the annotations alone.
    Where a folder, or an lmdb in its place, has region features, an npz file of the same name, in small letters or not, is
    the image's.

    Raises DataError with the number of images that are missing and the first of them, but within ``missing_images``.
    """
    if folder is None:
        return dict.fromkeys(wanted, Path())
    found = there_images(folder, wanted, annotations)
    if len(found) < len(wanted):
        if _missing_may_be.get():  # in the order that was asked for
            return {image_id: found.get(image_id, folder / names[0]) for image_id, names in wanted.items()}
        missing = next(names for image_id, names in wanted.items() if image_id not in found)
        raise DataError(
            f"{len(wanted) - len(found)} of {len(wanted)} images of {annotations} are not under {folder}; "
            f"first missing: {missing[0]}; complete the download, point the reader's 'images' at their folder, or set "
            "data.missing=skip to leave them out"
        )
    return found


def there_images(folder: Path, wanted: Mapping[int | str, list[str]], annotations: Path) -> dict[int | str, Path]:
    """As ``find_images``, but only of those images that are there."""
    if not folder.is_dir():
        raise DataError(
            f"the image folder {folder} of {annotations} does not exist; check data.root and the reader's 'images'"
        )
    listed: dict[str, tuple[Path, dict[str, str]]] = {}  # one listing a folder, not one look a file
    found: dict[int | str, Path] = {}
    for image_id, names in wanted.items():
        for name in names:
            if not is_inside(folder, name):
                raise DataError(
                    f"{annotations} says that the image {image_id!a} is {name!a}, which lies outside of its folder {folder}; "
                    "name it below that folder, or point the reader's 'images' at one that holds all ('/' does)"
                )
            below, _, base = name.rpartition("/")
            if below not in listed:
                listed[below] = folder / below, _list(folder / below)
            place, there = listed[below]
            file = there.get(base)
            if file is None:
                stem = Path(base).stem
                file = there.get(f"{stem}.npz") or there.get(stem.lower())
            if file is not None:
                found[image_id] = place / file
                break
    return found


def _list(folder: Path) -> dict[str, str]:
    """The files of a folder by name; COCO's also by their key, those of regions by their name in small letters."""
    note(folder / "data.mdb", STORE) if is_lmdb(folder) else note(folder, FOLDER)
    try:
        names = lmdb_keys(folder) if is_lmdb(folder) else os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    listed = {name: name for name in names}
    for name in names:
        if (number := coco_number(name)) is not None:
            listed.setdefault(_coco_key(number), name)
        if not has_pixels(name):
            listed.setdefault(Path(name).stem.lower(), name)
    return listed


def has_pixels(path: str | Path) -> bool:
    """Whether a file has an image's pixels, and not region features in their place."""
    return not str(path).endswith(".npz")


def decode(path: Path | Image.Image | Decoded, min_side: int) -> Decoded:
    """The image of a file, or one in memory, as RGB.

    A JPEG file may come at 1/2, 1/4 or 1/8 of its size where no side falls below `min_side` pixels. Its pixels are as the
    file stores them, as in the published pipelines; `frames.framed` turns them. Of several pictures in a file it is the first.
    What is decoded already stays as it is.
    """
    if isinstance(path, Decoded):
        return path
    try:
        if isinstance(path, Image.Image):
            return _decoded(path, path.size)
        with Image.open(io.BytesIO(stored_bytes(path))) as file:  # one read, where PIL alone makes dozens
            return decode_opened(file, min_side)
    except ChangedError:
        raise
    except Exception as error:  # decoders raise nearly anything
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
        name = "the image" if isinstance(path, Image.Image) else path
        raise CorruptImage(f"{name} cannot be decoded ({reason})") from error


def decode_opened(file: Image.Image, min_side: int) -> Decoded:
    """As ``decode``, of a file that PIL has opened; raises whatever its decoder raises."""
    size = file.size
    file.draft("RGB", (min_side, min_side))
    return _decoded(file, size)


def _decoded(found: Image.Image, size: tuple[int, int]) -> Decoded:
    image = as_rgb(found)
    image.info = {ORIENTATION: _orientation(found)}
    return Decoded(image, size)


def _orientation(file: Image.Image) -> int:
    """EXIF's, 1 to 8; 1, as it is, where there is none that can be read."""
    try:
        value: Any = file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged block beside a whole picture
        return 1
    return value if value in range(1, 9) else 1


class ImageFiles:
    """Images decoded anew each time they are asked for."""

    def __init__(self, paths: Iterable[Path | Image.Image | Decoded], min_side: int) -> None:
        self.paths = paths if isinstance(paths, Sequence) else list(paths)
        self.min_side = min_side

    def load(self, index: int) -> Decoded:
        """Raises CorruptImage."""
        return decode(self.paths[index], self.min_side)


class CachedImages:
    """Small images, decoded and resized to a square once, and held in memory (side * side * 3 bytes each).

    Filled when it is made, so that worker processes share it instead of each filling its own.
    """

    def __init__(self, paths: Iterable[Path], side: int) -> None:
        self.paths = list(paths)
        self.pixels = np.zeros((len(self.paths), side, side, 3), dtype=np.uint8)
        self.known: list[tuple[tuple[int, int], dict[Any, Any]]] = []  # the size and info of each
        self.corrupt: dict[int, str] = {}
        for index, path in enumerate(self.paths):
            try:
                image, size = decode(path, side)
            except CorruptImage as error:
                self.corrupt[index] = str(error)
                self.known.append(((side, side), {}))
            else:
                self.pixels[index] = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
                self.known.append((size, image.info))

    def load(self, index: int) -> Decoded:
        """Raises CorruptImage."""
        if index in self.corrupt:
            raise CorruptImage(self.corrupt[index])
        image, (size, info) = Image.fromarray(self.pixels[index]), self.known[index]
        image.info = info
        return Decoded(image, size)
