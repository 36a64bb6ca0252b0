import os
from pathlib import Path

import pytest

from fusionkit.data.identity import apart, check_id, coco_number, photo_by_name, photo_of, short_names
from fusionkit.data.images import image_key, photo_keys
from fusionkit.data.readers.caption_lists import CaptionLists
from fusionkit.data.readers.coco import CocoCaptions
from fusionkit.data.readers.flickr30k_entities import Flickr30kEntities
from fusionkit.data.readers.snli_ve import SnliVE
from fusionkit.data.readers.vqa import VQAv2
from fusionkit.data.sample import Sample
from fusionkit.errors import DataError
from tests.data.worlds import annotations, captions, karpathy, questions, write_json, write_photo, write_photos


@pytest.mark.parametrize(
    ("name", "photo"),
    [
        ("val2017/000000000042.jpg", "coco/42"),
        ("COCO_val2014_000000000042.jpg", "coco/42"),
        ("coco_train2014_000000000042.npz", "coco/42"),
        ("coco_train_000000000042.npz", "coco/42"),
        ("00000000042.jpg", None),
        ("my_000000000042.jpg", None),
        ("202611301030.jpg", None),  # a date and time of 12 digits, which COCO's numbers do not fill
        ("COCO_val2014_000001234567.jpg", "coco/1234567"),
        ("000000000042_1.jpg", None),
        ("flickr30k-images/1000092795.jpg", "flickr30k/1000092795"),
        ("Flickr8k/1000268201_693b08cb0e.jpg", "flickr30k/1000268201"),
        ("x/1000268201_693b08cb0.jpg", None),
        ("regions/flickr30k_001000092795.npz", "flickr30k/1000092795"),
        ("sbu/1000092795.jpg", None),
        ("holiday.jpg", None),
    ],
)
def test_a_photo_is_known_by_the_name_of_its_file(name, photo):
    assert photo_by_name(Path(name)) == photo


def test_what_nobody_names_is_the_file_itself(tmp_path):
    path = write_photo(tmp_path / "all/1.jpg")
    (tmp_path / "linked.jpg").symlink_to(path)
    (tmp_path / "train").symlink_to(tmp_path / "all")
    one = photo_of(None, 1, path)
    assert one == os.path.realpath(path)
    assert photo_of(None, "x", tmp_path / "linked.jpg") == photo_of(None, 7, tmp_path / "train/1.jpg") == one
    assert photo_of(None, 1, tmp_path / "other/1.jpg") != one
    assert photo_of("mine", 1, path) == "mine/1"
    assert photo_of(None, 1, Path()) == "/1" != photo_of(None, 2, Path())


def test_the_key_of_a_pair_has_both_photos(tmp_path):
    first, second = Path("a.png"), Path("b.png")
    keys = photo_keys(Sample("p", first, {}, others=(second,)))
    assert keys == (image_key(Sample(1, first, {})), image_key(Sample(2, second, {})))
    assert photo_keys(Sample(9, first, {}, photo="coco/42")) == (image_key(Sample(42, second, {}, collection="coco")),)
    said = Sample("p", first, {}, others=(second,), collection="pairs")
    assert photo_keys(said)[1] == image_key(Sample("p/1", first, {}, collection="pairs"))


def test_one_photo_has_one_key_in_every_layout(tmp_path):
    """COCO's image 4 by Karpathy, by the official files, by VQA's ids, in numbers and texts, and by lists of either year."""
    images = write_photos(tmp_path / "images", "COCO_val2014_{:012d}.jpg")
    write_photos(tmp_path / "new/val2017")
    write_json(tmp_path / "k.json", karpathy())
    write_json(tmp_path / "captions_val2014.json", captions())
    write_json(tmp_path / "q.json", questions())
    write_json(tmp_path / "a.json", annotations())
    text = {
        name: [row | {"image_id": str(row["image_id"])} for row in rows]
        for name, rows in questions().items()
        if name == "questions"
    }
    write_json(tmp_path / "tq.json", text)
    write_json(tmp_path / "list.json", [{"image": "./val2017/000000000004.jpg", "caption": "x"}])
    write_json(tmp_path / "old.json", [{"image": "COCO_val2014_000000000004.jpg", "caption": "x"}])
    samples = [
        *CocoCaptions(f"{tmp_path}/k.json", str(images)).read("val"),
        CocoCaptions(f"{tmp_path}/captions_{{split}}.json", str(images)).read("val2014")[3],
        VQAv2(f"{tmp_path}/q.json", f"{tmp_path}/a.json", str(images)).read("val2014")[3],
        VQAv2(f"{tmp_path}/tq.json", None, str(images)).read("val2014")[3],
        *CaptionLists({"val": [f"{tmp_path}/list.json"]}, f"{tmp_path}/new").read("val"),
        *CaptionLists({"val": [f"{tmp_path}/old.json"]}, str(images)).read("val"),
    ]
    assert {image_key(sample) for sample in samples} == {image_key(Sample(4, Path(), {}, collection="coco"))}
    assert [sample.image_id for sample in samples] == [4, 4, 4, "4", 4, 4]


