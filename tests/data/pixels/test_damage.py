"""Missing and damaged images: found before training, an error or left out up to a share."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fusionkit.data.datamodule import DataModule
from fusionkit.data.images import find_images, missing_images
from fusionkit.data.pixels.damage import Damage, fault_of
from fusionkit.data.readers.coco import CocoCaptions
from fusionkit.data.sample import Sample
from fusionkit.data.source import Source
from fusionkit.data.stores import cell, stamp_of
from fusionkit.data.tables.samples import as_samples
from fusionkit.errors import ConfigError, DataError
from tests.data.worlds import captions, write_json, write_photos


def noise(path: Path, **options) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif"])
@pytest.mark.parametrize("is_thorough", [False, True])
def test_whole_files_are_whole_and_cut_ones_are_not(tmp_path, ending, is_thorough):
    path = noise(tmp_path / f"a.{ending}")
    assert fault_of(path, is_thorough) is None
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"<html>not found</html>", content[:20]):
        path.write_bytes(damaged)
        assert str(path) in fault_of(path, is_thorough), len(damaged)


def test_a_picture_with_a_few_bytes_behind_its_end_is_whole(tmp_path):
    path = noise(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes() + bytes(2000))
    assert fault_of(path, False) is None
    path.rename(tmp_path / "really_a_jpeg.png")
    assert fault_of(tmp_path / "really_a_jpeg.png", False) is None


def test_only_a_thorough_look_sees_what_is_wrong_inside(tmp_path):
    path = noise(tmp_path / "a.png")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert fault_of(path, False) is None
    assert "a.png cannot be decoded" in fault_of(path, True)


def test_what_is_not_there_is_missing_but_no_folder_is_none(tmp_path):
    assert fault_of(tmp_path / "a.jpg", False) == f"{tmp_path}/a.jpg is missing"
    assert fault_of(tmp_path / "a.npz", True) == f"{tmp_path}/a.npz is missing"
    (tmp_path / "a.npz").write_bytes(b"regions are read by another")
    assert fault_of(tmp_path / "a.npz", True) is None
    assert fault_of(Path(), True) is None  # images=null: annotations alone


def test_a_file_is_looked_at_once(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr("fusionkit.data.pixels.damage.fault_of", lambda path, thorough: looked.append((path, thorough)))
    samples = [Sample(n, tmp_path / f"{n % 2}", {}, others=(tmp_path / "other",)) for n in range(4)]
    damage = Damage()
    for is_thorough in (False, False, True):
        assert damage.faults(samples, is_thorough) == {}
    paths = [tmp_path / name for name in ("0", "1", "other")]
    assert sorted(looked) == sorted((path, thorough) for thorough in (False, True) for path in paths)


def test_a_sample_falls_with_any_of_its_images(tmp_path):
    noise(tmp_path / "a.jpg")
    samples = [Sample(1, tmp_path / "a.jpg", {}), Sample(2, tmp_path / "a.jpg", {}, others=(tmp_path / "gone.jpg",))]
    assert list(Damage("skip", 0.5).without(as_samples(samples), "x", False)) == samples[:1]
    with pytest.raises(
        DataError, match=r"1 of the 2 images of x are missing or damaged, more than data.max_missing=0.49"
    ):
        Damage("skip", 0.49).without(as_samples(samples), "x", False)
    with pytest.raises(
        DataError, match=r"x: .*gone.jpg is missing; download the images again, or set data.missing=skip"
    ):
        Damage().require_none(samples, "x", False)
    with pytest.raises(DataError, match=r"gone.jpg is missing, and 1 more of its 3 images are missing or damaged;"):
        Damage().require_none([*samples, samples[1]], "x", False)
    Damage().require_none(samples[:1], "x", False)


@pytest.mark.parametrize("share", [-0.1, 1, True, "half"])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match=f"data.max_missing is {share!r}, but has to be a share"):
        Damage("skip", share)
    assert Damage("skip", 0).share == 0


def test_a_rule_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"data.missing is 'skipp'; did you mean 'skip'"):
        Damage("skipp")


def test_readers_name_the_place_of_what_is_missing_only_where_asked(tmp_path):
    write_photos(tmp_path / "images")
    wanted = {9: ["nine.jpg", "other.jpg"], 1: ["000000000001.jpg"]}
    with pytest.raises(DataError, match=r"1 of 2 images of a.json .*first missing: nine.jpg.*data.missing=skip"):
        find_images(tmp_path / "images", wanted, Path("a.json"))
    with missing_images():
        found = find_images(tmp_path / "images", wanted, Path("a.json"))
        with pytest.raises(DataError, match="does not exist"):
            find_images(tmp_path / "none", wanted, Path("a.json"))
    assert list(found.items()) == [(9, tmp_path / "images/nine.jpg"), (1, tmp_path / "images/000000000001.jpg")]
    with pytest.raises(DataError):
        find_images(tmp_path / "images", wanted, Path("a.json"))


def data_of(folder: Path, **options) -> DataModule:
    reader = CocoCaptions(str(write_json(folder / "captions.json", captions())), str(folder / "images"))
    roles = {"train": ["all"], "val": ["all"]}
    source = Source(reader, roles, 2, {"captions": 1})
    return DataModule(str(folder), {"coco": source}, image_size=8, allow_overlap=[["*", "*"]], **options)


def test_a_split_is_read_without_what_is_missing_or_damaged(tmp_path):
    images = write_photos(tmp_path / "images")
    (images / "000000000002.jpg").unlink()
    for options in ({}, {"missing": "error"}):
        with pytest.raises(DataError, match="1 of 4 images"):
            data_of(tmp_path, **options).samples("coco", "val")
    with pytest.raises(DataError, match=r"source coco, val.* more than data.max_missing=0.01"):
        data_of(tmp_path, missing="skip").samples("coco", "val")
    data = data_of(tmp_path, missing="skip", max_missing=0.5)
    assert [sample.image_id for sample in data.samples("coco", "val")] == [1, 3, 4]
    assert data.told_missing("coco", "val") == ["1 missing or damaged images left out, 3 are there"]
    data.require_images([("coco", "val"), ("coco", "train")])
    assert len(list(data.eval_loader("coco", "val"))) == 2


def test_a_damaged_image_is_found_before_training_in_validation_too(tmp_path):
    images = write_photos(tmp_path / "images")
    places = [("coco", "train"), ("coco", "val")]
    data_of(tmp_path).require_images(places)
    assert data_of(tmp_path).told_missing("coco", "val") == []
    content = (images / "000000000003.jpg").read_bytes()
    (images / "000000000003.jpg").write_bytes(content[: len(content) // 2] + content[-2:])  # its end is there
    for role in ("train", "val"):
        data = data_of(tmp_path)
        if role == "train":  # for a quick look it seems whole, and the loader replaces it
            data.require_images([("coco", role)])
            continue
        with pytest.raises(DataError, match=r"source coco, val: .*000000000003.jpg cannot be decoded"):
            data.require_images([("coco", role)])
    data = data_of(tmp_path, missing="skip", max_missing=0.3)
    assert [sample.image_id for sample in data.samples("coco", "val")] == [1, 2, 4]
    assert len(data.samples("coco", "train")) == 4


@pytest.mark.parametrize("is_thorough", [False, True])
def test_a_picture_in_a_table_is_there_where_its_cell_is(tmp_path, is_thorough):
    whole = noise(tmp_path / "a.png").read_bytes()
    cells = [{"bytes": whole, "path": None}, {"bytes": whole[:200], "path": None}, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"image": cells}), tmp_path / "t.parquet")
    faults = [fault_of(cell(tmp_path / "t.parquet", "image", row), is_thorough) for row in range(3)]
    assert faults[0] is None
    assert "cannot be decoded" in faults[1]
    assert faults[2].endswith("is missing")


def test_of_very_many_training_images_some_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("fusionkit.data.pixels.damage.LOOKED_AT", 3)
    samples = [Sample(place, tmp_path / f"{place}.png", {}) for place in range(7)]
    assert list(Damage().faults(samples, False)) == [0, 3, 6]
    assert list(Damage().faults(samples, True)) == list(range(7))
    assert list(Damage().faults(samples[:3], False)) == [0, 1, 2]
    assert Damage().faults([], False) == {}


def test_a_stamp_is_that_of_the_file_that_a_picture_stands_in(tmp_path):
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [b"a"]}), table)
    path, before = cell(table, "image", 0), stamp_of(cell(table, "image", 0))
    assert before == stamp_of(table) == (table.stat().st_size, table.stat().st_mtime_ns)
    pq.write_table(pa.table({"image": [b"a much longer one"]}), table)
    assert stamp_of(path) not in (None, before)
    (tmp_path / "x.lmdb").mkdir()
    (tmp_path / "x.lmdb/data.mdb").write_bytes(b"123")
    assert stamp_of(tmp_path / "x.lmdb/1.npz")[0] == 3
    assert stamp_of(tmp_path / "none/of/these.jpg") is None
