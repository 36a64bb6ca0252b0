"""Sheets of mistakes: every heading, picture, mark and note of a few samples."""

from pathlib import Path

from fusionkit.data.sample import Sample, Text
from fusionkit.scoring.scorers import GROUNDING, RETRIEVAL, VQA
from fusionkit.scoring.sheet import GREEN, GREY, RED, Mark, Note, Panel, Picture, Sheet
from tests.visual.test_contact_sheet import headings, samples, sheet_of


def test_an_answer_is_green_from_half_right_on():
    people = [["a", "b"], ["c"], ["d"] * 4 + ["e"] * 3 + ["f"] * 2 + ["g"]]
    texts = tuple(Text(at, f"t{at}", {"answers": answers}) for at, answers in enumerate(people))
    sample = Sample(1, Path("1.png"), {"questions": (*texts, Text(9, "unknown", {}))}, size=(8, 6), upright=True)
    records = [{"question_id": 0, "answer": "a"}, {"question_id": 1, "answer": "x"}, {"question_id": 2, "answer": "d"}]
    said = [("x", RED, "c"), ("a", GREEN, "a (1), b (1)"), ("d", GREEN, "d (4), e (3), f (2)")]
    panels = [
        Panel(
            name,
            (
                Picture(
                    Path("1.png"), (8, 6), notes=(Note(f"given: {given}", color), Note(f"true: {true}")), upright=True
                ),
            ),
        )
        for name, (given, color, true) in zip(("t1", "t0", "t2"), said, strict=True)
    ]
    legend = "the answer given (green: at least half right), and the human answers"
    assert sheet_of(VQA, records, [sample]) == Sheet(legend, panels)


def test_a_box_is_green_from_half_on_and_the_images_take_turns():
    asked = samples("expressions", {"box": (0, 0, 10, 10)})[:2]
    sheet = sheet_of(GROUNDING, [], asked)
    assert headings(sheet) == ["t0", "t2", "t1", "t3"]
    assert sheet.legend == "true box: green; given box: red, dashed; right from IoU 0.50 on"
    assert sheet.panels[0] == Panel(
        "t0", (Picture(Path("0.png"), marks=(Mark((0, 0, 10, 10), GREEN),), notes=(Note("IoU 0.00", RED),)),)
    )
    half = sheet_of(GROUNDING, [{"sent_id": 0, "bbox": [0, 0, 10, 5]}], asked[:1])
    assert half.panels[1].pictures[0].marks == (Mark((0, 0, 10, 10), GREEN), Mark([0, 0, 10, 5], RED, True))
    assert half.panels[1].pictures[0].notes == (Note("IoU 0.50", GREEN),)


def test_the_worst_caption_of_each_image_and_the_best_images_for_it():
    asked = [*samples("captions", {}), Sample(9, Path("9.png"), {})]
    scores = [0.9, 0.8, 0.7, 0.6, -0.001, -0.4, -0.5, -0.6]
    records = [
        {"caption_id": 0, "image_ids": [0, 1], "scores": [0.9, 0.1]},
        {"caption_id": 1, "image_ids": [3, 1, 2, 4, 5, 6, 0, 7], "scores": scores},
        {"caption_id": 2, "image_ids": [0, 1, 2], "scores": [3, 2, 1]},
        {"image_id": 0, "caption_ids": [0]},
    ]
    listed = [(3, "0.90"), (1, "0.80"), (2, "0.70"), (4, "0.60"), (5, "0.00")]
    worst = [
        Picture(Path(f"{image}.png"), notes=(Note(f"{place}.   score {score}", GREY),))
        for place, (image, score) in enumerate(listed, start=1)
    ]
    worst.append(Picture(Path("0.png"), frame=GREEN, notes=(Note("the right one, rank 7", RED),)))
    next_one = (
        Picture(Path("0.png"), notes=(Note("1.   score 3.00", GREY),)),
        Picture(Path("1.png"), frame=GREEN, notes=(Note("2.   score 2.00", GREEN),)),
        Picture(Path("2.png"), notes=(Note("3.   score 1.00", GREY),)),
    )
    legend = (
        "text to image: the worst caption of each image, and the best 5 of 8 images for it; the right one is framed"
    )
    assert sheet_of(RETRIEVAL, records, asked) == Sheet(legend, [Panel("t1", tuple(worst)), Panel("t2", next_one)])
