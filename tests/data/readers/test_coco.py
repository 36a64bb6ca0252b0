import unicodedata
from pathlib import Path

import pytest

from fusionkit.data.readers.coco import CocoCaptions
from fusionkit.errors import DataError
from tests.data.worlds import captions, karpathy, write_json, write_photos


def official(root: Path, content=None) -> CocoCaptions:
    write_json(root / "captions_train.json", content or captions())
    return CocoCaptions(str(root / "captions_{split}.json"), str(write_photos(root / "images")))


def test_the_official_layout(tmp_path):
    samples = official(tmp_path).read("train")
    assert [sample.image_id for sample in samples] == [1, 2, 3, 4]
    assert [(text.id, text.text) for text in samples[1].texts["captions"]] == [
        (20, "photo 2, said 0"),
        (21, "photo 2, said 1"),
    ]
    assert samples[1].image == tmp_path / "images/000000000002.jpg"


@pytest.mark.parametrize("filepath", ["", "val2014"])
def test_karpathys_layout_and_its_splits(tmp_path, filepath):
    path = write_json(tmp_path / "dataset_coco.json", karpathy(filepath))
    write_photos(tmp_path / "images" / filepath)
    reader = CocoCaptions(str(path), str(tmp_path / "images"))
    assert [sample.image_id for sample in reader.read("train")] == [1, 2]
    assert reader.read("val")[0].image == tmp_path / "images" / filepath / "000000000004.jpg"
    with pytest.raises(DataError, match=r"'tran'; did you mean 'train'\?.*1 of restval, 2 of train, 1 of val"):
        reader.read("tran")


def test_images_in_the_folder_of_their_split_and_under_2014_names(tmp_path):
    write_json(tmp_path / "captions_train2014.json", captions())
    write_photos(tmp_path / "images/train2014", "COCO_train2014_{:012d}.jpg")
    reader = CocoCaptions(str(tmp_path / "captions_{split}.json"), str(tmp_path / "images"))
    assert reader.read("train2014")[0].image.name == "COCO_train2014_000000000001.jpg"


def test_images_without_captions_are_left_out(tmp_path):
    content = captions()
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != 2]
    assert [sample.image_id for sample in official(tmp_path, content).read("train")] == [1, 3, 4]


def test_missing_images_are_counted(tmp_path):
    reader = official(tmp_path)
    for number in (2, 3):
        (tmp_path / f"images/{number:012d}.jpg").unlink()
    with pytest.raises(DataError, match=r"2 of 4 images of .*captions_train.json are not .*missing: 000000000002.jpg"):
        reader.read("train")
    reader.images = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"image folder .*nowhere .* does not exist; check data.root"):
        reader.read("train")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.pop("images"), "has no list 'images' .*keys annotations.*official COCO captions"),
        (lambda c: c["annotations"].clear(), "the list 'annotations' of .* is empty"),
        (lambda c: c["images"].append(c["images"][0]), "has the image 1 twice"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "has the caption 10 twice"),
        (lambda c: c["annotations"][3].update(image_id=9), "caption 21 of .* is about image 9, which"),
        (lambda c: c["annotations"][0].pop("caption"), "an entry of .* has no 'caption'; expected the official COCO"),
    ],
)
def test_wrong_content_is_one_sentence_with_the_file(tmp_path, change, sentence):
    content = captions()
    change(content)
    with pytest.raises(DataError, match=sentence) as told:
        official(tmp_path, content).read("train")
    assert "captions_train.json" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_truncated_and_a_missing_file(tmp_path):
    reader = official(tmp_path)
    path = tmp_path / "captions_train.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(DataError, match=r"captions_train.json is not complete JSON .*download it again"):
        reader.read("train")
    with pytest.raises(DataError, match=r"of split 'trian' does not exist; did you mean 'train'\?"):
        reader.read("trian")


def test_ground_truth_without_file_names_can_be_scored_but_not_shown(tmp_path):
    content = captions()
    content["images"] = [{"id": row["id"]} for row in content["images"]]
    reader = official(tmp_path, content)
    with pytest.raises(DataError, match=r"captions_train.json has no 'file_name'"):
        reader.read("train")
    samples = CocoCaptions(reader.annotations, None).read("train")
    assert [(sample.image_id, len(sample.texts["captions"])) for sample in samples] == [(n, 2) for n in range(1, 5)]


def test_captions_are_read_whatever_their_characters_and_none_is_a_book(tmp_path):
    content = captions()
    broken = ["so happy \ud83d", "nul\0", unicodedata.normalize("NFD", "màu đỏ")]
    for row, text in zip(content["annotations"], broken, strict=False):
        row["caption"] = text
    texts = [text.text for sample in official(tmp_path, content).read("train") for text in sample.texts["captions"]]
    assert texts[:3] == ["so happy \ufffd", "nul\ufffd", "màu đỏ"]
    content["annotations"][1]["caption"] = "x" * 10 * 2**20
    with pytest.raises(
        DataError, match=r"captions_train.json: text 11: a text of 10,485,760 characters is longer than"
    ):
        official(tmp_path, content).read("train")
