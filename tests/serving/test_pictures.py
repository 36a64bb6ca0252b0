"""Pictures of strangers are read as ``predict`` reads them, or refused before they are decoded."""

import io
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from fusionkit.data.dataset import NO_BOXES
from fusionkit.data.frames import framed
from fusionkit.data.images import decode
from fusionkit.data.transforms import Finish
from fusionkit.serving.pictures import SCANS, content_of, read_picture, scans_of, thumbnail
from fusionkit.serving.problems import Problem

DATA: Any = SimpleNamespace(finish=Finish(32, [0.5] * 3, [0.5] * 3))
PIXELS = 1_000_000


def picture(width: int = 50, height: int = 40, mode: str = "RGB") -> Image.Image:
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(0, 255, (height, width, 3), dtype=np.uint8)).convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


@pytest.mark.parametrize(
    ("kind", "size", "options"),
    [
        ("JPEG", (50, 40), {}),
        ("JPEG", (50, 40), {"exif": turned()}),
        ("JPEG", (400, 200), {}),  # read at a part of its size
        ("JPEG", (400, 200), {"exif": turned()}),
        ("PNG", (50, 40), {}),
        ("WEBP", (50, 40), {}),
        ("GIF", (50, 40), {}),
    ],
)
def test_a_picture_is_what_predict_sees_of_the_file(
    kind: str, size: tuple[int, int], options: Any, tmp_path: Path
) -> None:
    content = saved(picture(*size), kind, **options)
    (tmp_path / "it").write_bytes(content)
    wanted, wanted_size = framed(decode(tmp_path / "it", 32), None, upright=True)
    found = read_picture(content, DATA, PIXELS)
    assert found.size == wanted_size == (size[::-1] if options else size)
    assert torch.equal(found.image.pixel_values, DATA.finish(wanted, NO_BOXES)[0])


def test_a_jpeg_of_many_scans_is_refused_and_what_stands_within_it_does_not_count() -> None:
    """Each scan is a pass over all pixels: a thousand take a minute of a file of 140 KB."""
    content = saved(picture(), "JPEG", progressive=True)
    first, end = content.index(b"\xff\xda"), content.rindex(b"\xff\xd9")
    last = content[content.rindex(b"\xff\xda") : end]
    inside = scans_of(content)
    assert inside == content[first:].count(b"\xff\xda") > 5
    assert scans_of(saved(picture(), "JPEG")) == 1
    most = content[:end] + last * (SCANS - inside) + content[end:]
    assert scans_of(most) == SCANS
    read_picture(most, DATA, PIXELS)
    with pytest.raises(Problem, match=f"a JPEG of more than {SCANS} scans") as refused:
        read_picture(content[:end] + last * 1000 + content[end:], DATA, PIXELS)
    assert refused.value.status == 413
    preview = b"\xff\xe1" + (2 + 200).to_bytes(2) + b"\xff\xd9" + b"\xff\xda" * 99
    assert scans_of(content[:2] + preview + content[2:] + b"\xff\xda" * 99) == inside
    read_picture(content[:2] + preview + content[2:] + b"\xff\xda" * 99, DATA, PIXELS)


def png_head(width: int, height: int) -> bytes:
    """A file that says it is large, and holds nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "status", "told"),
    [
        (b"ABC", 422, "no picture"),
        (b"", 422, "no picture"),
        (saved(picture(), "BMP"), 422, "no picture; send one of JPEG, PNG, WEBP, GIF"),
        (saved(picture(), "TIFF"), 422, "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "no picture"),
        (saved(picture(), "PNG")[:-60], 422, "cannot be decoded"),
        (saved(picture(), "JPEG")[:200], 422, "no picture|cannot be decoded"),
        (png_head(10_000, 10_000), 413, "10000 x 10000 pixels, more than 1 megapixels"),
        (png_head(2**31 - 1, 2**31 - 1), 413, "megapixels"),
        (png_head(1001, 1000), 413, "1001 x 1000"),
        (png_head(1000, 1000), 422, "cannot be decoded"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_picture_or_too_large_is_a_sentence(content: bytes, status: int, told: str) -> None:
    with pytest.raises(Problem, match=told) as refused:
        read_picture(content, DATA, PIXELS, "images.1")
    assert refused.value.status == status
    assert refused.value.sentence.startswith("'images.1' ")


@pytest.mark.parametrize(
    "text", ["/etc/passwd.png", "http://host/a.png", "data:image/png;base64,QUJD", "QUJ", "QUJD\n", "é", "Q UJD"]
)
def test_no_path_and_no_url_is_taken_for_a_picture(text: str) -> None:
    with pytest.raises(Problem, match="'image' is no base64") as refused:
        content_of(text, "image")
    assert refused.value.status == 422
    assert content_of("QUJD", "image") == b"ABC"


def test_a_thumbnail_is_small_upright_and_of_the_same_formats(tmp_path: Path) -> None:
    picture(800, 400).save(tmp_path / "a.jpg", exif=turned())
    small = Image.open(io.BytesIO(thumbnail(tmp_path / "a.jpg", PIXELS)))
    assert (small.size, small.format) == ((160, 320), "JPEG")
    picture(10, 10, "L").save(tmp_path / "a.png")
    assert Image.open(io.BytesIO(thumbnail(tmp_path / "a.png", PIXELS))).size == (10, 10)
    picture().save(tmp_path / "a.bmp")
    (tmp_path / "large.png").write_bytes(png_head(2001, 2000))
    for name, status in (("a.bmp", 422), ("nowhere.png", 410), ("large.png", 413)):
        with pytest.raises(Problem) as refused:
            thumbnail(tmp_path / name, PIXELS)
        assert refused.value.status == status
        assert str(tmp_path) not in refused.value.sentence
