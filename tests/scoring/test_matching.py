from pathlib import Path

import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.scoring.scorers import MASKED, MATCHING

SAMPLES = [
    Sample(key, Path("x.png"), {"captions": (Text(10 * key, "a cat"), Text(10 * key + 1, "a dog"))}) for key in (1, 2)
]


def pair(caption_id, image_id, score):
    return {"caption_id": caption_id, "image_id": image_id, "score": score, "label": int(caption_id // 10 == image_id)}


def test_accuracy_is_balanced():
    records = [
        pair(10, 1, 0.5),
        pair(11, 1, 0.9),
        pair(20, 2, 0.6),
        pair(21, 2, 0.2),
        pair(10, 2, 0.5),
        pair(11, 2, 0.49),
    ]
    assert MATCHING(records, SAMPLES) == {"itm_accuracy": pytest.approx((75 + 50) / 2)}


def test_always_yes_is_chance():
    records = [pair(10, 1, 1.0), pair(20, 2, 1.0), pair(21, 2, 1.0), pair(10, 2, 1.0)]
    assert MATCHING(records, SAMPLES) == {"itm_accuracy": 50}


def test_truth_comes_from_the_annotations_not_from_the_file():
    records = [{**pair(10, 1, 1.0), "label": 0}, {**pair(10, 2, 0.0), "label": 1}]
    assert MATCHING(records, SAMPLES) == {"itm_accuracy": 100}


def test_no_score_without_false_pairs():
    assert MATCHING([pair(10, 1, 1.0)], SAMPLES) == {}


def test_masked_tokens():
    records = [
        {"caption_id": 10, "position": place, "token": token, "target": "a"}
        for place, token in enumerate(["a", "b", "a", "a"])
    ]
    assert MASKED(records, SAMPLES) == {"mlm_accuracy": 75}
    assert MASKED([], SAMPLES) == {}


@pytest.mark.parametrize(
    ("scorer", "records", "message"),
    [
        (MATCHING, [pair(10, 1, 1.0)] * 2, "two predictions for caption_id 10, image_id 1"),
        (MATCHING, [pair(99, 1, 1.0)], "unknown caption_id 99"),
        (
            MASKED,
            [{"caption_id": 10, "position": 1, "token": "a", "target": "a"}] * 2,
            "caption_id 10, position 1",
        ),
        (MASKED, [{"caption_id": 99, "position": 1, "token": "a", "target": "a"}], "unknown caption_id 99"),
    ],
)
def test_bad_records(scorer, records, message):
    with pytest.raises(DataError, match=message):
        scorer(records, SAMPLES)


def test_ids_with_slashes_keep_their_examples():
    samples = [Sample(f"photos/{key}.jpg", Path("x.png"), {"captions": (Text(f"c/{key}", "a cat"),)}) for key in (1, 2)]
    records = [
        {"caption_id": f"c/{caption}", "image_id": f"photos/{image}.jpg", "score": score}
        for caption, image, score in ((1, 1, 0.9), (1, 2, 0.2), (2, 1, 0.1), (2, 2, 0.3))
    ]
    found = MATCHING.examples(records, samples, MATCHING.rows(records, samples).rows, None)
    assert [(each.id, each.true, each.score) for each in found] == [("c/1", "a match", 100), ("c/2", "a match", 0)]
