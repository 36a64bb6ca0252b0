import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.data.vqa_answers import answer_key, leave_one_out, mmf_answer, normalize_answer
from fusionkit.errors import ConfigError, DataError
from fusionkit.scoring.sample_scores import scores_of
from fusionkit.scoring.vqa import (
    VQA,
    agreement,
    always_normalized_accuracy,
    is_spelling_decisive,
    official_accuracy,
    question_notes,
    reach,
    textvqa_accuracy,
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
        sample(question(3, ["red"] * 10)),
    ]
    scores = VQA()([{"question_id": 1, "answer": "yes"}, {"question_id": 3, "answer": "b"}], samples)
    assert scores == {
        "vqa_accuracy": pytest.approx(100 / 3),
        "vqa_accuracy_yes_no": 100,
        "vqa_accuracy_number": 0,
        "vqa_accuracy_other": 0,
        "vqa_agreement": pytest.approx(100 / 3),
    }
    assert next(iter(scores)) == "vqa_accuracy"


def test_normalized_scores_have_their_own_names():
    judged = VQA("evalai").rows([{"question_id": 1, "answer": "A b"}], [sample(question(1, ["b"] * 10))])
    assert scores_of(judged.rows) == {"evalai_accuracy": 100, "evalai_accuracy/other": 100, "agreement": 100}
    assert judged.notes == {"rule": "evalai"}


def score_one(answer, people, kind="other", scorer=VQA()):  # noqa: B008
    judged = scorer.rows([{"question_id": 1, "answer": answer}], [sample(question(1, people, kind))])
    return scores_of(judged.rows), judged.notes


@pytest.mark.parametrize(("people", "official"), [(["hai"], 0), (["hai"] * 2, 100 / 3), (["hai"] * 3, 200 / 3)])
def test_few_answers_keep_their_official_score_and_one_that_can_be_reached(people, official):
    scores, notes = score_one("hai", people)
    assert scores == pytest.approx(
        {"accuracy": official, "accuracy/other": official, "agreement": 100, "agreement/other": 100}
    )
    assert notes["few answers"].startswith("1 of 1 questions have fewer than four answers")
    assert score_one("ba", people)[0] == {
        "accuracy": 0,
        "accuracy/other": 0,
        "agreement": 0,
        "agreement/other": 0,
    }


@pytest.mark.parametrize("person", ["Yes", "Hà Nội", "A", "The", "one", "an toàn", "t-shirt", "?", "İzmir", "Straße"])
def test_an_answer_that_normalising_changes_is_right_by_agreement_in_any_spelling(person):
    for given in (person, person.lower()):
        scores, notes = score_one(given, [person] * 10)
        assert (scores["agreement"], scores["accuracy"]) == (100, 100 * (given == person))
        assert notes["spelling"].startswith("the answers to 1 of 1 questions are all alike")
    assert score_one("wrong", [person] * 10)[0]["agreement"] == 0


def test_letters_that_normalising_takes_away_stay_apart():
    assert answer_key("A") == answer_key(" a ") == "a" != answer_key("The")
    assert (agreement("A", ["A"] * 9 + ["The"]), agreement("The", ["A"] * 9 + ["The"])) == (1, pytest.approx(0.3))
    assert (answer_key("Hà Nội"), answer_key("The Dog."), answer_key("")) == ("hà nội", "dog", "")


def test_ten_answers_as_they_are_published_need_no_note():
    scores, notes = score_one("yes", ["yes"] * 7 + ["No"] * 3)
    assert scores == {"accuracy": 100, "accuracy/other": 100, "agreement": 100}
    assert notes == {"rule": "official"}
    assert "few answers" not in score_one("yes", ["yes"] * 4)[1]  # four are enough
    assert "spelling" in score_one("yes", ["Yes"] * 4)[1]


def test_given_answers_in_another_spelling_are_told():
    scores, notes = score_one("Yes", ["yes"] * 10)
    assert (scores["accuracy"], scores["agreement"]) == (0, 100)
    assert notes["answers"].startswith("1 of the given answers are right but for their spelling")
    found = VQA()([{"question_id": 1, "answer": "Yes"}], [sample(question(1, ["yes"] * 10))])
    assert next(iter(found)) == "vqa_accuracy"  # the answers do not choose what a checkpoint is chosen by


