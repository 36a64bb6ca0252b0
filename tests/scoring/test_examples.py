"""Single answers to look at: which, and what stands beside them."""

from pathlib import Path

import pytest
from PIL import Image

from fusionkit.data.sample import Sample, Text
from fusionkit.scoring.classification import Entailment
from fusionkit.scoring.examples import Example, _example, examples_of
from fusionkit.scoring.grounding import Grounding
from fusionkit.scoring.record_schema import RecordSchema, is_number
from fusionkit.scoring.retrieval import Retrieval
from fusionkit.scoring.vqa import VQA
from fusionkit.training.answer_table import SIDE, table_of

BOX, GUESS = (10.0, 20.0, 30.0, 40.0), [0.0, 0.0, 50.0, 100.0]


def samples_of(kind: str, count: int = 5, **facts) -> list[Sample]:
    return [
        Sample(n, Path(f"{n}.png"), {kind: (Text(10 * n, f"text {n}", facts),)}, size=(100, 200)) for n in range(count)
    ]


def shown(scorer, records, samples, limit=2) -> list[Example]:
    return scorer.examples(records, samples, scorer.rows(records, samples).rows, limit)


def test_a_few_evenly_over_the_split_with_what_was_given_and_is_true():
    samples = samples_of("questions", answers=["red"] * 7 + ["blue"] * 3)
    first, last = shown(VQA(), [{"question_id": 0, "answer": "red"}], samples)
    assert first == Example(0, 0, Path("0.png"), "text 0", "red", "red", 100.0, (100, 200))
    assert (last.id, last.given, last.score) == (30, None, 0)  # not answered
    assert len(shown(VQA(), [], samples, limit=9)) == 5
    assert shown(VQA(), [], samples, limit=0) == []


def test_other_kinds():
    samples = samples_of("expressions", box=BOX)
    (box, *_) = shown(Grounding(), [{"sent_id": 0, "bbox": GUESS}], samples)
    assert (box.given, box.true, dict(box.boxes)) == (GUESS, BOX, {"true": BOX, "given": GUESS})
    captions = samples_of("captions")
    (found, *_) = shown(Retrieval(), [{"caption_id": 0, "image_ids": [4, 0]}], captions)
    assert (found.id, found.given, found.true, found.score) == (0, 4, 0, 0.0)
    hypotheses = samples_of("hypotheses", gold_label="neutral")
    (label, *_) = shown(Entailment(), [{"pair_id": 0, "label": "neutral"}], hypotheses)
    assert (label.given, label.true, label.score) == ("neutral", "neutral", 100.0)


def test_an_answer_about_a_box_that_is_none_is_drawn_without_it():
    (sample, *_) = samples_of("expressions", box=BOX)
    form = RecordSchema("expressions", "sent_id", "length", "a number", is_number)
    found = _example(form, sample, sample.texts["expressions"][0], 0.7, 50.0)
    assert (found.given, dict(found.boxes)) == (0.7, {"true": BOX})


def test_a_picture_of_regions_is_none():
    sample = Sample(1, Path("1.npz"), {"questions": (Text(1, "t", {"answers": ["a"]}),)})
    (only,) = shown(VQA(), [], [sample])
    assert only.image is None


def test_the_table_of_wandb_has_small_pictures_with_boxes(tmp_path):
    Image.new("RGB", (1000, 2000)).save(tmp_path / "big.png")
    broken = tmp_path / "broken.png"
    broken.touch()
    boxes = {"true": BOX, "given": GUESS}
    examples = [
        Example(1, 1, tmp_path / "big.png", "text", GUESS, BOX, 50.0, (100, 200), boxes),
        Example(2, 1, tmp_path / "big.png", "text", None, BOX, 0.0, (100, 200), {"true": BOX}),
        Example("3a", 2, broken, "text", GUESS, BOX, 0.0),
        Example(4, 3, None, "text", GUESS, BOX, 0.0),
    ]
    table = table_of(examples)
    assert table.columns == ["id", "image_id", "image", "text", "given", "true", "score"]
    assert table.get_column("id") == ["1", "2", "3a", "4"]
    assert table.get_column("given") == [GUESS, None, GUESS, GUESS]
    assert table.get_column("score") == [50.0, 0.0, 0.0, 0.0]
    (first, second, *missing) = table.get_column("image")
    assert missing == [None, None]
    assert max(first._width, first._height) == SIDE
    assert set(second._boxes) == {"true"}
    (drawn,) = first._boxes["given"]._val
    assert drawn["position"] == pytest.approx({"minX": 0, "minY": 0, "maxX": 0.5, "maxY": 0.5})
    assert drawn["scores"] == {"score": 50.0}


def test_so_many_evenly_from_the_first_on():
    samples = samples_of("questions", 7, answers=["red"])
    for limit, ids in ((1, [0]), (2, [0, 40]), (3, [0, 30, 60]), (4, [0, 20, 40, 60]), (7, [*range(0, 70, 10)])):
        assert [each.id for each in shown(VQA(), [], samples, limit)] == ids
    assert shown(VQA(), [], samples, -1) == []


def test_lists_are_shown_by_their_first_and_other_texts_are_none_of_it():
    captions = samples_of("captions", 2)
    records = [
        {"caption_id": 0, "image_ids": [1, 0]},
        {"caption_id": 10, "image_ids": []},
        {"image_id": 1, "caption_ids": [0]},
    ]
    first, second = shown(Retrieval(), records, captions)
    assert (first.given, first.true, second.given, second.true) == (1, 0, None, 1)
    by_image = [form for form in Retrieval().schema if form.of_images]
    assert [each.text for each in examples_of(by_image, [], captions, [{"id": 0, "score": 1.0}], 2)] == [""]
    (missing,) = shown(Grounding(), [], samples_of("expressions", 1, box=BOX))
    assert (missing.given, missing.boxes) == (None, {"true": BOX})
