"""Image files: where they are, what identifies them, and their pixels."""

import hashlib
import io
import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from fusionkit.data.sample import Sample
from fusionkit.data.stores import is_lmdb, lmdb_keys
from fusionkit.errors import DataError


class CorruptImage(Exception):
    """An image file that cannot be decoded; the data set decides whether it is skipped or told to the user."""


class Decoded(NamedTuple):
    """An RGB image, perhaps smaller than its file, or what a detector found in it."""

    image: Any  # a PIL image, or regions.Found
    size: tuple[int, int]  # width and height of the file itself


def image_key(sample: Sample, place: int = 0) -> int:
    """A 64-bit number that is equal where two samples show the same image, in every process and every run.

    Of the sample's own image, or from a `place` of 1 on of its others.
    """
    name = (f"{sample.collection}/{sample.image_id}" + (f"/{place}" if place else "")).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


def coco_names(image_id: int | str, file_name: str = "", subtype: str = "") -> list[str]:
    """Where an image may lie below its folder, likeliest first: by `file_name`, else by the ways COCO names files.

    `subtype` is COCO's own word, e.g. "train2014"; a file name such as `COCO_val2014_000000000042.jpg` knows better.
    VQA's "test-dev2015" questions are about images of test2015.
    """
    said = re.match(r"COCO_([a-z]+\d{4})_", Path(file_name).name)
    part = said.group(1) if said else subtype.replace("-dev", "")
    names = [Path(file_name).name] if file_name else []
    if isinstance(image_id, int):
        names += [f"{image_id:012d}.jpg"] + ([f"COCO_{part}_{image_id:012d}.jpg"] if part else [])
    folders = [""] + ([f"{part}/"] if part else [])
    first = [file_name] if "/" in file_name else []
    return first + [folder + name for folder in folders for name in names]


def find_images(folder: Path, wanted: Mapping[int | str, list[str]], annotations: Path) -> dict[int | str, Path]:
    """The file of each image, by image id; `wanted` gives the names to try, relative to `folder`.

    Where a folder, or an lmdb in its place, has region features, an npz file of the same name, in small letters or not, is
    the image's.

    Raises DataError with the number of images that are missing and the first of them.
    """
    if not folder.is_dir():
        raise DataError(
            f"the image folder {folder} of {annotations} does not exist; check data.root and the reader's 'images'"
        )
    listed: dict[str, dict[str, str]] = {}  # one listing a folder, not one look a file
    found: dict[int | str, Path] = {}
    for image_id, names in wanted.items():
        for name in names:
            below, _, base = name.rpartition("/")
            if below not in listed:
                listed[below] = _list(folder / below)
            file = listed[below].get(base) or listed[below].get(Path(base).stem.lower())
            if file is not None:
                found[image_id] = folder / below / file
                break
    if len(found) < len(wanted):
        missing = next(names for image_id, names in wanted.items() if image_id not in found)
        raise DataError(
            f"{len(wanted) - len(found)} of {len(wanted)} images of {annotations} are not under {folder}; "
            f"first missing: {missing[0]}; complete the download or point the reader's 'images' at their folder"
        )
    return found


def _list(folder: Path) -> dict[str, str]:
    """The files of a folder by name; those of regions by their name in small letters, without its ending."""
    try:
        names = lmdb_keys(folder) if is_lmdb(folder) else os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name if has_pixels(name) else Path(name).stem.lower(): name for name in names}


def has_pixels(path: str | Path) -> bool:
    """Whether a file has an image's pixels, and not region features in their place."""
    return not str(path).endswith(".npz")


def decode(path: Path, min_side: int) -> Decoded:
    """The image as RGB; a JPEG may come at 1/2, 1/4 or 1/8 of its size where no side falls below `min_side` pixels.

    Orientation tags are ignored, as in the published pipelines: boxes refer to the stored pixels.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as file:  # one read, where PIL alone makes dozens
            size = file.size
            file.draft("RGB", (min_side, min_side))
            return Decoded(file.convert("RGB"), size)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
        raise CorruptImage(f"{path} cannot be decoded ({reason})") from error


class ImageFiles:
    """Images decoded anew each time they are asked for."""

    def __init__(self, paths: Iterable[Path], min_side: int) -> None:
        self.paths, self.min_side = list(paths), min_side

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
        self.sizes: list[tuple[int, int]] = []
        self.corrupt: dict[int, str] = {}
        for index, path in enumerate(self.paths):
            try:
                image, size = decode(path, side)
            except CorruptImage as error:
                self.corrupt[index], size = str(error), (side, side)
            else:
                self.pixels[index] = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
            self.sizes.append(size)

    def load(self, index: int) -> Decoded:
        """Raises CorruptImage."""
        if index in self.corrupt:
            raise CorruptImage(self.corrupt[index])
        return Decoded(Image.fromarray(self.pixels[index]), self.sizes[index])