@pytest.mark.parametrize("people", [["có"], ["Yes"] * 10])
def test_a_score_that_cannot_be_reached_does_not_stand_first(people):
    scores = VQA()([{"question_id": 1, "answer": "có"}], [sample(question(1, people))])
    assert next(iter(scores)) == "vqa_agreement"
    assert "vqa_accuracy" in scores


def test_a_few_questions_out_of_reach_leave_the_official_score_first():
    """As in VQA v2, where people sometimes agree on "t-shirt"; of 20 questions one such may be."""
    for people, alone in ((["t-shirt"] * 10, 1.0), (["red"], 0)):
        for count, first in ((20, "accuracy"), (19, "agreement")):
            samples = [sample(*(question(at, ["red"] * 10 if at else people) for at in range(count)))]
            given = [{"question_id": at, "answer": "red" if at else people[0]} for at in range(count)]
            assert reach(samples) == pytest.approx(1 - 1 / count)
            scores = VQA()(given, samples)
            assert next(iter(scores)) == f"vqa_{first}"
            assert scores["vqa_accuracy"] == pytest.approx(100 * (1 - (1 - alone) / count))
            assert scores["vqa_agreement"] == 100
            assert ("vqa_agreement_other" in scores) == (first == "agreement")


def test_reach_is_of_what_people_agree_on():
    assert reach([]) == 1
    assert reach([sample(question(1, [f"{number}th" for number in range(10)]))]) == 1  # no answer has more than 30
    assert reach([sample(question(1, ["hai"] * 3 + ["ba"]))]) == pytest.approx(1)
    assert reach([sample(question(1, ["hai"] * 2))]) == pytest.approx(1 / 3)
    assert reach([sample(question(1, ["ba", "hai", "hai"]))]) == pytest.approx((4 / 9) / (2 / 3))
    assert reach([sample(question(1, ["Yes"] * 10))], always_normalized_accuracy) == 1


def test_agreement_is_the_official_accuracy_where_that_can_be_reached():
    for case in CASES:
        if not is_spelling_decisive(case["answers"]) and normalize_answer(case["pred"]) == case["pred"]:
            assert agreement(case["pred"], case["answers"]) == pytest.approx(case["official"] / 100)
    assert [leave_one_out(count, 10) for count in range(5)] == pytest.approx([0, 0.3, 0.6, 0.9, 1])
    assert [leave_one_out(*each) for each in ((0, 1), (1, 1), (1, 2), (2, 2), (1, 3), (2, 3), (3, 3), (3, 4))] == (
        pytest.approx([0, 1, 0.5, 1, 1 / 3, 2 / 3, 1, 0.75])
    )


def test_the_other_rule_says_nothing_of_spelling_that_it_normalises():
    scores, notes = score_one("yes", ["Yes"] * 10, scorer=VQA("evalai"))
    assert scores == {"evalai_accuracy": 100, "evalai_accuracy/other": 100, "agreement": 100}
    assert notes == {"rule": "evalai"}
    assert score_one("yes", ["Yes"], scorer=VQA("evalai"))[0]["agreement"] == 100


def test_the_rules_english_is_told_of_other_letters():
    assert "language" not in score_one("hai", ["hai"] * 10)[1]
    notes = score_one("đỏ", ["đỏ"] * 10)[1]
    assert notes["language"].startswith("1 of 1 questions have answers with other letters than English")
    assert "spelling" not in notes


def test_marks_are_written_in_one_way_on_both_sides():
    people = [unicodedata.normalize("NFD", "màu đỏ")] * 10
    for given in ("màu đỏ", people[0]):
        assert score_one(given, people)[0]["accuracy"] == 100
    assert score_one("a\0", ["a\0"] * 10)[0]["accuracy"] == 100


def test_types_in_any_script_have_names_of_their_own():
    kinds = ["颜色", "màu", "mẫu", "Màu"]
    samples = [sample(*(question(at, ["x"] * 10, kind) for at, kind in enumerate(kinds)))]
    scores = scores_of(VQA().rows([{"question_id": 1, "answer": "x"}], samples).rows)
    assert {name: score for name, score in scores.items() if "/" in name} == {
        "accuracy/颜色": 0,
        "accuracy/màu_2": 100,
        "accuracy/mẫu": 0,
        "accuracy/màu": 0,
    }


