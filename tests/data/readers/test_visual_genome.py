import json

import pytest

from fusionkit.data.joint import merge_samples
from fusionkit.data.readers.visual_genome import VisualGenome
from fusionkit.errors import DataError
from tests.recipes.world import make_world


@pytest.fixture(scope="module")
def vg(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("vg")) / "vg"


def reader(vg, **files) -> VisualGenome:
    files = {key: str(vg / f"{name}.json") if isinstance(name, str) else name for key, name in files.items()}
    return VisualGenome(str(vg / "images"), str(vg / "image_data.json"), **files)


def test_questions_with_one_answer_and_regions_with_a_box_of_the_same_images(vg):
    samples = reader(vg, questions="question_answers", regions="region_descriptions").read("train")
    assert [sample.image.name for sample in samples] == [f"{number}.jpg" for number in range(101, 107)]
    first = samples[0]
    assert (first.image_id, first.collection, first.size) == (101, "visual_genome", (40, 32))
    (question,) = first.texts["questions"]
    assert (question.id, question.text, question.facts) == ("vg101", "who is it?", {"answers": ["Cat"]})
    assert [text.facts["box"] for text in first.texts["expressions"]] == [(4.0, 6.0, 8.0, 12.0)] * 2


def test_images_that_are_cocos_are_known_as_such(vg):
    last = reader(vg, questions="question_answers").read("train")[-1]
    assert (last.image_id, last.collection, last.image.name, last.photo) == (106, "visual_genome", "106.jpg", "coco/7")


def test_regions_as_captions(vg):
    sample = reader(vg, regions="region_descriptions", as_captions=True).read("train")[0]
    assert list(sample.texts) == ["captions"]
    assert sample.texts["captions"][1].text == "a picture of two dogs, left of a blue car"


def test_empty_boxes_are_left_out_and_mistakes_are_one_sentence(vg, tmp_path):
    rows = json.loads((vg / "region_descriptions.json").read_text())[:1]
    rows[0]["regions"][0]["width"] = 0
    (tmp_path / "regions.json").write_text(json.dumps(rows))
    (sample,) = reader(vg, regions=str(tmp_path / "regions.json")[:-5]).read("train")
    assert [text.id for text in sample.texts["expressions"]] == ["vg1011"]
    rows[0]["regions"][1]["image_id"] = 9
    (tmp_path / "regions.json").write_text(json.dumps(rows))
    with pytest.raises(
        DataError, match=r"regions.json is about image 9, which .*image_data.json lacks; take both from"
    ):
        reader(vg, regions=str(tmp_path / "regions.json")[:-5]).read("train")
    with pytest.raises(DataError, match=r"Visual Genome has no split 'val'; all of it is 'train'"):
        reader(vg, questions="question_answers").read("val")
    with pytest.raises(
        DataError, match=r"an entry of .*image_data.json .*; expected the Visual Genome question_answers"
    ):
        reader(vg, questions="image_data").read("train")


@pytest.mark.parametrize(
    ("file", "rows", "kind"),
    [("region_descriptions", "regions", "expressions"), ("question_answers", "qas", "questions")],
)
def test_a_row_that_is_there_twice_is_read_once_and_told(vg, tmp_path, file, rows, kind):
    images = json.loads((vg / f"{file}.json").read_text())
    again = images[0][rows][0]
    images[0][rows].append(dict(again))
    images.append(images[1])  # a whole image
    (tmp_path / f"{file}.json").write_text(json.dumps(images))
    option = {"regions": "regions", "qas": "questions"}[rows]
    count, more = sum(len(image[rows]) for image in images), 1 + len(images[1][rows])
    with pytest.warns(UserWarning, match=rf"{file}.json has {more} of its {count} rows twice; each is read once"):
        samples = reader(vg, **{option: str(tmp_path / file)}).read("train")
    assert samples == reader(vg, **{option: file}).read("train")
    assert sum(len(sample.texts[kind]) for sample in samples) == count - more
    images[0][rows][-1]["phrase" if kind == "expressions" else "question"] = (
        "another"  # an id of two things is left to be refused
    )
    (tmp_path / f"{file}.json").write_text(json.dumps(images))
    with pytest.warns(UserWarning, match=rf"has {more - 1} of its"):
        samples = reader(vg, **{option: str(tmp_path / file)}).read("train")
    with pytest.raises(DataError, match="twice"):
        merge_samples([("vg", samples)])
