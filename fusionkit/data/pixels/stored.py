"""What a frozen tower made of images, on disk: one row an image and view, mapped into memory, read in place of pixels."""

import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusionkit.data.images import Decoded
from fusionkit.data.sample import Sample, Text
from fusionkit.distributed import barrier, from_rank_zero, rank
from fusionkit.errors import DataError
from fusionkit.files.atomic import BEGIN, END, flush, remove_leftovers, writing

ABOUT = "about.json"
ADVICE = "make room, or name another folder as image_tokens.folder=FOLDER"
DTYPES = {
    str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.float16, torch.bfloat16, torch.int64)
}
BoxKey = tuple[str, int | str]  # kind and id of a text


class StoredStates(NamedTuple):
    """The states of one image in one view, which stand where its pixels would."""

    parts: tuple[Tensor, ...]


class StoredImage(NamedTuple):
    """The states of one image in all its views, and the boxes on each, (V, 4) cxcywh in 0..1, by text."""

    parts: tuple[Tensor, ...]  # (V, ...) each
    boxes: Mapping[BoxKey, Tensor]

    def boxes_of(self, keys: Sequence[BoxKey]) -> Tensor:
        """The boxes of some texts, (N, V, 4)."""
        return torch.stack([self.boxes[key] for key in keys]) if keys else torch.zeros(0, len(self.parts[0]), 4)


class Table:
    """States (rows, ...) of each part, boxes (boxes, views, 4) and sizes (images, 2), in files of one folder.

    Row ``image * views + view`` is one view of an image. A table that is being written has another name, so that what has
    the table's own is whole.
    """

    def __init__(self, folder: Path, is_written: bool = False) -> None:
        about = _read_about(folder)
        self.folder, self.views, self.images = folder, int(about["views"]), int(about["images"])
        rows = self.images * self.views
        self.parts = tuple(
            _map(folder / f"part{number}", DTYPES[part["dtype"]], (rows, *part["shape"]), is_written)
            for number, part in enumerate(about["parts"])
        )
        self.boxes = _map(folder / "boxes", torch.float32, (int(about["boxes"]), self.views, 4), is_written)
        self.sizes = _map(folder / "sizes", torch.int64, (self.images, 2), is_written)

    def put(self, image: int, states: Sequence[Tensor], size: tuple[int, int], boxes: Tensor, first_box: int) -> None:
        """Write an image: its views' states (views, ...) of each part, the size of its file, and boxes (N, views, 4)."""
        for part, new in zip(self.parts, states, strict=True):
            part[image * self.views : (image + 1) * self.views] = new
        self.sizes[image] = torch.tensor(size)
        self.boxes[first_box : first_box + len(boxes)] = boxes


@contextmanager
def new_table(folder: Path, images: int, views: int, boxes: int, example: Sequence[Tensor]) -> Iterator[Table]:
    """A table that all ranks write to, and that appears in its place when the block ends.

    ``example`` has what is kept of one row. Raises DataError where the disk has no room for it.
    """
    place, fault = from_rank_zero(_begin(folder, images, views, boxes, example) if rank() == 0 else None)
    if fault:
        raise DataError(fault)
    yield Table(place, is_written=True)
    barrier()
    if rank() == 0:
        with writing(folder, ADVICE):
            for file in place.iterdir():
                flush(file)
            shutil.rmtree(folder, ignore_errors=True)
            place.replace(folder)
    barrier()


def _begin(folder: Path, images: int, views: int, boxes: int, example: Sequence[Tensor]) -> tuple[Path, str | None]:
    """Where the table is written, and what is wrong, which all ranks tell."""
    parts = [{"shape": list(part.shape), "dtype": str(part.dtype).removeprefix("torch.")} for part in example]
    about = {"images": images, "views": views, "boxes": boxes, "parts": parts}
    place = folder.with_name(f"{BEGIN}{secrets.token_hex(6)}{END}")
    try:
        with writing(folder, ADVICE):
            remove_leftovers(folder.parent)
            place.mkdir(parents=True)
            for number, part in enumerate(example):
                _allocate(place / f"part{number}", images * views * part.numel() * part.element_size())
            _allocate(place / "boxes", boxes * views * 16)
            _allocate(place / "sizes", images * 16)
            (place / ABOUT).write_text(json.dumps(about))
    except DataError as error:
        shutil.rmtree(place, ignore_errors=True)
        return place, str(error)
    return place, None


