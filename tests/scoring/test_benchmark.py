"""What is written about the score of a benchmark."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError, DataError
from fusionkit.scoring.benchmark import Published, score_predictions
from fusionkit.scoring.probes.foils import Foils
from fusionkit.scoring.results import Draws, Scored, judge, published_scores, write_scores
from fusionkit.scoring.sample_scores import SampleScores
from fusionkit.scoring.scorers import ENTAILMENT
from fusionkit.scoring.vqa import VQA

SAMPLES = [
    Sample(at, Path("x.png"), {"questions": tuple(Text(10 * at + n, "?", {"answers": ["yes"] * 5}) for n in range(2))})
    for at in range(3)
]
READER = SimpleNamespace(read=lambda split: SAMPLES if split == "val" else [Sample(1, Path("x.png"), {})])
SCORERS = {"entailment": ENTAILMENT, "vqa": VQA()}


def benchmark(splits=("val",), scorers=SCORERS):
    return Published("toy", "a protocol", READER, splits, scorers)


def test_what_a_benchmark_is_unless_told():
    made = benchmark()
    assert made == Published("toy", "a protocol", READER, ("val",), SCORERS, {}, None, {}, None, 32, 40)


def test_a_label_tells_several_scores_apart():
    one = {"vqa": VQA()}
    assert benchmark(scorers=one).label("val", "vqa") == "toy"
    assert benchmark(("val", "test"), one).label("val", "vqa") == "toy/val"
    assert benchmark().label("val", "vqa") == "toy/vqa"
    assert benchmark(("val", "test")).label("val", "vqa") == "toy/val/vqa"


def test_records_say_which_task_answered():
    answered_by = benchmark().answered_by
    assert answered_by([{"question_id": 1}]) == "vqa"
    assert answered_by([{"pair_id": 1}, {"question_id": 1}]) == "entailment"
    assert answered_by([]) == answered_by(["x"]) == answered_by([{"a": 1}]) == "entailment"


def test_records_of_one_key_are_told_apart_by_their_value():
    scorers = {"itm": Foils("log_odds"), "itc": Foils("cosine")}
    answered_by = benchmark(scorers=scorers).answered_by
    assert answered_by([{"caption_id": 1, "cosine": 0.5}]) == "itc"
    assert answered_by([{"caption_id": 1, "log_odds": 0.5}]) == "itm"
    assert answered_by([{"caption_id": 1, "score": 0.5}]) == "itm"


def test_another_evaluators_file_is_scored_by_the_ids_of_the_annotations():
    records = [{"question_id": str(key), "pred_ans": "yes"} for key in (0, 1, 10, 11, 20, 21)]
    scored = score_predictions(benchmark(), records, Path("p.json"), "val")
    assert [row["score"] for row in scored.judged.rows] == [100.0] * 6
    assert scored.judged.notes["file"] == "read as LAVIS's records"


def test_a_file_is_scored_by_its_task():
    records = [{"question_id": key, "answer": "yes"} for key in (0, 1, 10, 11, 20, 21)]
    scored = score_predictions(benchmark(), records, Path("p.json"), "val")
    assert (scored.label, scored.split, scored.protocol, scored.guesses) == ("toy/vqa", "val", "a protocol", {})
    assert scored.judged == VQA().rows(records, SAMPLES)
    assert scored.directions == {"accuracy": True, "agreement": True}
    assert score_predictions(benchmark(scorers={"vqa": VQA()}), records, Path("p.json"), "val").label == "toy"
    with pytest.raises(DataError, match="first 21; add them, or count them as wrong with allow_missing=true"):
        score_predictions(benchmark(), records[:-1], Path("p.json"), "val")
    few = score_predictions(benchmark(), records[:-1], Path("p.json"), "val", True)
    assert [row["score"] for row in few.judged.rows] == [100.0] * 5 + [0.0]
    with pytest.raises(DataError, match="the annotations of toy, split 'dark', hold no answers to score against"):
        judge(VQA(), [], [Sample(1, Path("x.png"), {})], "toy", "dark")


def rows(scores):
    return [{"id": at, "score": s, "image_id": at // 2, "values": {"a/b": s, "é": 1}} for at, s in enumerate(scores)]


def test_scores_their_intervals_and_directions_are_written(tmp_path):
    judged = SampleScores(rows([100.0, 0.0, 100.00000001]), {"rule": "é"})
    scored = Scored("toy", "val", "how", judged, published_scores(judged), {"a_chance": 3.0}, {"a/b": True, "é": False})
    details = write_scores(tmp_path, [scored], Draws(1200, 5))
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
    assert json.loads((tmp_path / "directions.json").read_text()) == {"toy/a/b": True, "toy/é": False}
    assert {path.name for path in tmp_path.iterdir()} == {"directions.json", "metrics.json", "details.json"}


def test_several_tasks_of_one_source_share_its_prefix_and_only_listed_scores_have_intervals(tmp_path):
    judged = SampleScores(rows([100.0, 0.0]))
    several = [Scored(f"coco_{name}", "test", "", judged, {"a/b": 50.0}, prefix="coco") for name in ("vqa", "own")]
    several += [Scored("coco_plain", "test", "", SampleScores([]), {"counted": 3.0}, prefix="coco")]
    details = write_scores(tmp_path, several, Draws(10))
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"coco/a/b": 50.0, "coco/counted": 3.0}
    assert {label: (about["prefix"], list(about["intervals"])) for label, about in details.items()} == {
        "coco_vqa": ("coco", ["a/b"]),
        "coco_own": ("coco", ["a/b"]),
        "coco_plain": ("coco", []),
    }
    assert (details["coco_plain"]["samples"], details["coco_plain"]["scores"]) == (0, {"counted": 3.0})
    assert not (tmp_path / "directions.json").exists()
    with pytest.raises(ConfigError, match="resamples is 0"):
        Draws(0)


def test_numbers_of_any_library_are_written(tmp_path):
    judged = SampleScores([], scores={"mae": np.float32(0.5)})
    details = write_scores(
        tmp_path, [Scored("own", "val", "", judged, judged.scores, {"mae_chance": np.float32(2)})], Draws()
    )
    assert json.loads((tmp_path / "details.json").read_text()) == details
    assert (details["own"]["scores"], details["own"]["guesses"]) == ({"mae": 0.5}, {"mae_chance": 2.0})


def test_a_scorer_of_a_benchmark_says_what_its_records_look_like():
    with pytest.raises(ConfigError, match="benchmark toy: the scorer of own does not say what its records look like"):
        score_predictions(benchmark(scorers={"own": lambda records, samples: {"a": 1.0}}), [], Path("p.json"), "val")
