"""The scores of a linear probe against their definition, and what guessers without the image reach."""

import pytest

from fusionkit.data.readers.class_folders import ClassFolders
from fusionkit.data.sample import Sample
from fusionkit.scoring.probes.linear_probe import LinearProbeScores
from fusionkit.scoring.sample_scores import scores_of
from tests.data.worlds import write_photo


def read(root, counts):
    for name, count in counts.items():
        for number in range(count):
            write_photo(root / f"test/{name}/{number}.png")
    return ClassFolders(f"{root}/{{split}}", own=True).read("test")


def records_of(samples: list[Sample], said: str):
    names = {"c": "cat", "d": "dog"}
    return [
        {"image_id": sample.image_id, "predicted": names[letter]} for sample, letter in zip(samples, said, strict=True)
    ]


def test_each_picture_has_the_text_of_its_own_class_alone(tmp_path):
    samples = read(tmp_path, {"cat": 2, "red_fox": 1})
    assert [[text.text for text in sample.texts["captions"]] for sample in samples] == [
        ["a photo of a cat."],
        ["a photo of a cat."],
        ["a photo of a red fox."],
    ]


def test_scores_are_their_definition(tmp_path):
    samples, scorer = read(tmp_path, {"cat": 3, "dog": 1}), LinearProbeScores()
    records = records_of(samples, "ccdc")
    rows = scorer.rows(records, samples).rows
    assert scores_of(rows) == pytest.approx(
        {"accuracy": 50, "mean_per_class": 100 / 3, "accuracy/class/cat": 200 / 3, "accuracy/class/dog": 0}
    )
    assert scores_of(scorer.rows(records[1:], samples).rows)["accuracy"] == 25  # what is not said is wrong
    shown = scorer.examples(records, samples, rows, None)
    assert [(each.given, each.true, each.score) for each in shown][2:] == [("dog", "cat", 0), ("cat", "dog", 0)]


def test_guessers_know_the_commonest_training_class_or_nothing(tmp_path):
    samples = read(tmp_path / "a", {"cat": 3, "dog": 1})
    train, scorer = read(tmp_path / "b", {"ant": 1, "cat": 2, "dog": 4}), LinearProbeScores()
    found = scorer.baselines(train, samples, [], str.split, lambda r, s: scores_of(scorer.rows(r, s).rows))
    assert found["accuracy_baseline"] == 25
    assert found["mean_per_class_baseline"] == 50
    assert found["accuracy_chance"] == pytest.approx(100 / 3)
