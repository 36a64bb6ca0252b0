import pytest

from fusionkit.data.readers.vqa import VQAv2
from fusionkit.errors import DataError
from tests.data.worlds import annotations, questions, write_json, write_photos


def make_reader(root, asked=None, answered=None, split="train2014") -> VQAv2:
    write_json(root / f"{split}_questions.json", asked or questions())
    write_json(root / f"{split}_annotations.json", answered or annotations())
    write_photos(root / "train2014", "COCO_train2014_{:012d}.jpg")
    return VQAv2(str(root / "{split}_questions.json"), str(root / "{split}_annotations.json"), str(root))


def test_questions_are_grouped_by_image_with_their_answers(tmp_path):
    samples = make_reader(tmp_path).read("train2014")
    assert [sample.image_id for sample in samples] == [1, 2, 3, 4]
    question = samples[2].texts["questions"][1]
    assert (question.id, question.text) == (31, "what is 1?")
    assert question.facts == {
        "answers": ["red"] * 9 + ["a rose"],
        "answer_type": "other",
        "question_type": "what is",
        "multiple_choice_answer": "red",
    }


def test_secret_answers_are_not_asked_for(tmp_path):
    write_json(tmp_path / "test-dev2015_questions.json", questions() | {"data_subtype": "test-dev2015"})
    write_photos(tmp_path / "test2015", "COCO_test2015_{:012d}.jpg")
    for pattern in (str(tmp_path / "{split}_annotations.json"), None):
        samples = VQAv2(str(tmp_path / "{split}_questions.json"), pattern, str(tmp_path)).read("test-dev2015")
        assert samples[0].image.parent.name == "test2015"
        assert samples[0].texts["questions"][0].facts == {}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda q, a: q["questions"].pop(3), "annotations.json annotates question 21, which .*questions.json lacks"),
        (
            lambda q, a: a["annotations"].pop(3),
            "question 21 of .*questions.json has no annotation in .*annotations.json",
        ),
        (lambda q, a: q["questions"].append(q["questions"][0]), "has the question 10 twice"),
        (lambda q, a: a["annotations"].append(a["annotations"][0]), "annotation of question 10 twice"),
        (lambda q, a: a["annotations"][0].update(image_id=3), "question 10 is about image 1 in .* but 3 in"),
        (
            lambda q, a: a["annotations"][0].pop("answers"),
            "annotations.json has no 'answers'; expected the VQA v2 annot",
        ),
        (lambda q, a: q.pop("questions"), "has no list 'questions'"),
    ],
)
def test_files_that_disagree_are_one_sentence(tmp_path, change, sentence):
    asked, answered = questions(), annotations()
    change(asked, answered)
    with pytest.raises(DataError, match=sentence):
        make_reader(tmp_path, asked, answered).read("train2014")


def test_answers_and_types_are_read_in_one_spelling(tmp_path):
    content = annotations()
    content["annotations"][0]["answers"][0]["answer"] = "e\u0301\0"
    content["annotations"][0]["answer_type"] = "ma\u0300u"
    facts = make_reader(tmp_path, answered=content).read("train2014")[0].texts["questions"][0].facts
    assert (facts["answers"][0], facts["answer_type"]) == ("é\ufffd", "màu")
    content["annotations"][0]["answers"][0]["answer"] = "a" * 10 * 2**20
    with pytest.raises(DataError, match=r"annotations.json: a text of 10,485,760 characters"):
        make_reader(tmp_path, answered=content).read("train2014")


def test_vqa_cp_is_bare_lists_whose_rows_name_the_part_of_coco(tmp_path):
    """Images of both parts are in each of its splits."""
    asked = [
        row | {"coco_split": "val2014" if row["image_id"] == 2 else "train2014"} for row in questions()["questions"]
    ]
    reader = make_reader(tmp_path, asked, annotations()["annotations"], "train")
    moved = tmp_path / "train2014/COCO_train2014_000000000002.jpg"
    (tmp_path / "val2014").mkdir()
    moved.rename(tmp_path / "val2014/COCO_val2014_000000000002.jpg")
    samples = reader.read("train")
    assert [sample.image.parent.name for sample in samples] == ["train2014", "val2014", "train2014", "train2014"]
    assert samples[1].texts["questions"][0].facts["multiple_choice_answer"] == "red"
    write_json(tmp_path / "train_questions.json", [])
    with pytest.raises(DataError, match=r"has no list 'questions' \(it has a list\)"):
        reader.read("train")
