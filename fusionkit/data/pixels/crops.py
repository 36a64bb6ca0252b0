"""Parts of pictures in the place of files: a path names the picture and the part, and the bytes are cut out when it is read."""

import io
import re
from pathlib import Path

from PIL import Image

PART = re.compile(r"crop(-?\d+),(-?\d+),(-?\d+),(-?\d+)\.bmp")


def crop(picture: Path, box: tuple[int, int, int, int]) -> Path:
    """What stands for a part of a picture, left, top, right and bottom in pixels: ``PICTURE/crop12,0,40,64.bmp``."""
    return picture / f"crop{','.join(map(str, box))}.bmp"


def is_crop(path: Path) -> bool:
    """Whether a path is a ``crop``, going by its words alone."""
    return PART.fullmatch(path.name) is not None


def crop_bytes(path: Path) -> bytes:
    """The part as an RGB bitmap, black where it lies beyond the picture. Raises what PIL raises for what is no picture."""
    found = PART.fullmatch(path.name)
    assert found is not None
    left, top, right, bottom = (int(number) for number in found.groups())
    written = io.BytesIO()
    with Image.open(path.parent) as picture:
        picture.convert("RGB").crop((left, top, right, bottom)).save(written, "BMP")
    return written.getvalue()
