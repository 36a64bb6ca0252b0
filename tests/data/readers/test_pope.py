"""POPE in its two published layouts, drawn small."""

import json

import pytest

from fusionkit.data.readers.pope import Pope
from fusionkit.errors import DataError
from tests.data.worlds import write_photo


def row(number, image=1, label="yes", thing="a cat", **changes):
    asked = {
        "question_id": number,
        "image": f"COCO_val2014_{image:012d}.jpg",
        "text": f"Is there {thing} in the image?",
    }
    return asked | {"label": label} | changes


def pope(root, *rows, as_list=False, **options):
    text = json.dumps(list(rows), indent=4) if as_list else "".join(json.dumps(each) + "\n" for each in rows)
    (root / "coco_pope_random.json").write_text(text)
    for image in (1, 2):
        write_photo(root / f"val2014/COCO_val2014_{image:012d}.jpg")
    return Pope(f"{root}/coco_pope_{{split}}.json", f"{root}/val2014", **options)


@pytest.mark.parametrize("as_list", [False, True])
def test_questions_stand_by_photo_with_a_caption_for_each_answer(tmp_path, as_list):
    rows = [row(1), row(2, 2, "no", "an apple"), row(3, 1, "no", "a dining table")]
    samples = pope(tmp_path, *rows, as_list=as_list).read("random")
    assert [[text.id for text in sample.texts["questions"]] for sample in samples] == [[1, 3], [2]]
    assert samples[0].image.name == "COCO_val2014_000000000001.jpg"
    assert samples[0].texts["questions"][1].facts == {"label": "no"}
    said = {text.id: (text.text, text.facts) for sample in samples for text in sample.texts["captions"]}
    assert [text for text, _ in said.values()] == [
        "There is a cat in the image.",
        "There is no cat in the image.",
        "There is a dining table in the image.",
        "There is no dining table in the image.",
        "There is an apple in the image.",
        "There is no apple in the image.",
    ]
    assert said["2/no"][1] == {"pair": 2, "says": "no", "label": "no"}


def test_captions_are_said_otherwise_or_left_out(tmp_path):
    options = {"present": "{question} yes", "absent": "{question} no"}
    (sample,) = pope(tmp_path, row(1), **options).read("random")
    assert [text.text for text in sample.texts["captions"]] == [
        f"Is there a cat in the image? {a}" for a in ("yes", "no")
    ]
    (sample,) = pope(tmp_path, row(1, text="Can you see it?"), present=None).read("random")
    assert set(sample.texts) == {"questions"}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([row(1), row(1)], r"coco_pope_random\.json has the question 1 twice"),
        ([row(1, label="maybe")], "question 1 of .* has the label 'maybe', but has to be yes or no"),
        ([row(1, text="Can you see it?")], r"question 1 of .* not 'Is there a THING .*reader\.present=null"),
        ([{"question_id": 1, "image": "a.jpg", "text": "?"}], "an entry of .* has no 'label'; expected the POPE json"),
        ([row(1, 3)], "1 of 1 images of .* are not under"),
        ([row(1) | {"image": "../../x.jpg"}], "which lies outside of its folder"),
        ([row(1) | {"image": 4}], "is malformed"),
        ([], "is empty"),
    ],
)
def test_a_mistake_in_pope_is_one_sentence(tmp_path, rows, sentence):
    with pytest.raises(DataError, match=sentence):
        pope(tmp_path, *rows).read("random")


def test_an_empty_list_and_another_setting_are_told(tmp_path):
    with pytest.raises(DataError, match=r"the list of .*coco_pope_random\.json is empty"):
        pope(tmp_path, as_list=True).read("random")
    with pytest.raises(DataError, match="of split 'populer' does not exist; known: random"):
        pope(tmp_path, row(1)).read("populer")