def test_a_flickr_photo_has_one_key_in_every_layout(tmp_path):
    images = tmp_path / "flickr30k-images"
    write_photo(images / "1000092795.jpg")
    write_photo(tmp_path / "Flicker8k/1000092795_7e7c20fd7a.jpg")
    rows = [{"filename": "1000092795.jpg", "imgid": 0, "split": "val", "sentences": [{"raw": "x", "sentid": 0}]}]
    write_json(tmp_path / "30k.json", {"images": rows})
    write_json(tmp_path / "8k.json", {"images": [{**rows[0], "filename": "1000092795_7e7c20fd7a.jpg"}]})
    write_json(tmp_path / "list.json", [{"image": "flickr30k-images/1000092795.jpg", "caption": "x"}])
    row = {"pairID": "1", "gold_label": "neutral", "sentence2": "x", "Flikr30kID": "1000092795"}
    write_json(tmp_path / "ve.jsonl", row)
    samples = [
        *CocoCaptions(f"{tmp_path}/30k.json", str(images)).read("val"),
        *CocoCaptions(f"{tmp_path}/30k.json", str(images), "flickr30k").read("val"),
        *CocoCaptions(f"{tmp_path}/8k.json", f"{tmp_path}/Flicker8k").read("val"),
        *CaptionLists({"val": [f"{tmp_path}/list.json"]}, str(tmp_path)).read("val"),
        *SnliVE(f"{tmp_path}/ve.jsonl", str(images)).read("val"),
    ]
    assert len({image_key(sample) for sample in samples}) == 1
    assert Flickr30kEntities("x", None).collection == "flickr30k"


def test_numbers_of_karpathys_layout_are_ids_only_where_all_files_are_numbered(tmp_path):
    def read(*names, **more):
        rows = [
            {"filename": name, "imgid": place, "split": split, "sentences": [{"raw": "x", "sentid": place}], **more}
            for place, (name, split) in enumerate(zip(names, ("train", "val"), strict=True), start=1)
        ]
        write_json(tmp_path / "k.json", {"images": rows})
        reader = CocoCaptions(f"{tmp_path}/k.json", None, "own")
        return [sample.image_id for split in ("train", "val") for sample in reader.read(split)]

    assert read("2.jpg", "cat.jpg") == [1, 2]
    assert read("7.jpg", "8.jpg") == [7, 8]
    with pytest.raises(DataError, match="the image 9 twice"):  # of another split: no less one id for two
        read("7.jpg", "8.jpg", cocoid=9)


def test_ids_are_told_apart_by_their_groups_only_where_they_have_to_be():
    assert apart("it", ["a", "b"], [1, "2"], [0, 1]) == [1, "2"]
    assert apart("it", ["a", "b"], [1, "1"], [0, 1]) == ["a/1", "b/1"]
    assert apart("it", ["a", "b", "b"], [1, 1, 2], [7, 7, 8]) == [1, 1, 2]  # one thing twice
    assert apart("it", ["a", "b", "b"], [1, 1, 2], [7, 8, 9]) == ["a/1", "b/1", "b/2"]
    with pytest.raises(DataError, match="an image has the id 1 twice in b; ids must be unique"):
        apart("an image", ["a", "b", "b"], [3, 1, 1], [7, 8, 9])


@pytest.mark.parametrize("wrong", [None, True, 1.0, [1]])
def test_an_id_is_a_number_or_a_text(wrong):
    with pytest.raises(DataError, match=r"f.json has the image with the id .*ids are whole numbers or texts"):
        check_id(wrong, "the image", Path("f.json"))
    check_id(0, "the image", Path("f.json"))
    check_id("a", "the image", Path("f.json"))


def test_short_names_have_as_many_folders_as_needed():
    assert short_names([Path("/d/a/val.json"), Path("/d/b/val.json")]) == ["a/val", "b/val"]
    assert short_names([Path("/d/a/val.json"), Path("/d/b/test.json")]) == ["val", "test"]
    with pytest.raises(DataError, match=r"/d/val.json is listed twice"):
        short_names([Path("/d/val.json")] * 2)


def test_cocos_number():
    assert [coco_number(name) for name in ("a/COCO_val2014_000000000042.jpg", "000000000042", "42.jpg")] == [
        42,
        42,
        None,
    ]
