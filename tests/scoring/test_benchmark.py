"""What is written about the score of a benchmark."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.scoring.benchmark import Published, Scored, judge, score_predictions, write_scores
from fusionkit.scoring.classification import EntailmentMeasure
from fusionkit.scoring.records import read_records
from fusionkit.scoring.sample_scores import SampleScores
from fusionkit.scoring.vqa import VQAMeasure

SAMPLES = [
    Sample(at, Path("x.png"), {"questions": tuple(Text(10 * at + n, "?", {"answers": ["yes"] * 5}) for n in range(2))})
    for at in range(3)
]
READER = SimpleNamespace(read=lambda split: SAMPLES if split == "val" else [Sample(1, Path("x.png"), {})])
MEASURES = {"entailment": EntailmentMeasure(), "vqa": VQAMeasure()}


def benchmark(splits=("val",), measures=MEASURES):
    return Published("toy", "a protocol", READER, splits, measures)


def test_what_a_benchmark_is_unless_told():
    made = benchmark()
    assert made == Published("toy", "a protocol", READER, ("val",), MEASURES, {}, None, {}, None, 32, 40)


def test_a_label_tells_several_scores_apart():
    one = {"vqa": VQAMeasure()}
    assert benchmark(measures=one).label("val", "vqa") == "toy"
    assert benchmark(("val", "test"), one).label("val", "vqa") == "toy/val"
    assert benchmark().label("val", "vqa") == "toy/vqa"
    assert benchmark(("val", "test")).label("val", "vqa") == "toy/val/vqa"


def test_records_say_which_task_answered():
    answered_by = benchmark().answered_by
    assert answered_by([{"question_id": 1}]) == "vqa"
    assert answered_by([{"pair_id": 1}, {"question_id": 1}]) == "entailment"
    assert answered_by([]) == answered_by(["x"]) == answered_by([{"a": 1}]) == "entailment"


def test_a_file_is_scored_by_its_task():
    records = [{"question_id": key, "answer": "yes"} for key in (0, 1, 10, 11, 20, 21)]
    scored = score_predictions(benchmark(), records, Path("p.json"), "val")
    assert (scored.label, scored.split, scored.protocol, scored.guesses) == ("toy/vqa", "val", "a protocol", {})
    assert scored.judged == VQAMeasure()(records, SAMPLES)
    assert score_predictions(benchmark(measures={"vqa": VQAMeasure()}), records, Path("p.json"), "val").label == "toy"
    with pytest.raises(DataError, match="first 21; add them, or count them as wrong with allow_missing=true"):
        score_predictions(benchmark(), records[:-1], Path("p.json"), "val")
    few = score_predictions(benchmark(), records[:-1], Path("p.json"), "val", True)
    assert [row["score"] for row in few.judged.rows] == [100.0] * 5 + [0.0]
    with pytest.raises(DataError, match="the annotations of toy, split 'dark', hold no answers to score against"):
        judge(VQAMeasure(), [], [Sample(1, Path("x.png"), {})], "toy", "dark")


def rows(scores):
    return [{"id": at, "score": s, "image_id": at // 2, "values": {"a/b": s, "é": 1}} for at, s in enumerate(scores)]


def test_scores_their_intervals_and_their_rows_are_written(tmp_path):
    judged = SampleScores(rows([100.0, 0.0, 100.00000001]), {"rule": "é"})
    details = write_scores(tmp_path, [Scored("toy", "val", "how", judged, {"a_chance": 3.0})], 1200, 5)
    about = details["toy"]
    assert (tmp_path / "details.json").read_text() == json.dumps(details, indent=1, ensure_ascii=False) + "\n"
    assert about == {
        "split": "val",
        "protocol": "how",
        "notes": {"rule": "é"},
        "samples": 3,
        "images": 2,
        "scores": {"a/b": 66.6666667, "é": 1.0},
        "guesses": {"a_chance": 3.0},
        "intervals": {"a/b": [50.0, pytest.approx(100)], "é": [1.0, 1.0]},
        "about_intervals": "95%, bootstrap over 2 images, 1,200 draws, seed 5",
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "toy/a/b": 66.6666667,
        "toy/é": 1.0,
        "toy/a_chance": 3.0,
    }
    assert read_records(tmp_path / "samples.jsonl") == judged.rows
    assert {path.name for path in tmp_path.iterdir()} == {"samples.jsonl", "metrics.json", "details.json"}


def test_rows_of_several_scores_have_files_of_their_own(tmp_path):
    several = [
        Scored(label, "val", "", SampleScores(rows([score]))) for label, score in (("toy/val", 1.0), ("toy/test", 2.0))
    ]
    assert write_scores(tmp_path, several, 1, 0).keys() == {"toy/val", "toy/test"}
    assert not (tmp_path / "samples.jsonl").exists()
    for each in several:
        assert read_records(tmp_path / f"samples/{each.label.replace('/', '_')}.jsonl") == each.judged.rows
