from pathlib import Path

import numpy as np
import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.scoring.box_units import note_on_units
from fusionkit.scoring.grounding import Grounding, box_iou

SIZES = [(640, 480), (300, 400), (500, 500)]
TRUE = np.array([[40, 60, 200, 100], [100, 50, 120, 300], [250, 20, 200, 90]], dtype=float)
WHOLE = np.array([[*size, *size] for size in SIZES], dtype=float)
CORNERS = np.hstack([TRUE[:, :2], TRUE[:, :2] + TRUE[:, 2:]])
CENTERS = np.hstack([TRUE[:, :2] + TRUE[:, 2:] / 2, TRUE[:, 2:]])
XYWH = "[x, y, width, height]"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (TRUE, None),
        (TRUE + 25, None),
        (np.zeros((3, 4)), None),
        (TRUE[:, ::-1], None),  # simply wrong
        (CORNERS, "as corners [x0, y0, x1, y1] in pixels (mean IoU 100.0)"),
        (CENTERS, "as [center x, center y, width, height] in pixels (mean IoU 100.0)"),
        (TRUE / WHOLE, f"as {XYWH} in 0..1 of the image (mean IoU 100.0)"),
        (CORNERS / WHOLE, "as corners [x0, y0, x1, y1] in 0..1 of the image"),
        (CENTERS / WHOLE, "as [center x, center y, width, height] in 0..1 of the image"),
        (1000 * TRUE / WHOLE, f"as {XYWH} in 0..1000 of the image (mean IoU 100.0)"),
        (1000 * CORNERS / WHOLE, "as corners [x0, y0, x1, y1] in 0..1000 of the image"),
        (100 * CORNERS / WHOLE, "as corners [x0, y0, x1, y1] in 0..100 of the image"),
        (np.full((3, 4), 1.0), "the boxes lie within one pixel, as if they were in 0..1 of the image"),
        (np.array([[0.1, 0.1, 1, 1], [0.2, 0, 0.7, 1], [0, 0.1, 0.9, 1.03]]), "the boxes lie within one pixel"),
        (np.array([[0.1, 0.1, 1, 1], [0.2, 0, 0.7, 1.02], [0, 0.1, 0.9, 1.03]]), None),
        (np.full((3, 4), 1.01), None),
        (np.array([[0, 0, 9, 528.5], [0, 0, 330.5, 9], [9, 9, 9, 9]]), "2 of 3 boxes leave their image"),
        (np.array([[0, 0, 9, 528], [0, 0, 330.5, 9], [9, 9, 9, 9]]), None),
    ],
)
def test_other_coordinates_are_recognised_and_told(given, told):
    note = note_on_units(given, TRUE, SIZES, box_iou)
    if told is None:
        assert note is None
    else:
        assert told in str(note)
        assert f"scored as {XYWH} in pixels" in str(note)


def test_weak_boxes_are_not_suspected():
    """Another reading is told only where its boxes are right: mean IoU .3 and twice as good."""
    weak = CORNERS.copy()
    weak[:, 2:] = weak[:, :2] + 0.54 * TRUE[:, 2:]
    as_corners = box_iou(np.hstack([weak[:, :2], weak[:, 2:] - weak[:, :2]]), TRUE).mean()
    assert 0.28 < as_corners < 0.3
    assert note_on_units(weak, TRUE, SIZES, box_iou) is None
    weak[:, 2:] = weak[:, :2] + 0.56 * TRUE[:, 2:]
    note = note_on_units(weak, TRUE, SIZES, box_iou)
    assert note is None or "corners" in note
    assert note_on_units(TRUE * (1, 1, 1, 0.6), TRUE, SIZES, box_iou) is None


def test_without_sizes_parts_of_the_image_are_not_tried():
    unknown = [SIZES[0], None, SIZES[2]]
    assert "corners" in str(note_on_units(CORNERS, TRUE, unknown, box_iou))
    assert note_on_units(1000 * TRUE / WHOLE, TRUE, unknown, box_iou) is None
    assert "within one pixel" in str(note_on_units(TRUE / WHOLE, TRUE, unknown, box_iou))
    assert note_on_units(np.zeros((0, 4)), np.zeros((0, 4)), [], box_iou) is None
    tiny = np.array([[0.0, 0, 1, 1]])
    assert note_on_units(tiny, tiny, [None], box_iou) is None


def test_the_note_stands_beside_the_score():
    samples = [
        Sample(at, Path(), {"expressions": (Text(at, "it", {"box": tuple(box)}), Text(at + 10, "no", {}))}, size)
        for at, (box, size) in enumerate(zip(TRUE.tolist(), SIZES, strict=True))
    ]
    right = [{"sent_id": at, "bbox": box} for at, box in enumerate(TRUE.tolist())]
    assert Grounding().rows(right, samples).notes == {"boxes": "regressed"}
    corners = [{"sent_id": at, "bbox": box} for at, box in enumerate(CORNERS.tolist())]
    assert "corners" in Grounding().rows(corners[1:], samples).notes["coordinates"]
    assert Grounding().rows([], samples).notes == {"boxes": "regressed"}


def test_numbers_of_the_note_and_its_limits():
    """One box of 100 x 100 that is given as its corners: as such it fits, as xywh by so much."""
    true = np.array([[100.0, 100, 100, 100]])
    note = note_on_units(np.array([[100.0, 100, 200, 200]]), true, [None], box_iou)
    assert note == (
        "the boxes fit the true ones as corners [x0, y0, x1, y1] in pixels (mean IoU 100.0), and were scored as "
        f"{XYWH} in pixels (25.0): convert the file"
    )
    halved = np.array([[100.0, 100, 200, 150]])  # as corners .5, as xywh 1/3: less than twice as good
    assert note_on_units(halved, true, [None], box_iou) is None

    def told(as_corners):
        """The note where the boxes fit so well as corners, and by .1 in every other reading."""
        fits = lambda boxes, _: np.array([as_corners if boxes[0, 2] == 100 else 0.1])  # noqa: E731
        return note_on_units(np.array([[100.0, 100, 200, 130]]), true, [None], fits)

    assert "(mean IoU 30.0), and were scored as [x, y, width, height] in pixels (10.0)" in str(told(0.3))
    assert told(0.29) is None


def test_few_or_partly_empty_boxes():
    true = np.array([[0.0, 0, 50, 50]] * 4)
    empty = np.array([[0.0, 0, 0, 0]] * 3 + [[0, 0, 50, 50]])
    assert note_on_units(empty, true, [(60, 60)] * 4, box_iou) is None
    leaving = np.array([[0.0, 0, 66, 50], [30, 0, 37, 50], [0, 0, 50, 67], [20, 0, 47, 50]])
    note = note_on_units(leaving, true[:, [0, 1, 3, 2]] + 500, [(60, 60)] * 4, lambda given, true: np.zeros(len(given)))
    assert "3 of 4 boxes leave their image" in str(note)
    half = leaving[[0, 1, 2, 0]]
    assert note_on_units(half, true, [(60, 60)] * 4, lambda given, true: np.zeros(len(given))) is None
