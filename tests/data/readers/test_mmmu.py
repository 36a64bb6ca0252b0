"""MMMU's parquet files as the hub has them, and its rows as json with pictures in files."""

import json

import pytest

from fusionkit.data.images import decode
from fusionkit.data.readers.mmmu import MMMU
from fusionkit.errors import DataError
from tests.data.worlds import write_photo
from tests.probe_worlds import mmmu_parquet, mmmu_row


def test_the_hubs_parquet_is_read_with_its_pictures(tmp_path):
    rows = [
        mmmu_row("validation_Art_1", options="['a {red} fox', \"the wolf's den\"]", answer="B"),
        mmmu_row("validation_Art_2", question_type="open", options="[]", answer="['7', 'seven']"),
    ]
    mmmu_parquet(tmp_path / "Art/validation-00000-of-00001.parquet", rows, pictures=[(1, 2), (1,)])
    mmmu_parquet(tmp_path / "Art/test-00000-of-00001.parquet", [mmmu_row("test_Art_1", answer="?")], pictures=[(3,)])
    mmmu_parquet(
        tmp_path / "Basic_Medical_Science/validation.parquet", [mmmu_row("validation_Basic_Medical_Science_9")], [(2,)]
    )
    one, two, three = MMMU(str(tmp_path)).read("validation")
    (question,) = one.texts["questions"]
    assert (one.image_id, question.id) == ("validation_Art_1", "validation_Art_1")
    assert question.text == "What is <image 1>?\n(A) a {red} fox\n(B) the wolf's den"
    assert question.facts == {
        "options": ["a {red} fox", "the wolf's den"],
        "answer": "B",
        "subject": "Art",
        "images": 2,
    }
    assert [text.text for text in one.texts["captions"]] == [
        "What is <image 1>? a {red} fox",
        "What is <image 1>? the wolf's den",
    ]
    assert [text.facts["label"] for text in one.texts["captions"]] == ["foil", "caption"]
    assert [text.id for text in one.texts["captions"]] == ["validation_Art_1/A", "validation_Art_1/B"]
    assert decode(one.image, 8).size == (32, 24)
    assert set(two.texts) == {"questions"}
    assert (two.texts["questions"][0].text, two.texts["questions"][0].facts["answer"]) == (
        "What is <image 1>?",
        ["7", "seven"],
    )
    assert (three.texts["questions"][0].facts["subject"], three.texts["questions"][0].facts["images"]) == (
        "Basic_Medical_Science",
        1,
    )
    (secret,) = MMMU(str(tmp_path)).read("test")
    assert secret.texts["questions"][0].facts["answer"] is None


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_rows_with_pictures_in_files(ending, tmp_path):
    write_photo(tmp_path / "pictures/fox.png", 1)
    rows = [mmmu_row("validation_Art_1") | {"image_1": None, "image_2": "fox.png"}]
    path = tmp_path / f"rows.{ending}"
    path.write_text(json.dumps(rows) if ending == "json" else json.dumps(rows[0]))
    (sample,) = MMMU(str(path), str(tmp_path / "pictures"), choice="{option}", asked="{options} {question} {}").read(
        "validation"
    )
    assert sample.image == tmp_path / "pictures/fox.png"
    assert [text.text for text in sample.texts["captions"]] == ["a fox", "a wolf"]
    assert sample.texts["questions"][0].text == "(A) a fox\n(B) a wolf What is <image 1>? {}"
    (scored,) = MMMU(str(path)).read("validation")  # no picture is looked for
    assert scored.image_id == sample.image_id


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_1": None}, "question validation_Art_1 of .* has no picture; add it as image_1"),
        ({"image_1": "../../etc/passwd.png"}, "lies outside of its folder|outside"),
        ({"options": "__import__('os').system('true')"}, "has no list of 2 to 26 options"),
        ({"options": ["one"]}, "has no list of 2 to 26 options"),
        ({"options": [str(each) for each in range(27)]}, "has no list of 2 to 26 options"),
        ({"answer": "C"}, "has the answer 'C', but its options are A to B"),
        ({"id": "first"}, "'first' of .* is not called SPLIT_SUBJECT_NUMBER"),
    ],
)
def test_rows_that_are_wrong_are_named(change, words, tmp_path):
    write_photo(tmp_path / "fox.png", 1)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([mmmu_row("validation_Art_1") | {"image_1": "fox.png"} | change]))
    with pytest.raises(DataError, match=words):
        MMMU(str(path), str(tmp_path)).read("validation")


def test_what_is_missing_or_twice_is_named(tmp_path):
    with pytest.raises(DataError, match="has no SUBJECT/validation"):
        MMMU(str(tmp_path)).read("validation")
    write_photo(tmp_path / "fox.png", 1)
    rows = [mmmu_row("validation_Art_1") | {"image_1": "fox.png"}] * 2
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="question"):
        MMMU(str(tmp_path / "rows.json")).read("validation")
    del rows[0]["answer"]
    (tmp_path / "rows.json").write_text(json.dumps(rows[:1]))
    with pytest.raises(DataError, match="answer"):
        MMMU(str(tmp_path / "rows.json")).read("validation")
