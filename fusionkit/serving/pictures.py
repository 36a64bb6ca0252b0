"""Pictures of strangers: base64 -> what the model reads, within bounds that are looked at before anything is decoded."""

import base64
import binascii
import io
import re
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from fusionkit.data.datamodule import DataModule
from fusionkit.data.depths import as_rgb
from fusionkit.data.images import Decoded, decode_opened
from fusionkit.data.requests import ready
from fusionkit.serving.problems import Problem

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
THUMBNAIL = 320  # pixels of the longer side
SCANS = 32  # of a JPEG, which has about ten; each is a pass over all pixels, and may be 40 bytes
MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)  # of a segment of a JPEG, or its end


def quiet_bombs() -> None:
    """Pillow warns of large pictures that we bound ourselves."""
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def content_of(text: str, name: str) -> bytes:
    """The bytes that base64 stands for. Raises Problem."""
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise Problem(
            422, f"'{name}' is no base64; send the bytes of a picture in base64, and no path, URL or data: prefix"
        ) from None


def read_picture(content: bytes, datamodule: DataModule, pixels: int, name: str = "image") -> Decoded:
    """A picture upright and finished for the model, as ``predict`` reads a file of these bytes. Raises Problem."""
    if content.startswith(b"\xff\xd8") and scans_of(content) > SCANS:
        raise Problem(413, f"'{name}' is a JPEG of more than {SCANS} scans; save it anew")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as file:
            require_small(file, pixels, name)
            return ready(datamodule, decode_opened(file, datamodule.finish.decode_side))
    except Problem:
        raise
    except Image.DecompressionBombError:
        raise Problem(413, f"'{name}' has more than {pixels / 1e6:g} megapixels; send it smaller") from None
    except UnidentifiedImageError:
        raise Problem(422, f"'{name}' is no picture; send one of {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise nearly anything
        raise Problem(422, f"'{name}' cannot be decoded ({str(error)[:200]}); send it again") from None


def scans_of(content: bytes) -> int:
    """The scans of a JPEG, counted no further than is too many.

    By its markers up to its end, so that what stands within a segment, such as a preview, does not count.
    """
    count, place = 0, 2
    while count <= SCANS and (found := MARKER.search(content, place)) and found[1] != b"\xd9":
        count += found[1] == b"\xda"
        place = found.end() + max(2, int.from_bytes(content[found.end() : found.end() + 2]))
    return count


def require_small(file: Image.Image, pixels: int, name: str) -> None:
    """Raise Problem for more pixels, by what the file's head says, than a picture may have."""
    width, height = file.size
    if width * height > pixels:
        raise Problem(
            413, f"'{name}' is {width} x {height} pixels, more than {pixels / 1e6:g} megapixels; send it smaller"
        )


def thumbnail(path: Path, pixels: int) -> bytes:
    """A small JPEG of a picture of the index, upright. Raises Problem where it is not there or no picture any more."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            require_small(file, 4 * pixels, "the picture")
            file.draft("RGB", (THUMBNAIL, THUMBNAIL))
            small = as_rgb(ImageOps.exif_transpose(file))
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            written = io.BytesIO()
            small.save(written, "JPEG", quality=85)
            return written.getvalue()
    except Problem:
        raise
    except FileNotFoundError:
        raise Problem(410, "the picture is not there any more; the index has to be brought up to date") from None
    except Exception:
        raise Problem(422, "the picture cannot be shown: it is not there any more, or of another format") from None
