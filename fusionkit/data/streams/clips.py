"""Films as frames, and several images of one text: a folder of pictures, a file of several (GIF, WebP), or a list of files."""

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fusionkit.data.frames import framed
from fusionkit.data.images import CorruptImage, decode_opened
from fusionkit.data.stores import ChangedError, stored_bytes
from fusionkit.data.streams.base import Finishing
from fusionkit.errors import ConfigError, DataError
from fusionkit.types import Frames

FILMS = (".mp4", ".mov", ".webm", ".avi", ".mkv", ".mpg", ".mpeg")
SEVERAL = (
    "GIF",
    "WEBP",
    "TIFF",
)  # formats whose files may hold a film: the second picture of a phone's JPEG (MPO) is no frame
NO_BOXES = torch.zeros(0, 4)
Frame = tuple[Path, int]  # a file, and which of its pictures


@dataclass(frozen=True)
class Clip:
    """The pictures of one stream, in their order: of PIL, then ready, each (3, H, W)."""

    frames: Sequence[Any]
    width: int = 1
    height: int = 1

    def finished(self, finish: Finishing) -> "Clip":
        """Each as ``finish`` makes a picture ready."""
        return Clip([finish(frame, NO_BOXES)[0] for frame in self.frames])

    def pad(self, streams: "Sequence[Clip]") -> Frames:
        """One batch, padded to the stream with most frames."""
        clips: list[Tensor] = [torch.stack(list(clip.frames)) for clip in streams]
        mask = pad_sequence([torch.ones(len(clip), dtype=torch.long) for clip in clips], batch_first=True)
        return Frames(pad_sequence(clips, batch_first=True), mask)


@dataclass(frozen=True)
class Clips:
    """Pictures in order, ``length`` of them at most.

    Of more, one of each of ``length`` stretches of equal length is seen: its middle one, or in training, where ``jitter``, any
    of it (temporal segment networks, arXiv 1608.00859).
    """

    length: int = 8
    jitter: bool = True
    reads: ClassVar[str] = "frames"

    def __post_init__(self) -> None:
        if type(self.length) is not int or self.length < 1:
            raise ConfigError(f"stream.length is {self.length!r}, but has to be a number of frames, from 1 on")

    def load(self, files: Sequence[Path], side: int, rng: Random | None) -> Clip:
        """The chosen frames, decoded. Raises CorruptImage, and DataError for a film in a format that is not read."""
        frames = [frame for file in files for frame in frames_of(file)]
        chosen = choose_frames(len(frames), self.length, rng if self.jitter else None)
        return Clip(read_frames([frames[number] for number in chosen], side))


def choose_frames(count: int, most: int, rng: Random | None) -> list[int]:
    """The numbers of the frames that are seen of ``count``: all, or one of each of ``most`` stretches."""
    if count <= most:
        return list(range(count))
    edges = [number * count // most for number in range(most + 1)]
    stretches = pairwise(edges)
    return [(start + end - 1) // 2 if rng is None else rng.randrange(start, end) for start, end in stretches]


def frames_of(file: Path) -> list[Frame]:
    """The pictures of a file, or of the files in a folder. Raises CorruptImage, DataError for a film.

    Only files that may hold several are opened: a folder or a list may name any number of which few are seen.
    """
    kinds = Image.registered_extensions()
    if file.is_dir():
        found = [name for name in _names_in(file) if kinds.get(Path(name).suffix.lower()) in Image.OPEN]
        if not found:
            raise CorruptImage(f"{file} is a folder without pictures, which are to be the frames of a film")
        return [(file / name, 0) for name in sorted(found, key=_natural)]
    require_pictures(file)
    if kinds.get(file.suffix.lower(), SEVERAL[0]) not in SEVERAL:
        return [(file, 0)]
    with _opened(file) as picture:
        try:
            count = int(getattr(picture, "n_frames", 1)) if picture.format in SEVERAL else 1
        except Exception as error:  # which goes through the whole file
            raise CorruptImage(f"{file} cannot be decoded ({error})") from error
    return [(file, number) for number in range(count)]


def read_frames(frames: Sequence[Frame], side: int) -> list[Image.Image]:
    """The pictures, RGB and upright; those of one file, which come one after another, are read of one opening."""
    found: list[Image.Image] = []
    place = 0
    while place < len(frames):
        file = frames[place][0]
        with _opened(file) as picture:
            while place < len(frames) and frames[place][0] == file:
                number = frames[place][1]
                try:
                    if number != picture.tell():
                        picture.seek(number)
                    found.append(framed(decode_opened(picture, side), None, upright=True).image)
                except Exception as error:  # decoders raise nearly anything
                    raise CorruptImage(f"frame {number + 1} of {file} cannot be decoded ({error})") from error
                place += 1
    return found


def require_pictures(file: Path) -> None:
    """DataError for a film in a format that nothing here reads."""
    if file.suffix.lower() in FILMS:
        raise DataError(
            f"{file} is a film as {file.suffix}, which is not read; write its frames as pictures of a folder of that name "
            "(ffmpeg -i FILM -vf fps=4 FOLDER/%04d.jpg) or as an animated GIF or WebP, and name that"
        )


def _opened(file: Path) -> Image.Image:
    try:
        return Image.open(io.BytesIO(stored_bytes(file)))
    except ChangedError:
        raise
    except Exception as error:
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
        raise CorruptImage(f"{file} cannot be decoded ({reason})") from error


def _names_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir()]
    except OSError as error:
        raise CorruptImage(f"{folder} cannot be read ({error})") from error


def _natural(name: str) -> list[tuple[int, str]]:
    """By which names sort as people count: frame2 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
