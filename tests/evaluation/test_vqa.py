import json
import subprocess
import sys
from pathlib import Path

import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.evaluation.judging import scores_of
from fusionkit.evaluation.vqa import (
    VQAMeasure,
    always_normalized_accuracy,
    normalize_answer,
    official_accuracy,
    score_vqa,
)

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "vqa_official_cases.json").read_text())


def question(key, answers, kind="other"):
    return Text(key, "what?", {"answers": answers, "answer_type": kind})


def sample(*questions):
    return Sample(1, Path("1.png"), {"questions": questions})


def test_the_cases_are_there():
    assert len(CASES) == 30


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_official_accuracy(case):
    assert 100 * official_accuracy(case["pred"], case["answers"]) == pytest.approx(case["official"])


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("The Dog.", "dog"),
        ("dont know", "don't know"),
        ("couldnt've, couldn'tve", "couldn't've couldn't've"),
        ("somebody'd", "somebodyd"),  # the wrong way round in the published table
        ("shes", "shes"),  # not in it
        ("im", "im"),  # only as "Im", which lower-casing never leaves
        ("none or ten", "0 or 10"),
        ("x" + "." * 40, "x" + "." * 8),  # re.UNICODE passed as the count: 32 periods go
        ("a 1,000 b-c d/e", "1000 bc de"),  # a thousands comma anywhere makes every mark vanish
        ("b-c d/e", "b c d e"),
        ("3.5 3.", "3.5 3"),
        ("\ttwo\nthe ", "2"),
    ],
)
def test_normalize_answer(raw, expected):
    assert normalize_answer(raw) == expected


def test_normalize_answer_as_the_official_script_did():
    """Random strings and all its contractions, with what GT-Vision-Lab/VQA's vqaEval.py made of them under Python 3."""
    words = json.loads((DATA / "vqa_official_words.json").read_text())
    assert len(words) > 350
    assert {raw: normalize_answer(raw) for raw in words} == words


def test_always_normalized_differs_where_humans_agree():
    assert official_accuracy("Yes", ["yes"] * 10) == 0
    assert always_normalized_accuracy("Yes", ["yes"] * 10) == 1


def test_score_by_answer_type_and_missing_prediction():
    samples = [
        sample(question(1, ["yes"] * 10, "yes/no"), question(2, ["2"] * 10, "number")),
        sample(question(3, ["a"] * 10)),
    ]
    scores = score_vqa([{"question_id": 1, "answer": "yes"}, {"question_id": 3, "answer": "b"}], samples)
    assert scores == {
        "vqa_accuracy": pytest.approx(100 / 3),
        "vqa_accuracy_yes_no": 100,
        "vqa_accuracy_number": 0,
        "vqa_accuracy_other": 0,
    }


def test_normalized_scores_have_their_own_names():
    judged = VQAMeasure("evalai")([{"question_id": 1, "answer": "A b"}], [sample(question(1, ["b"] * 10))])
    assert scores_of(judged.rows) == {"evalai_accuracy": 100, "evalai_accuracy/other": 100}
    assert judged.notes == {"rule": "evalai"}


def test_questions_without_answers_are_left_out():
    assert score_vqa([{"question_id": 1, "answer": "yes"}], [sample(Text(1, "what?"))]) == {}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"question_id": 9, "answer": "a"}], "unknown question_id 9"),
        ([{"question_id": 1, "answer": "a"}, {"question_id": 1, "answer": "b"}], "two predictions for question_id 1"),
        ([{"answer": "a"}], "lacks 'question_id'"),
    ],
)
def test_bad_records(records, message):
    with pytest.raises(DataError, match=message):
        score_vqa(records, [sample(question(1, ["a"] * 10))])


def test_imports_no_torch():
    code = "import sys, fusionkit.evaluation.vqa; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