def is_table(folder: Path) -> bool:
    """Whether there is a whole table."""
    try:
        Table(folder)
    except DataError:
        return False
    return True


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / ABOUT).read_text())
        numbers = [about[name] for name in ("images", "views", "boxes")]
        shapes = [size for part in about["parts"] for size in part["shape"]]
        are_sizes = all(type(number) is int and number >= 0 for number in numbers + shapes)
        if are_sizes and about["parts"] and all(part["dtype"] in DTYPES for part in about["parts"]):
            return dict(about)
        fault = "its numbers are no sizes"
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = f"{type(error).__name__}: {error}"
    raise DataError(f"{folder} holds no image tokens ({fault}); remove it, and they are computed anew")


def _map(path: Path, dtype: torch.dtype, shape: tuple[int, ...], is_written: bool = False) -> Tensor:
    """A tensor whose memory is the file; what is changed goes into the file where it ``is_written``."""
    count = math.prod(shape)
    if not path.is_file() or path.stat().st_size != count * dtype.itemsize:
        raise DataError(f"{path} is not of the size that {path.parent / ABOUT} says; remove the folder")
    if not count:
        return torch.zeros(shape, dtype=dtype)
    try:
        return torch.from_file(str(path), shared=is_written, size=count, dtype=dtype).view(shape)
    except RuntimeError as error:  # torch's own sentence begins a trace
        raise DataError(f"{path} cannot be read ({str(error).splitlines()[0]}); check its permissions") from error


def _allocate(path: Path, size: int) -> None:
    """A file of zeros that has its room on the disk: a full disk would kill whoever writes to memory mapped from it."""
    with path.open("wb") as file:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)


def boxed_texts(sample: Sample, kinds: Sequence[str]) -> list[tuple[str, Text]]:
    """The kind and the text of each box of a sample, in the order in which a table has them."""
    return [(kind, text) for kind in kinds for text in sample.texts.get(kind, ()) if "box" in text.facts]


def first_boxes(samples: Sequence[Sample], kinds: Sequence[str]) -> list[int]:
    """Where in a table the boxes of each sample begin, and at the end how many there are."""
    return list(accumulate((len(boxed_texts(sample, kinds)) for sample in samples), initial=0))


class StoredImages:
    """Images of samples from a table, in the order of ``ImagePaths``."""

    def __init__(self, table: Table, samples: Sequence[Sample], kinds: Sequence[str]) -> None:
        self.table, self.samples, self.kinds = table, samples, kinds
        self.first_boxes = first_boxes(samples, kinds)

    def load(self, index: int) -> Decoded:
        """The states in place of the image, and the size of its file."""
        table, views = self.table, self.table.views
        parts = tuple(part[index * views : (index + 1) * views] for part in table.parts)
        boxes: dict[BoxKey, Tensor] = {}
        if index < len(self.samples):
            keys = [(kind, text.id) for kind, text in boxed_texts(self.samples[index], self.kinds)]
            first = self.first_boxes[index]
            boxes = dict(zip(keys, table.boxes[first : first + len(keys)], strict=True))
        width, height = table.sizes[index].tolist()
        return Decoded(StoredImage(parts, boxes), (width, height))


class DrawView:
    """Stands where an augmentation does: one of an image's views, and the boxes on it."""

    def decode_side(self, size: int) -> int:
        return size

    def __call__(
        self, image: StoredImage, boxes: Tensor, words: Sequence[str], size: int, rng: Random
    ) -> tuple[StoredImage, Tensor]:
        """One view of the image; boxes (N, V, 4) become (N, 1, 4)."""
        view = rng.randrange(len(image.parts[0]))
        parts = tuple(part[view : view + 1] for part in image.parts)
        return StoredImage(parts, image.boxes), boxes[:, view : view + 1]


def as_stored(image: StoredImage, boxes: Tensor) -> tuple[StoredStates, Tensor]:
    """The first view and the boxes (N, 4) on it; what ``transforms.Finish`` is to pixels."""
    return StoredStates(tuple(part[0] for part in image.parts)), boxes[:, 0]
