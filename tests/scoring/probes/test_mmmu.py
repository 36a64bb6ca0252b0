"""MMMU's measures: answers in words as its script reads them, and the option that scores highest."""

from pathlib import Path

import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError
from fusionkit.scoring.bootstrap import intervals
from fusionkit.scoring.foreign_results import listed, recognised
from fusionkit.scoring.probes.mmmu import DISCIPLINES, HOME, MMMU, MMMUChoices
from fusionkit.scoring.probes.mmmu_answers import choice_of, is_open_right, letters
from fusionkit.scoring.sample_scores import scores_of

OPTIONS = ["a red fox", "a grey wolf", "a brown bear"]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("The answer is (A) or (B)", "B"),  # the last
        ("(B), not A", "B"),  # brackets count before bare letters
        ("A or B", "B"),
        ("b", None),
        ("D", None),
        ("ABC", None),
        ("a grey wolf", None),  # too short to be searched for an option
        ("I think that it is A grey wolf in the snow", "A"),  # a bare letter counts first
        ("it is surely the one of a Grey Wolf", "B"),
        ("not a red fox, rather a brown bear it is", "C"),
        ("none of them can be seen here at all", None),
        ("", None),
        ("'B'!", "B"),
        ("!,B", None),  # marks go one kind after the other, the comma before the !
    ],
)
def test_the_letter_of_an_answer(answer, letter):
    assert choice_of(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "known", "right"),
    [
        ("4", "4", True),
        ("4.0", "4", True),
        ("4.004", "4", True),  # to two decimals
        ("4.01", "4", False),
        ("12,345", "12345", True),
        ("1.5e2", "150", True),
        ("so the result is 20 cm", "20", True),
        ("120", "20", False),
        ("x = 7", "7", True),
        ("y = 7\nit is 3", "7", False),  # an equation counts in the last line alone
        ("it is 3\ny = 7", "7", True),
        ("The Eiffel tower.", "eiffel tower", True),
        ("tower", "eiffel tower", False),
        ("could be paris", ["london", "Paris"], True),
        ("b", "b", True),
        ("abc", "b", False),  # a letter has to stand alone
        ("a b", "b", True),
        ("the answer is :", "x", False),
        ("is answer ", "answer", True),
    ],
)
def test_answers_to_open_questions(answer, known, right):
    assert is_open_right(answer, known) is right


def test_there_are_thirty_subjects():
    assert len(HOME) == sum(map(len, DISCIPLINES.values())) == 30
    assert len(DISCIPLINES) == 6
    assert letters(3) == ["A", "B", "C"]


def asked(number, subject, options, answer, images=1):
    name = f"validation_{subject}_{number}"
    facts = {"options": options, "answer": answer, "subject": subject, "images": images}
    said = tuple(
        Text(f"{name}/{letter}", option, {"pair": name, "label": "caption" if letter == answer else "foil"})
        for letter, option in zip("ABCD", options, strict=False)
    )
    texts = {"questions": (Text(name, "which?", facts),)} | ({"captions": said} if said else {})
    return Sample(name, Path(f"{name}.png"), texts)


WORLD = [
    asked(1, "Art", OPTIONS, "B"),
    asked(2, "Art", OPTIONS, "A", images=2),
    asked(1, "Math", ["x", "y"], "B"),
    asked(2, "Math", [], "7"),
    asked(3, "Math", [], ["7", "seven"]),
    asked(4, "Math", ["x", "y"], None),  # of the test split
    asked(1, "Heraldry", ["x", "y"], "A"),
]
NAMES = [sample.image_id for sample in WORLD]


def test_answers_in_words_are_counted_by_subject_and_discipline():
    answers = ["(B)", "the brown one", "B", "x = 7", "eight", "A", "A"]
    records = [{"question_id": name, "answer": answer} for name, answer in zip(NAMES, answers, strict=True)]
    judged = MMMU().rows(records, WORLD)
    assert [row["score"] for row in judged.rows] == [100, 0, 100, 100, 0, 100]
    scores = scores_of(judged.rows)
    expected = {"accuracy": 400 / 6, "accuracy/art_and_design": 50, "accuracy/science": 200 / 3}
    expected |= {"accuracy/subject/art": 50, "accuracy/subject/math": 200 / 3, "accuracy/subject/heraldry": 100}
    assert scores == pytest.approx(expected)
    assert list(MMMU().summary(scores, WORLD)) == ["accuracy", "accuracy/art_and_design", "accuracy/science"]
    assert judged.notes["images"] == "1 questions name several pictures, of which the first alone is shown"
    low, high = intervals(judged.rows, 200)["accuracy"]
    assert low < 400 / 6 < high
    assert [row["score"] for row in MMMU().rows(records[1:], WORLD).rows] == [0, 0, 100, 100, 0, 100]


def test_the_option_that_scores_highest_is_chosen():
    values = {"Art_1": [1, 3, 2], "Art_2": [5, 5, 1], "Math_1": [0, -1], "Math_4": [9, 1], "Heraldry_1": [2, 1]}
    records = [
        {"caption_id": f"validation_{name}/{letter}", "cosine": float(value)}
        for name, scores in values.items()
        for letter, value in zip("ABC", scores, strict=False)
    ]
    judged = MMMUChoices("cosine").rows(records, WORLD)
    assert [row["id"].partition("_")[2] for row in judged.rows] == ["Art_1", "Art_2", "Math_1", "Heraldry_1"]
    assert [row["score"] for row in judged.rows] == [100, 0, 0, 100]  # two that are equal are none
    assert judged.notes["left out"] == "2 open questions, which have no options"
    assert "cosine" in judged.notes["scored by"]
    shown = MMMUChoices("cosine").examples(records, WORLD, judged.rows, None)
    assert [(each.given, each.true) for each in shown] == [("B", "B"), (None, "A"), ("A", "B"), ("A", "A")]
    fewer = [record for record in records if not record["caption_id"].endswith("Math_1/A")]
    assert [row["score"] for row in MMMUChoices("cosine").rows(fewer, WORLD).rows] == [100, 0, 100, 100]


@pytest.mark.parametrize("scorer", [MMMU(), MMMUChoices("log_likelihood")])
def test_guessers(scorer):
    def score(records, samples):
        return scores_of(scorer.rows(records, samples).rows)

    found = scorer.baselines([], WORLD, [], str.split, score)
    count = 6 if type(scorer) is MMMU else 4
    assert found["accuracy_baseline"] == pytest.approx(200 / count)  # A and B are right twice each
    assert found["accuracy_chance"] == pytest.approx((100 / 3 + 100 / 3 + 50 + 50) / count)
    assert scorer.baselines([], [], [], str.split, score) == {}


def test_an_unknown_value_is_told():
    with pytest.raises(ConfigError, match="value of a scorer of MMMU is 'loss'"):
        MMMUChoices("loss")


def test_the_published_form_of_answers_is_recognised():
    rows = listed({"validation_Art_1": "B", "validation_Math_2": "seven"})
    assert rows == [
        {"question_id": "validation_Art_1", "answer": "B"},
        {"question_id": "validation_Math_2", "answer": "seven"},
    ]
    assert recognised(rows)[0] == rows
    assert listed({"logs": [1]}) == [1]
    assert listed({"a": 1}) == {"a": 1}
