"""Result files as other evaluators write them, field by field, against the records that benchmarks want."""

import json
from pathlib import Path
from typing import Any

import pytest

from fusionkit.cli.main import run
from fusionkit.scoring.foreign_results import listed, recognised, with_ids

ANSWERED = [{"question_id": 7, "answer": "red"}, {"question_id": 8, "answer": "two"}]
CAPTIONED = [{"image_id": 1, "caption": "a dog on grass"}, {"image_id": 2, "caption": "two red boats"}]


def lmms(answer: str, **more: Any) -> dict[str, Any]:
    return {"doc_id": 0, "target": "red", "resps": [[answer]], "filtered_resps": [answer], "doc_hash": "ab", **more}


@pytest.mark.parametrize(
    ("records", "wanted", "whose"),
    [
        (ANSWERED, ANSWERED, None),  # BLIP's and ALBEF's vqa_result.json
        ([{**row, "gt_ans": "x"} for row in ANSWERED], [{**row, "gt_ans": "x"} for row in ANSWERED], None),
        (
            [{"question_id": row["question_id"], "pred_ans": row["answer"], "gt_ans": "x"} for row in ANSWERED],
            [{**row, "gt_ans": "x"} for row in ANSWERED],
            "LAVIS's records",
        ),
        (
            [lmms(row["answer"], doc={"question_id": row["question_id"], "image_id": 3}) for row in ANSWERED],
            ANSWERED,
            "lmms-eval's samples",
        ),
        ([lmms("Red.", exact_match=1.0, submission=row) for row in ANSWERED], ANSWERED, "lmms-eval's samples"),
        (
            [
                lmms(row["caption"], coco_CIDEr={"answer": ["x"], "pred": row["caption"], "image_id": row["image_id"]})
                for row in CAPTIONED
            ],
            CAPTIONED,
            "lmms-eval's samples",
        ),
        ([lmms("red")], [lmms("red")], "lmms-eval's samples"),  # of no question: refused as such
        ([], [], None),
        (["x"], ["x"], None),
    ],
)
def test_records_of_others_are_those_of_the_benchmarks(records, wanted, whose):
    assert recognised(records) == (wanted, whose)


def test_a_log_of_lmms_eval_holds_the_samples():
    assert listed({"args": {}, "logs": ANSWERED}) == ANSWERED
    assert listed(ANSWERED) == ANSWERED
    assert listed({"logs": 3}) == {"logs": 3}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (42, 42),
        ("42", 42),
        ("coco_42", 42),
        ("COCO_val2014_000000000042.jpg", 42),
        ("000042", 42),
        ("43", "43"),
        ("vg_42", 42),
        ("x", "x"),
    ],
)
def test_ids_are_spelt_as_the_annotations_have_them(given, found):
    assert with_ids([{"image_id": given, "caption": "c"}, "no record"], "image_id", [42, 7]) == [
        {"image_id": found, "caption": "c"},
        "no record",
    ]


def test_texts_stay_texts_where_annotations_have_such():
    assert with_ids([{"question_id": "0042"}], "question_id", ["0042"]) == [{"question_id": "0042"}]


def vqa_files(folder: Path) -> Path:
    rows = [
        {
            "question_id": row["question_id"],
            "image_id": 1,
            "answers": [{"answer": row["answer"]}] * 10,
            "answer_type": "other",
            "question_type": "what",
        }
        for row in ANSWERED
    ]
    (folder / "a.json").write_text(json.dumps({"annotations": rows}))
    return folder / "a.json"


@pytest.mark.parametrize("form", ["jsonl", "logs", "lavis"])
def test_a_file_of_another_evaluator_is_scored_as_it_is(form, tmp_path, capsys):
    annotations = vqa_files(tmp_path)
    samples = [lmms(row["answer"], doc={"question_id": str(row["question_id"])}) for row in ANSWERED]
    samples[1]["filtered_resps"] = ["three"]
    path = tmp_path / ("p.jsonl" if form == "jsonl" else "p.json")
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in samples))
    elif form == "logs":
        path.write_text(json.dumps({"args": {"model": "llava"}, "logs": samples}))
    else:
        path.write_text(json.dumps([{"question_id": 7, "pred_ans": "red"}, {"question_id": 8, "pred_ans": "three"}]))
    options = [f"predictions={path}", f"annotations={annotations}", f"output={tmp_path}/out", "resamples=10"]
    assert run(["score", "benchmark=vqav2", *options]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "out/metrics.json").read_text())["vqav2/accuracy"] == 50.0
    assert json.loads((tmp_path / "out/details.json").read_text())["vqav2"]["notes"]["file"].startswith("read as ")
