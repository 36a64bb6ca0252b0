from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusionkit.data.sample import Sample, Text
from fusionkit.evaluation.baselines import (
    grounding_baselines,
    masked_baselines,
    matching_baselines,
    retrieval_baselines,
    vqa_baselines,
)
from fusionkit.evaluation.grounding import score_grounding
from fusionkit.evaluation.masked import score_masked
from fusionkit.evaluation.vqa import score_vqa


def questions(*pairs):
    rows = (Text(key, text, {"answers": [answer] * 10}) for key, (text, answer) in enumerate(pairs))
    return [Sample(1, Path("x.png"), {"questions": tuple(rows)})]


def captions(*texts):
    return [Sample(1, Path("x.png"), {"captions": tuple(Text(key, text) for key, text in enumerate(texts))})]


@pytest.mark.parametrize(
    ("asked", "guess"),
    [
        ("How many dogs", "5"),  # the same question
        ("how many dogs are there?", "2"),  # first three words
        ("How many cats?", "3"),  # first two
        ("How tall is he?", "6"),  # first
        ("Is it red?", "no"),  # none
    ],
)
def test_vqa_backs_off(asked, guess):
    train = questions(
        *[("how many dogs are in it", "2")] * 3,
        *[("How many dogs?", "5")] * 2,
        *[("how many sheep", "3")] * 4,
        *[("how old is she", "6")] * 8,
        *[("are you", "no")] * 9,
    )
    scores = vqa_baselines(train, questions((asked, guess)), [], str.split, score_vqa)
    assert scores["vqa_accuracy_baseline"] == 100
    assert scores["vqa_accuracy_chance"] == (100 if guess == "no" else 0)


def boxes(tmp_path, *pairs):
    Image.new("RGB", (200, 100)).save(tmp_path / "x.png")
    rows = tuple(Text(key, text, {"box": box}) for key, (text, box) in enumerate(pairs))
    return [Sample(1, tmp_path / "x.png", {"expressions": rows})]


def test_grounding_reads_the_words(tmp_path):
    left, right = ("the left dog", (0, 0, 100, 100)), ("the right dog", (100, 0, 100, 100))
    train = boxes(tmp_path, *[left, right] * 200)
    small = [Sample(2, Path("y.png"), {"expressions": (Text(7, "left", {"box": (0, 0, 5, 10)}),)}, size=(10, 10))]
    scores = grounding_baselines(train, small, [], str.split, score_grounding)
    assert scores["grounding_mean_iou_baseline"] > 98  # relative to the image, whatever its size
    assert scores["grounding_mean_iou_chance"] == pytest.approx(100 / 3)  # the mean box stands in the middle


def test_grounding_regression_solves_the_ridge_equations(tmp_path):
    rng = np.random.default_rng(0)
    words = np.array(["a", "b", "c", "d"])
    chosen = rng.random((30, 4)) < 0.5
    targets = rng.random((30, 4)) * 50
    train = boxes(tmp_path, *[(" ".join(words[row]), tuple(box)) for row, box in zip(chosen, targets, strict=True)])
    scale = np.array([200, 100, 200, 100])
    mean = (targets / scale).mean(axis=0)
    x = chosen.astype(float)
    weights = np.linalg.solve(x.T @ x + np.eye(4), x.T @ (targets / scale - mean))
    expected = tuple(((weights[0] + weights[2] + mean) * scale).tolist())
    scores = grounding_baselines(train, boxes(tmp_path, ("c a", expected)), [], str.split, score_grounding)
    assert scores["grounding_mean_iou_baseline"] == pytest.approx(100)


def test_masked_backs_off_and_does_not_see_masked_neighbours():
    train = captions(*["a red dog"] * 2, *["a blue cat"] * 3, *["big blue dog", "one tiny dog", "his tiny hat"] * 2)
    asked = captions("a red dog", "a red x", "big blue dog")
    records = [
        {"caption_id": 0, "position": 2, "token": "?", "target": "red"},  # between "a" and "dog"
        {"caption_id": 1, "position": 2, "token": "?", "target": "blue"},  # after "a"; no "x" was seen
        {"caption_id": 2, "position": 2, "token": "?", "target": "tiny"},  # before a mask, after "big": never "tiny"
        {"caption_id": 2, "position": 3, "token": "?", "target": "dog"},  # at the end, after a mask
    ]
    scores = masked_baselines(train, asked, records, str.split, score_masked)
    assert scores == {"mlm_accuracy_baseline": 75, "mlm_accuracy_chance": 25}  # "dog" is the commonest


def test_retrieval_chance_by_counting():
    counts = (1, 3, 2)
    samples = [
        Sample(image, Path("x.png"), {"captions": tuple(Text(10 * image + i, "a") for i in range(count))})
        for image, count in enumerate(counts)
    ]
    scores = retrieval_baselines([], [*samples, Sample(9, Path("x.png"), {})], [], str.split, score_vqa)
    assert scores["text_to_image_r1_chance"] == pytest.approx(100 / 3)
    assert scores["text_to_image_r5_chance"] == 100
    draws = list(combinations(range(6), 5))
    hits = [sum(any(start <= i < start + c for i in draw) for draw in draws) for start, c in ((0, 1), (1, 3), (4, 2))]
    assert scores["image_to_text_r5_chance"] == pytest.approx(100 * sum(hits) / 3 / len(draws))
    assert scores["image_to_text_r10_chance"] == scores["image_to_text_r10_baseline"] == 100


def test_without_training_samples():
    assert vqa_baselines([], questions(("is it", "no")), [], str.split, score_vqa) == {}
    assert grounding_baselines([], [], [], str.split, score_grounding) == {}
    assert (
        masked_baselines([], captions("a"), [{"caption_id": 0, "position": 1, "target": "a"}], str.split, score_masked)
        == {}
    )
    assert matching_baselines([], [], [], str.split, score_vqa) == {
        "itm_accuracy_baseline": 50,
        "itm_accuracy_chance": 50,
    }
