import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fusionkit.data.depths import as_rgb
from fusionkit.data.images import CorruptImage, decode

GREY = np.arange(256, dtype=np.uint8).reshape(8, 32)


def grey(path) -> np.ndarray:
    image = np.asarray(decode(path, 1).image)
    assert image.shape[2] == 3
    assert (image == image[..., :1]).all()
    return image[..., 0]


def save(path, values, **options):
    Image.fromarray(values).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "a.jp2"])
def test_16_bits_are_scaled_by_their_depth(tmp_path, name):
    assert np.array_equal(grey(save(tmp_path / name, GREY.astype(np.uint16) * 257)), GREY)


def test_16_bits_of_either_order(tmp_path):
    Image.frombytes("I;16B", (32, 8), (GREY.astype(">u2") * 257).tobytes()).save(tmp_path / "a.tif")
    assert np.array_equal(grey(tmp_path / "a.tif"), GREY)


def test_32_bits_and_floats_are_scaled_by_their_depth(tmp_path):
    signed = (GREY.astype(np.int64) * (2**31 - 1) // 255).astype(np.int32)
    assert np.array_equal(grey(save(tmp_path / "signed.tif", signed)), GREY)
    assert np.array_equal(grey(save(tmp_path / "float.tif", (GREY / 255).astype(np.float32))), GREY)
    unsigned = (GREY.astype(np.int64) * (2**32 - 1) // 255).astype(np.uint32).view(np.int32)
    path = save(tmp_path / "unsigned.tif", unsigned)
    data = path.read_bytes()
    tag = data.index(b"\x53\x01\x03\x00\x01\x00\x00\x00\x02\x00")  # SampleFormat: signed
    path.write_bytes(data[: tag + 8] + b"\x01" + data[tag + 9 :])
    assert np.array_equal(grey(path), GREY)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (GREY.astype(np.float32), "its numbers go from 0 to 255, but 0 is black and 1 white"),
        (GREY.astype(np.float32) / 255 - 0.1, r"its numbers go from -0\.1 to 0\.9"),
        (np.full((2, 2), np.nan, np.float32), "its numbers go from nan to nan"),
        (GREY.astype(np.int32), "its numbers go to 255, and nothing is seen of them"),
        (-GREY.astype(np.int32), "its numbers go from -255 to 0"),
    ],
)
def test_numbers_that_do_not_fit_their_depth_are_told(tmp_path, values, told):
    with pytest.raises(CorruptImage, match=f"a.tif cannot be decoded .{told}"):
        decode(save(tmp_path / "a.tif", values), 1)


def test_32_bits_of_a_format_that_says_no_more_have_a_sign(tmp_path):
    numbers = (GREY.astype(np.int64) * (2**31 - 1) // 255).astype(np.int32)
    assert abs(grey(save(tmp_path / "a.im", numbers)).astype(int) - GREY).max() <= 1


def test_black_is_black(tmp_path):
    assert grey(save(tmp_path / "a.tif", np.zeros((2, 2), np.int32))).max() == 0


def test_16_bits_of_three_colours(tmp_path):
    rows = b"".join(b"\0" + np.repeat(row.astype(">u2") * 257, 3).tobytes() for row in GREY)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 32, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert np.array_equal(grey(tmp_path / "a.png"), GREY)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "La", "RGBa", "L", "RGB"])
def test_what_is_transparent_is_white_and_what_is_half_so_is_paled(tmp_path, mode):
    """Left black and seen, in the middle half seen where the mode can say so, right unseen."""
    picture = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    picture.putpixel((2, 0), (0, 0, 0, 0))
    middle = 0
    if mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        picture.putpixel((1, 0), (0, 0, 0, 128))
        middle = 127
    if mode == "P":
        shown = Image.new("P", (3, 1))
        shown.putpixel((2, 0), 1)
        shown.putpalette([0, 0, 0, 9, 9, 9])
        shown.info["transparency"] = 1
    elif mode in ("L", "RGB"):
        shown = picture.convert(mode)
        shown.putpixel((2, 0), 7 if mode == "L" else (7, 7, 7))
        shown.info["transparency"] = 7 if mode == "L" else (7, 7, 7)
    elif mode == "PA":
        shown = picture.convert("P")
        shown.putalpha(picture.getchannel("A"))
    else:
        shown = picture.convert("LA").convert("La") if mode == "La" else picture.convert(mode)
    if mode in ("RGBA", "LA", "P", "L", "RGB"):
        shown.save(tmp_path / "a.png")
        shown = decode(tmp_path / "a.png", 1).image
    assert np.asarray(as_rgb(shown))[0, :, 0].tolist() == [0, middle, 255]


@pytest.mark.parametrize("ending", ["avif", "webp", "png", "jpg", "gif", "tif", "bmp", "jp2", "ico"])
def test_any_damage_is_a_corrupt_image_or_a_picture(tmp_path, ending):
    rng = np.random.default_rng(0)
    path = save(tmp_path / f"a.{ending}", rng.integers(0, 255, (48, 48, 3), dtype=np.uint8))
    whole = path.read_bytes()
    outcomes = set()
    for start in range(8, len(whole), max(1, len(whole) // 12)):
        path.write_bytes(whole[:start] + bytes(rng.integers(0, 255, 40, dtype=np.uint8)) + whole[start + 40 :])
        try:
            decode(path, 1)
        except CorruptImage as error:
            outcomes.add(str(error))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptImage, match=rf"a.{ending} cannot be decoded"):
        decode(path, 1)
    assert all("\n" not in told for told in outcomes)


def test_the_first_picture_of_several(tmp_path):
    frames = [Image.new("L", (2, 2), level) for level in (50, 200)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert grey(tmp_path / "a.tif").tolist() == [[50, 50]] * 2
