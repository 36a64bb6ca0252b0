import pytest

from fusionkit.data.joint import Named
from fusionkit.data.readers.caption_lists import CaptionLists
from fusionkit.errors import DataError
from tests.data.worlds import Listed, make_samples, write_json, write_photo

ROWS = [
    {"image": "a/1.jpg", "caption": "one"},
    {"image": "a/2.jpg", "caption": ["two", "zwei"]},
    {"image": "a/1.jpg", "caption": "uno"},
    {"image": "COCO_train2014_000000000042.jpg", "caption": "coco"},
]


def lists(tmp_path, rows=ROWS) -> CaptionLists:
    for row in ROWS:
        write_photo(tmp_path / "images" / row["image"])
    path = str(write_json(tmp_path / "some.json", rows))
    return CaptionLists({"train": [path]}, str(tmp_path / "images"))


def test_rows_of_one_image_are_joined_and_cocos_are_known(tmp_path):
    samples = lists(tmp_path).read("train")
    assert [(sample.image_id, sample.collection) for sample in samples] == [
        ("a/1.jpg", None),
        ("a/2.jpg", None),
        (42, "coco"),
    ]
    assert [[text.text for text in sample.texts["captions"]] for sample in samples] == [
        ["one", "uno"],
        ["two", "zwei"],
        ["coco"],
    ]
    assert len({text.id for sample in samples for text in sample.texts["captions"]}) == 5


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"'files' name none for the split 'val'; known: train"):
        lists(tmp_path).read("val")
    with pytest.raises(DataError, match=r"some.json holds no rows; expected a list of \{\"image\": path"):
        lists(tmp_path, {}).read("train")
    with pytest.raises(DataError, match=r"an entry of .*some.json has no 'caption'"):
        lists(tmp_path, [{"image": "a/1.jpg"}]).read("train")
    with pytest.raises(DataError, match=r"some.json is malformed \(row 2 is .*'caption': 5"):
        lists(tmp_path, [ROWS[0], {"image": "a/1.jpg", "caption": 5}]).read("train")
    with pytest.raises(DataError, match=r"1 of 1 images of .*some.json are not under .*first missing: b.jpg"):
        lists(tmp_path, [{"image": "b.jpg", "caption": "x"}]).read("train")


def test_named_readers_are_asked_by_name(tmp_path):
    one, two = make_samples(tmp_path, range(2)), make_samples(tmp_path, range(2, 3))
    named = Named({"coco": Listed(train=one), "web": Listed(all=two)})
    assert named.read("coco/train") == one
    assert named.read("web/all") == two
    for split in ("train", "cooc/train"):
        with pytest.raises(DataError, match=f"the split '{split}' is no reader/split; .*known: coco, web"):
            named.read(split)
