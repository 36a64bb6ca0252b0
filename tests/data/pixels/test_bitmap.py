"""JPEGs as tensors: what is decoded so, and that it is Pillow's picture up to a few levels."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fusionkit.data.images import CorruptImage
from fusionkit.data.pixels.bitmap import Bitmap, FastImages, chosen_decoder, plain_size
from fusionkit.errors import ConfigError


def picture(width=48, height=32, mode="RGB"):
    """A smooth picture of three different colours: what a JPEG keeps."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, 255 - (x + y) / 2], axis=2).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (saved(picture()), (48, 32)),
        (saved(picture(), progressive=True), (48, 32)),
        (saved(picture(mode="L")), (48, 32)),
        (saved(picture(7, 5)), (7, 5)),
        (saved(picture(), comment=b"c" * 300), (48, 32)),
        (saved(picture(mode="CMYK")), None),
        (saved(picture(), exif=turned()), None),
        (saved(picture(), "PNG"), None),
        (saved(picture())[:8], None),
        (b"", None),
        (b"\xff\xd8\xff", None),
    ],
)
def test_the_size_of_a_plain_jpeg_is_read_off_its_markers(content, size):
    assert plain_size(content) == size


def test_a_plain_jpeg_is_a_bitmap_of_pillows_pixels(tmp_path):
    for name, content in {"a.jpg": saved(picture(), quality=95), "b.jpg": saved(picture(mode="L"), quality=95)}.items():
        (tmp_path / name).write_bytes(content)
        found = FastImages([tmp_path / name], 32, "torchvision").load(0)
        assert isinstance(found.image, Bitmap)
        assert (found.size, found.image.size, found.image.width, found.image.height) == ((48, 32), (48, 32), 48, 32)
        ours = np.asarray(found.image.pil(), dtype=int)
        assert abs(ours - np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=int)).max() <= 3


def test_what_is_no_plain_jpeg_or_may_be_decoded_smaller_is_pillows(tmp_path):
    contents = {"a.png": saved(picture(), "PNG"), "b.jpg": saved(picture(), exif=turned()), "c.jpg": saved(picture())}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = FastImages([tmp_path / name for name in contents], 16, "torchvision")
    assert [type(files.load(place).image) for place in range(3)] == [Image.Image] * 3
    assert files.load(2).size == (48, 32)
    assert isinstance(FastImages([tmp_path / "c.jpg"], 17, "torchvision").load(0).image, Bitmap)
    (tmp_path / "d.jpg").write_bytes(saved(picture())[:200])
    with pytest.raises(CorruptImage, match=r"d\.jpg cannot be decoded"):
        FastImages([tmp_path / "d.jpg"], 32, "torchvision").load(0)


def test_a_crop_is_the_part_that_is_named_at_its_size():
    image = picture()
    bitmap = Bitmap(torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()))
    ours = np.asarray(bitmap.crop_resized((8, 4, 24, 16), 12), dtype=int)
    theirs = image.resize((12, 12), Image.Resampling.BICUBIC, box=(8, 4, 32, 20))
    assert ours.shape == (12, 12, 3)
    assert (
        abs(ours[1:-1, 1:-1] - np.asarray(theirs, dtype=int)[1:-1, 1:-1]).max() <= 2
    )  # Pillow's box looks past its edge


def test_decoders_have_names(monkeypatch):
    assert chosen_decoder("pillow") == "pillow"
    monkeypatch.setattr("fusionkit.data.pixels.bitmap.find_spec", lambda name: None)
    assert chosen_decoder("auto") == "torchvision"
    with pytest.raises(ConfigError, match=r"simplejpeg, which is not installed; pip install simplejpeg"):
        chosen_decoder("simplejpeg")
    with pytest.raises(ConfigError, match=r"data\.decoder is 'tourchvision'; did you mean 'torchvision'\?"):
        chosen_decoder("tourchvision")
    monkeypatch.setattr("fusionkit.data.pixels.bitmap.find_spec", lambda name: name)
    assert chosen_decoder("auto") == "simplejpeg"
