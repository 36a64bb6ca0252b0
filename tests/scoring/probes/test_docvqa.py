"""ANLS against the script of DocVQA's server, written anew here."""

from pathlib import Path

import numpy as np
import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.scoring.bootstrap import intervals
from fusionkit.scoring.foreign_results import DOCVQA, recognised
from fusionkit.scoring.probes.docvqa import DocVQA, anls, distance, exact
from fusionkit.scoring.sample_scores import scores_of


def page(number, *answers):
    facts = [{"answers": list(each)} if each else {} for each in answers]
    texts = tuple(Text(10 * number + at, "what?", each) for at, each in enumerate(facts))
    return Sample(f"{number}.png", Path(f"{number}.png"), {"questions": texts})


def furthest(one, other):
    """Levenshtein's distance by its recursion."""
    table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    table[:, 0], table[0, :] = range(len(one) + 1), range(len(other) + 1)
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            change = table[i - 1, j - 1] + (one[i - 1] != other[j - 1])
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, change)
    return table[-1, -1]


def official(answer, answers):
    shares = []
    for known in answers:
        one, other = " ".join(known.strip().lower().split()), " ".join(answer.strip().lower().split())
        length = max(len(known.upper()), len(answer.upper()))
        shares.append(0.0 if length == 0 else furthest(one, other) / length)
    result = 1 - min(shares)
    return 0 if result < 0.5 else result


def test_it_is_the_servers_to_the_last_digit():
    draw = np.random.default_rng(5)
    letters = list("ab cB1.\u00df")

    def text():
        return "".join(draw.choice(letters, draw.integers(0, 9)))

    found = 0
    for _ in range(2000):
        answer, answers = text(), [text() for _ in range(draw.integers(1, 4))]
        assert anls(answer, answers) == official(answer, answers)
        found += 0 < anls(answer, answers) < 1
    assert found > 100


@pytest.mark.parametrize(
    ("answer", "answers", "similar", "same"),
    [
        ("$ 12.50", ["$ 12.50"], 1.0, 1),
        ("  March   4 ", ["march 4"], 1.0, 1),
        ("march 4", ["April 9", "MARCH 4"], 1.0, 1),
        ("abcd", ["abxy"], 0.5, 0),  # a half counts
        ("abcde", ["abxyz"], 0.0, 0),
        ("12.5", ["12.50"], 0.8, 0),
        ("ab", ["ab  cd"], 0.5, 0),  # 3 of "ab cd", but of the six letters that were given
        ("", ["x"], 0.0, 0),
        ("", [""], 1.0, 1),
        ("\u00df", ["x"], 0.5, 0),  # one letter, and two where it is a capital
    ],
)
def test_answers_that_are_nearly_right(answer, answers, similar, same):
    assert (anls(answer, answers), exact(answer, answers)) == (pytest.approx(similar), same)


@pytest.mark.parametrize(
    ("one", "other", "steps"), [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("a", "a", 0)]
)
def test_distance(one, other, steps):
    assert distance(one, other) == distance(other, one) == steps


def test_scores_are_means_over_the_questions_that_have_answers():
    samples = [page(1, ["12.50"], ["abcd", "x"]), page(2, ["yes"], ())]
    records = [
        {"question_id": 10, "answer": "12.5"},
        {"question_id": 11, "answer": "ABCD"},
        {"question_id": 21, "answer": "secret"},
    ]
    judged = DocVQA().rows(records, samples)
    assert [row["id"] for row in judged.rows] == [10, 11, 20]
    assert [row["image_id"] for row in judged.rows] == ["1.png", "1.png", "2.png"]
    assert [row["score"] for row in judged.rows] == pytest.approx([80, 100, 0])
    assert scores_of(judged.rows) == {"anls": pytest.approx(60), "accuracy": pytest.approx(100 / 3)}
    low, high = intervals(judged.rows, 200)["anls"]
    assert low < 60 < high
    assert DocVQA().metrics == {"anls": True, "accuracy": True}
    assert (DocVQA().notes(samples), DocVQA().summary({"anls": 1.0}, samples)) == ({}, {"anls": 1.0})


def test_guessers_answer_what_the_training_pages_do():
    train = [page(1, ["12"], ["12"], ["30"])]
    scorer = DocVQA()

    def score(records, samples):
        return scores_of(scorer.rows(records, samples).rows)

    found = scorer.baselines(train, [page(2, ["12"], ["99999"])], [], str.split, score)
    assert found["anls_baseline"] == pytest.approx(50)


def test_pages_are_shown_by_anls():
    samples = [page(1, ["12.50"]), page(2, ["yes"])]
    records = [{"question_id": 10, "answer": "12.5"}, {"question_id": 20, "answer": "no"}]
    judged = DocVQA().rows(records, samples)
    sheet = DocVQA().sheet(records, samples, judged.rows)
    said = [[note.text for picture in panel.pictures for note in picture.notes] for panel in sheet.panels]
    assert said == [["given: no", "true: yes"], ["given: 12.5", "true: 12.50"]]  # the worst first


def test_a_file_for_the_server_is_recognised():
    records, whose = recognised([{"questionId": 5, "answer": "x"}, {"questionId": 6, "answer": "y"}])
    assert (records, whose) == ([{"question_id": 5, "answer": "x"}, {"question_id": 6, "answer": "y"}], DOCVQA)
