from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusionkit.data.images import CachedImages, CorruptImage, ImageFiles, decode, find_images, image_key, image_places
from fusionkit.data.sample import Sample
from tests.data.worlds import write_photo


def test_an_image_key_is_the_same_in_every_run_and_differs_between_collections():
    key = image_key(Sample(42, Path("a.jpg"), {}, collection="coco"))
    assert key == image_key(Sample("42", Path("b.jpg"), {}, collection="coco")) == 3366741594973752827
    assert key != image_key(Sample(42, Path("a.jpg"), {}, collection="flickr30k"))


@pytest.mark.parametrize(
    ("place", "said", "subtype"),
    [
        ("000000000042.jpg", "", ""),
        ("COCO_val2014_000000000042.jpg", "", "val2014"),
        ("val2014/000000000042.jpg", "", "val2014"),
        ("test2015/COCO_test2015_000000000042.jpg", "", "test-dev2015"),
        ("train2014/COCO_train2014_000000000042.jpg", "COCO_train2014_000000000042.jpg", ""),
        ("000000000042.jpg", "COCO_train2014_000000000042.jpg", ""),
        ("deep/photo.png", "deep/photo.png", ""),
    ],
)
def test_the_ways_coco_names_its_files(tmp_path, place, said, subtype):
    path = write_photo(tmp_path / place)
    assert find_images(tmp_path, {42: image_places(42, said, subtype)}, Path("x.json")) == {42: path}


def test_decoding_gives_rgb_and_the_size_of_the_file(tmp_path):
    for name, mode in (("grey.png", "L"), ("palette.png", "P"), ("alpha.png", "RGBA"), ("print.jpg", "CMYK")):
        Image.new(mode, (20, 10)).save(tmp_path / name)
        image, size = decode(tmp_path / name, 8)
        assert (image.mode, image.size, size) == ("RGB", (20, 10), (20, 10))


def test_a_large_jpeg_is_decoded_small_but_not_below_what_is_needed(tmp_path):
    path = write_photo(tmp_path / "large.jpg", size=(640, 480))
    image, size = decode(path, 100)
    assert (image.size, size) == ((160, 120), (640, 480))
    assert decode(path, 481).image.size == (640, 480)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
def test_what_cannot_be_decoded_is_corrupt(tmp_path, damage):
    path = write_photo(tmp_path / "a.jpg", size=(200, 200))
    content = {"truncated": path.read_bytes()[:900], "text": b"not an image", "empty": b""}
    path.unlink() if damage == "missing" else path.write_bytes(content[damage])
    with pytest.raises(CorruptImage, match=r"a.jpg cannot be decoded"):
        decode(path, 8)


def test_the_cache_decodes_once_and_remembers_what_is_corrupt(tmp_path):
    paths = [write_photo(tmp_path / "a.png", 3), tmp_path / "b.png", write_photo(tmp_path / "c.png", 5)]
    paths[1].write_bytes(b"")
    cache = CachedImages(paths, 8)
    paths[0].unlink()
    image, size = cache.load(0)
    assert (image.size, size) == ((8, 8), (32, 24))
    fresh = ImageFiles(paths, 8).load(2).image.resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(cache.load(2).image), np.asarray(fresh))
    with pytest.raises(CorruptImage, match=r"b.png"):
        cache.load(1)
