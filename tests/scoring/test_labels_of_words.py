"""Words with the right label."""

from pathlib import Path

import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.scoring.classification import WordLabels, is_labels
from fusionkit.scoring.scorers import WORD_LABELS


def said(*labels):
    spans = [(0, 3), (4, 6), (7, 11)]
    return [{"start": a, "end": b, "label": label} for (a, b), label in zip(spans, labels, strict=False)]


SAMPLES = [
    Sample(1, Path("x"), {"tagged": (Text(1, "Ann in Rome", {"word_labels": ["PER", "O", "LOC"]}),)}),
    Sample(2, Path("y"), {"tagged": (Text(2, "Bob at rome", {"word_labels": ["PER", "O", "O"]}), Text(3, "in"))}),
]


def test_accuracy_and_f1_by_the_word():
    records = [{"text_id": 1, "labels": said("PER", "LOC", "PER")}, {"text_id": 2, "labels": said("O", "O")}]
    judged = WORD_LABELS.rows(records, SAMPLES)
    assert [(row["id"], row["image_id"], row["score"]) for row in judged.rows] == [
        (1, 1, pytest.approx(100 / 3)),
        (2, 2, pytest.approx(100 / 3)),
    ]
    scores = WORD_LABELS(records, SAMPLES)
    assert scores["words_accuracy"] == pytest.approx(100 * 2 / 6)
    # three are named, one of them rightly; three have a name
    assert scores["words_f1"] == pytest.approx(100 * 2 * 1 / (3 + 3))
    assert WORD_LABELS([], SAMPLES) == {"words_accuracy": 0.0, "words_f1": 0.0}


def test_examples_show_the_words_that_are_named():
    records = [{"text_id": 1, "labels": said("PER", "LOC", "O")}]
    rows = WORD_LABELS.rows(records, SAMPLES).rows
    shown = WORD_LABELS.examples(records, SAMPLES, rows, None)
    assert [(each.given, each.true) for each in shown] == [
        ("Ann (PER), in (LOC)", "Ann (PER), Rome (LOC)"),
        (None, "Bob (PER)"),
    ]


def test_what_needs_no_image():
    train = [
        Sample(
            3,
            Path("z"),
            {"tagged": (Text(7, "rome in Rome in Ann", {"word_labels": ["LOC", "O", "LOC", "O", "PER"]}),)},
        )
    ]
    found = WORD_LABELS.baselines(train, SAMPLES, [], str.split, WORD_LABELS)
    assert found["words_accuracy_baseline"] == pytest.approx(100 * 3 / 6)
    # LOC is as common as O and comes first: Bob and at are taken for it
    assert found["words_accuracy_chance"] == pytest.approx(100 * 1 / 6)
    assert WORD_LABELS.baselines([], SAMPLES, [], str.split, WORD_LABELS) == {}


def numbered(*labels):
    return [Sample(1, Path("x"), {"tagged": (Text(1, "Ann in Rome", {"word_labels": list(labels)}),)})]


@pytest.mark.parametrize("outside", [0, "0"])
def test_the_label_of_words_of_no_interest_is_named(outside):
    scorer, samples = WordLabels(outside), numbered("1", "0", "2")
    records = [{"text_id": 1, "labels": said("1", "1", "0")}]
    assert scorer(records, samples)["words_f1"] == pytest.approx(100 * 2 * 1 / (2 + 2))
    (shown,) = scorer.examples(records, samples, scorer.rows(records, samples).rows, None)
    assert (shown.given, shown.true) == ("Ann (1), in (1)", "Ann (1), Rome (2)")
    assert scorer.notes(samples) == {}
    some = [{"text_id": 1, "labels": said("1", "0", "2")}]
    assert scorer(some, numbered("1", "0", "0"))["words_f1"] == pytest.approx(100 * 2 * 1 / (2 + 1))


def test_where_no_word_is_of_no_interest_there_is_no_f1_and_that_is_said():
    samples = numbered("1", "0", "2")
    assert WORD_LABELS([{"text_id": 1, "labels": said("1", "0", "2")}], samples) == {"words_accuracy": 100.0}
    told = "left out, as no word has the label 'O'; say which label words of no interest have with "
    assert WORD_LABELS.notes(samples) == {"f1": told + "task.token_classification.scorer.outside=LABEL"}
    assert WORD_LABELS.notes(SAMPLES) == WORD_LABELS.notes([]) == {}


def test_words_that_have_not_as_many_labels_are_told():
    wrong = numbered("O", "O")
    with pytest.raises(
        DataError, match=r"^text 1 has 3 words and 2 labels; give each word, between spaces, one label$"
    ):
        WORD_LABELS.baselines(wrong, SAMPLES, [], str.split, WORD_LABELS)
    with pytest.raises(DataError, match=r"^text 1 has 3 words and 2 labels"):
        WORD_LABELS([], wrong)


@pytest.mark.parametrize(
    "value", ["O", [1], [{"start": 0, "end": 1}], [{"start": 0.0, "end": 1, "label": "O"}], [said("O")]]
)
def test_what_is_no_list_of_labels(value):
    assert not is_labels(value)
    assert is_labels(said("O"))
    assert is_labels([])
