from pathlib import Path

import numpy as np
import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError, DataError
from fusionkit.scoring.grounding import Grounding, box_iou
from fusionkit.scoring.scorers import GROUNDING

SAMPLES = [
    Sample(
        1,
        Path("1.png"),
        {"expressions": (*(Text(key, "it", {"box": (0, 0, 10, 10)}) for key in range(4)), Text(9, "no box"))},
        size=(100, 50),
    )
]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 10, 10), 1.0),
        ((5, 0, 10, 10), 1 / 3),
        ((0, 0, 10, 5), 0.5),
        ((9.5, 9.5, 10, 10), 0.25 / 199.75),  # continuous: half a pixel counts
        ((10, 0, 10, 10), 0.0),
        ((0, 0, 0, 0), 0.0),
        ((2, 2, -2, -2), 0.0),
        ((float("nan"), 0, 10, 10), 0.0),
    ],
)
def test_box_iou(box, expected):
    assert box_iou([box], [(0, 0, 10, 10)]) == pytest.approx(expected)


def test_box_iou_against_counted_pixels():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 12, (2, 50, 4))
    grid = np.zeros((2, 50, 24, 24), bool)
    for side, boxes in enumerate((first, second)):
        for row, (x, y, w, h) in enumerate(boxes):
            grid[side, row, y : y + h, x : x + w] = True
    union = (grid[0] | grid[1]).sum((1, 2))
    assert box_iou(first, second) == pytest.approx((grid[0] & grid[1]).sum((1, 2)) / np.maximum(union, 1))


def test_thresholds_are_inclusive_and_a_missing_box_counts():
    boxes = {0: [0, 0, 10, 5], 1: [0, 0, 10, 7.5], 2: [0, 0, 10, 10]}
    scores = GROUNDING([{"sent_id": key, "bbox": box} for key, box in boxes.items()], SAMPLES)
    assert scores == {"grounding_acc50": 75, "grounding_acc75": 50, "grounding_mean_iou": pytest.approx(225 / 4)}


def test_boxes_below_a_pixel_have_their_own_size():
    assert box_iou([(0, 0, 0.5, 0.5)] * 2, [(0, 0, 0.5, 0.5), (0, 0, 1, 0.25)]) == pytest.approx([1, 1 / 3])
    assert box_iou([(0, 0, 1, 1)], [(0, 0, 1, -1)]) == 0
    assert box_iou([(0, 0, 1, 1 / 3)], [(0, 0, 1, 1)]).tolist() == [0.333333333333]  # 12 decimals
    assert box_iou([], []).shape == (0,)


def test_just_below_a_threshold():
    scores = GROUNDING([{"sent_id": 3, "bbox": [0, 0, 10, 4.99]}, {"sent_id": 2, "bbox": [0, 0, 10, 7.49]}], SAMPLES)
    assert scores == {"grounding_acc50": 25, "grounding_acc75": 0, "grounding_mean_iou": pytest.approx(124.8 / 4)}


def test_what_is_said_beside_the_score():
    scorer = Grounding("detected")
    judged = scorer.rows([{"sent_id": 0, "bbox": [0, 0, 10, 10]}], SAMPLES)
    assert judged.notes == {"boxes": "detected"}
    assert [row["score"] for row in judged.rows] == [100, 0, 0, 0]
    assert [(row["id"], row["image_id"]) for row in judged.rows] == [(key, 1) for key in range(4)]
    assert [form.wanted(SAMPLES) for form in Grounding().schema] == [[0, 1, 2, 3, 9]]
    with pytest.raises(ConfigError, match="there is no box protocol 'detectd'; did you mean 'detected'"):
        Grounding("detectd")


def test_nothing_to_score():
    assert GROUNDING([], []) == {}


def test_unknown_expression():
    with pytest.raises(DataError, match="unknown sent_id 77"):
        GROUNDING([{"sent_id": 77, "bbox": [0, 0, 1, 1]}], SAMPLES)


def test_a_picture_shows_the_true_box_and_the_given_one_in_the_frame_of_the_annotations():
    records = [{"sent_id": 0, "bbox": [5, 0, 10, 10]}]
    panels = GROUNDING.sheet(records, SAMPLES, GROUNDING.rows(records, SAMPLES).rows).panels
    picture = next(panel.pictures[0] for panel in panels if len(panel.pictures[0].marks) == 2)
    assert (picture.path, picture.size) == (Path("1.png"), (100, 50))
    assert [(tuple(mark.box), mark.is_dashed) for mark in picture.marks] == [
        ((0, 0, 10, 10), False),
        ((5, 0, 10, 10), True),
    ]
