"""Words with the right label."""

from pathlib import Path

import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.scoring.classification import is_labels
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


@pytest.mark.parametrize(
    "value", ["O", [1], [{"start": 0, "end": 1}], [{"start": 0.0, "end": 1, "label": "O"}], [said("O")]]
)
def test_what_is_no_list_of_labels(value):
    assert not is_labels(value)
    assert is_labels(said("O"))
    assert is_labels([])
