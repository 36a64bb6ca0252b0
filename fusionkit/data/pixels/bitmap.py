"""JPEG files as uint8 tensors, decoded, cropped and resized faster than Pillow does: for training, whose crops are random anyway.

Pixels differ by rounding from Pillow's (by a level or two), which evaluation therefore keeps to.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fusionkit.data.images import Decoded, decode
from fusionkit.data.stores import stored_bytes
from fusionkit.errors import ConfigError, suggest

START, EXIF = b"\xff\xd8", 0xE1
FRAMES = (0xC0, 0xC1, 0xC2)  # markers of what libjpeg decodes: baseline, extended and progressive
TWO_BYTES, FRAME = struct.Struct(">H"), struct.Struct(">BHHB")  # depth, height, width, colours
DECODERS = ("auto", "simplejpeg", "torchvision", "pillow")


@dataclass(frozen=True)
class Bitmap:
    """The pixels of an image, (3, H, W) uint8, stored upright (no EXIF block says otherwise)."""

    pixels: Tensor

    @property
    def width(self) -> int:
        return self.pixels.shape[2]

    @property
    def height(self) -> int:
        return self.pixels.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def crop_resized(self, box: tuple[int, int, int, int], size: int) -> Image.Image:
        """A square of ``size`` pixels of the part that left, top, width and height name (bicubic, antialiased)."""
        left, top, width, height = box
        part = self.pixels[:, top : top + height, left : left + width]
        resized = F.resize(part, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)
        return Bitmap(resized).pil()

    def pil(self) -> Image.Image:
        """The image as PIL has it."""
        return Image.fromarray(np.ascontiguousarray(self.pixels.numpy().transpose(1, 2, 0)))


def chosen_decoder(name: str) -> str:
    """The decoder of a name of DECODERS; "auto" is simplejpeg where it is installed, else torchvision's."""
    if name not in DECODERS:
        raise ConfigError(f"data.decoder is {name!r}; {suggest(str(name), DECODERS)}")
    has_simplejpeg = find_spec("simplejpeg") is not None
    if name == "simplejpeg" and not has_simplejpeg:
        raise ConfigError(
            "data.decoder is simplejpeg, which is not installed; pip install simplejpeg, or set data.decoder=auto"
        )
    return ("simplejpeg" if has_simplejpeg else "torchvision") if name == "auto" else name


def _by_torchvision(content: bytes) -> Tensor:
    pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return pixels


def _by_simplejpeg(content: bytes) -> Tensor:
    simplejpeg: Any = import_module("simplejpeg")  # which need not be there
    return torch.from_numpy(simplejpeg.decode_jpeg(content, "RGB")).permute(2, 0, 1)


BY: Mapping[str, Callable[[bytes], Tensor]] = {"torchvision": _by_torchvision, "simplejpeg": _by_simplejpeg}


class FastImages:
    """Images decoded anew each time they are asked for: a JPEG of three colours, or grey, as a ``Bitmap``, others by Pillow.

    A JPEG that may be decoded at half its size or less is Pillow's too, which does that, and one with an EXIF block, which it
    reads.
    """

    def __init__(self, paths: Sequence[Path], min_side: int, decoder: str) -> None:
        self.paths, self.min_side, self.by = paths, min_side, BY[decoder]

    def load(self, index: int) -> Decoded:
        """Raises CorruptImage."""
        path = self.paths[index]
        try:
            content = stored_bytes(path)
            size = plain_size(content)
            if size is not None and min(size) < 2 * self.min_side:
                return Decoded(Bitmap(self.by(content)), size)
        except Exception:  # decoders raise nearly anything; Pillow has the last word, and says what is wrong
            pass
        return decode(path, self.min_side)


def plain_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of one or three colours without an EXIF block, read off its markers; None for anything else."""
    place = 2
    while content[:2] == START and len(content) >= place + 10 and content[place] == 0xFF:
        marker = content[place + 1]
        (length,) = TWO_BYTES.unpack_from(content, place + 2)
        if marker == EXIF and content[place + 4 : place + 8] == b"Exif":
            return None
        if marker in FRAMES:
            _, height, width, colours = FRAME.unpack_from(content, place + 4)
            return (width, height) if colours in (1, 3) and width and height else None
        place += 2 + length
    return None