def test_questions_without_answers_are_left_out():
    assert VQA()([{"question_id": 1, "answer": "yes"}], [sample(Text(1, "what?"))]) == {}


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
        VQA()(records, [sample(question(1, ["a"] * 10))])


def test_a_rule_that_there_is_not():
    with pytest.raises(ConfigError, match="there is no VQA rule 'offical'; did you mean 'official'"):
        VQA("offical")


def test_notes_name_how_many_questions_they_are_about():
    people = [["red"], ["red"] * 3, ["red"] * 4, ["The red"] * 4, ["có"] * 5, ["red", "blue", "The red", "red"]]
    asked = [sample(*(question(at, answers) for at, answers in enumerate(people)))]
    notes = question_notes(asked)
    assert list(notes) == ["few answers", "spelling", "language"]
    assert notes["few answers"].startswith("2 of 6 questions have fewer than four answers")
    assert notes["spelling"].startswith("the answers to 1 of 6 questions are all alike")
    assert notes["language"].startswith("1 of 6 questions have answers with other letters")
    assert list(question_notes(asked, "evalai")) == ["few answers", "language"]
    judged = VQA().rows([{"question_id": 2, "answer": "Red"}], asked)
    assert judged.notes == {"rule": "official"} | notes  # what is right but for its spelling is not told a second time
    assert question_notes([sample(question(1, ["red"] * 4))]) == {}


def test_rows_of_questions():
    first = Text(1, "?", {"answers": ["red"] * 10, "answer_type": "Other", "question_type": "Is this a"})
    rows = VQA().rows([{"question_id": 1, "answer": "red"}], [sample(first, Text(2, "?", {"answers": ["b"] * 4}))]).rows
    names = ("accuracy", "accuracy/other", "accuracy/question_type/is_this_a", "agreement")
    assert rows == [
        {"id": 1, "score": 100.0, "image_id": 1, "values": dict.fromkeys(names, 100.0)},
        {"id": 2, "score": 0.0, "image_id": 1, "values": {"accuracy": 0.0, "agreement": 0.0}},
    ]
    assert VQA().schema[0].wanted([sample(first, Text(2, "?"))]) == [1, 2]
    found = VQA()([{"question_id": 1, "answer": "red"}], [sample(first)])
    assert found == {"vqa_accuracy": 100, "vqa_accuracy_other": 100, "vqa_agreement": 100}


def test_imports_no_torch():
    code = "import sys, fusionkit.scoring.vqa; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("Coca-Cola", "coca cola"),
        ("7,000", "7000"),  # the comma goes before the rule for numbers sees it
        ("what's up?", "what 's up"),
        ("The  Two\ttowers", "2 towers"),
        ("dont - stop!", "don't stop"),
        ("3.14.", "3.14"),
        ("A", ""),
        (" ? ", ""),
    ],
)
def test_answers_as_mmf_processes_them(answer, plain):
    assert mmf_answer(answer) == plain


def test_textvqas_rule_always_processes_both_sides():
    people = ["Stop!"] * 7 + ["go", "stop,", "the stop"]  # nine say stop
    assert textvqa_accuracy("STOP", people) == 1.0
    assert textvqa_accuracy("go", people) == pytest.approx(0.3)  # nine of the ten have it among the others, of three
    assert textvqa_accuracy("left", people) == 0.0
    judged = VQA("textvqa").rows([{"question_id": 1, "answer": "Go"}], [sample(question(1, people))])
    assert scores_of(judged.rows)["textvqa_accuracy"] == pytest.approx(30)
    assert judged.notes["rule"] == "textvqa"


def test_textvqas_rule_is_mmfs():
    """TextVQAAccuracyEvaluator, in its own words: each answer in turn is left out, by its place."""
    draw = np.random.default_rng(3)
    words = ["Stop", "stop!", "the stop", "7,000", "7000", "it's", "its", "go", "Go?", "2", "two"]
    for _ in range(300):
        people = [str(word) for word in draw.choice(words, 10)]
        answer = str(draw.choice(words))
        plain = [mmf_answer(each) for each in people]
        rest = [plain[:at] + plain[at + 1 :] for at in range(10)]
        shares = [min(1.0, others.count(mmf_answer(answer)) / 3) for others in rest]
        expected = sum(shares) / 10 if mmf_answer(answer) in plain else 0.0
        assert textvqa_accuracy(answer, people) == pytest.approx(expected)
