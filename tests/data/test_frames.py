from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fusionkit.data.dataset import EvalData, TrainData, load_framed
from fusionkit.data.frames import fits, framed, require_fit
from fusionkit.data.images import CachedImages, Decoded, ImageFiles, decode
from fusionkit.data.sample import Sample, Text
from fusionkit.data.sampler import Draw
from fusionkit.data.transforms import Finish
from fusionkit.errors import DataError

BOX = (4.0, 4.0, 20.0, 20.0)  # of the red square in the upright picture, 64 x 48
FINISH = Finish(64, (0, 0, 0), (1, 1, 1))


def upright() -> Image.Image:
    picture = Image.new("RGB", (64, 48), (10, 10, 200))
    picture.paste((230, 20, 20), (4, 4, 24, 24))
    return picture


def write_turned(path: Path, orientation: int, ending: str = "png") -> Path:
    """The picture stored so that its EXIF orientation turns it upright."""
    back = {6: 8, 8: 6}.get(orientation, orientation)
    exif = Image.Exif()
    exif[0x0112] = back
    picture = upright()
    picture.info["exif"] = exif.tobytes()
    stored = ImageOps.exif_transpose(picture)
    exif[0x0112] = orientation
    stored.save(path.with_suffix(f".{ending}"), exif=exif.tobytes(), quality=95)
    return path.with_suffix(f".{ending}")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_ones_own_pictures_stand_upright(tmp_path, orientation, ending):
    path = write_turned(tmp_path / "a", orientation, ending)
    found = framed(decode(path, 64), None, upright=True)
    assert found.size == found.image.size == (64, 48)
    assert abs(np.asarray(found.image).astype(int) - np.asarray(upright())).mean() < 3
    stored = framed(decode(path, 64), None)
    with Image.open(path) as file:
        assert stored.size == file.size
        assert np.array_equal(np.asarray(stored.image), np.asarray(file.convert("RGB")))


def sample(path: Path, size, **more) -> Sample:
    return Sample(1, path, {"expressions": (Text(1, "red square", {"box": BOX}),)}, size, **more)


def box_is_red(item) -> bool:
    x, y, w, h = (item.boxes["expressions", 1] * 64).tolist()
    inside = item.pixel_values[
        :, round(y - h / 2) + 2 : round(y + h / 2) - 2, round(x - w / 2) + 2 : round(x + w / 2) - 2
    ]
    around = item.pixel_values.sum(dim=(1, 2)) - inside.sum(dim=(1, 2))
    return bool(inside[0].min() > 0.8 and inside[2].max() < 0.2 and around[0] / around[2] < 0.2)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("images", [ImageFiles, CachedImages])
@pytest.mark.parametrize("scale", [1, 10])
def test_the_size_of_the_annotations_says_in_which_frame_their_boxes_are(tmp_path, orientation, images, scale):
    one = sample(write_turned(tmp_path / "a", orientation), (64 * scale, 48 * scale))
    box = tuple(scale * number for number in BOX)
    one = Sample(1, one.image, {"expressions": (Text(1, "it", {"box": box}),)}, one.size)
    item = EvalData([one], images([one.image], 64), ["expressions"], FINISH)[0]
    assert (item.size, box_is_red(item)) == (one.size, True)
    trained = TrainData("s", [one], images([one.image], 64), {"expressions": 1}, FINISH, 64)[Draw(0, 1)]
    assert (trained.size, box_is_red(trained)) == (one.size, True)


def test_a_size_of_the_stored_pixels_leaves_them_as_they_are(tmp_path):
    path = write_turned(tmp_path / "a", 6)  # stored 48 x 64: the square is at the lower left
    one = Sample(1, path, {"expressions": (Text(1, "it", {"box": (4.0, 40.0, 20.0, 20.0)}),)}, (48, 64))
    item = EvalData([one], ImageFiles([path], 64), ["expressions"], FINISH)[0]
    assert (item.size, box_is_red(item)) == ((48, 64), True)


def test_a_size_that_fits_neither_is_refused_where_there_are_boxes(tmp_path):
    path = write_turned(tmp_path / "a", 6)
    one = sample(path, (64, 60))
    with pytest.raises(
        DataError, match=r"a.png is 48 x 64 pixels, which its annotations' 64 x 60 are no scale of, nor turned"
    ):
        EvalData([one], ImageFiles([path], 64), ["expressions"], FINISH)[0]
    with pytest.raises(DataError, match="are no scale of"):
        TrainData("s", [one], ImageFiles([path], 64), {"expressions": 1}, FINISH, 64)[Draw(0, 1)]
    assert EvalData([one], ImageFiles([path], 64), [], FINISH)[0].size == (64, 60)  # squashed copies have captions too


@pytest.mark.parametrize(
    ("one", "other", "does"),
    [
        ((640, 427), (256, 171), True),
        ((640, 427), (256, 170), True),
        ((640, 427), (256, 173), False),
        ((256, 171), (640, 427), True),
        ((64, 48), (48, 64), False),
        ((640, 480), (224, 224), False),
        ((100, 100), (100, 102), True),
        ((100, 100), (100, 103), False),
    ],
)
def test_two_sizes_of_one_picture(one, other, does):
    assert fits(one, other) is does


def test_near_squares_are_told_by_the_exact_size(tmp_path):
    image = Image.new("RGB", (50, 49))
    image.info = {"orientation": 6}
    stored = Decoded(image, (50, 49))
    assert framed(stored, (50, 49)).size == (50, 49)
    assert framed(stored, (49, 50)).size == (49, 50)
    assert framed(stored, (500, 490)).size == (50, 49)  # fits both: as it is stored
    image.info = {"orientation": 3}
    assert framed(stored, (50, 49)).image is image
    assert framed(stored, (50, 49), upright=True).image is not image  # a size says nothing of what stands on its head
    require_fit((0, 0), (64, 48), Path("a.npz"))
    require_fit((64, 48), None, Path("a.png"))


def test_both_images_of_a_pair_are_turned(tmp_path):
    paths = [write_turned(tmp_path / "a", 6), write_turned(tmp_path / "b", 8)]
    own = Sample(1, paths[0], {}, (64, 48), others=(paths[1],), upright=True)
    assert [found.size for found in load_framed(ImageFiles(paths, 8), own, (0, 1))] == [(64, 48)] * 2
    published = Sample(1, paths[0], {}, (64, 48), others=(paths[1],))
    assert [found.size for found in load_framed(ImageFiles(paths, 8), published, (0, 1))] == [(64, 48), (48, 64)]


def test_a_damaged_exif_block_does_not_damage_the_picture(tmp_path):
    upright().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\x01")
    assert framed(decode(tmp_path / "a.jpg", 8), None, upright=True).size == (64, 48)
    exif = Image.Exif()
    exif[0x0112] = 9
    upright().save(tmp_path / "b.jpg", exif=exif.tobytes())
    assert decode(tmp_path / "b.jpg", 8).image.info == {"orientation": 1}


def test_a_picture_that_says_nothing_of_its_orientation_is_upright():
    found = Decoded(upright(), (64, 48))
    for said in (None, (48, 64)):
        assert framed(found, said, upright=True) is found
