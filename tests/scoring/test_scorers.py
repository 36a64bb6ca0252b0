"""What a run scores on its own data, by the scorers of its tasks."""

from pathlib import Path

import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.scoring import scorers as benchmarks
from fusionkit.scoring.scorers import Benchmark

ALL = {name: value for name, value in vars(benchmarks).items() if isinstance(value, Benchmark)}
BOX = {"box": (0, 0, 10, 10)}
TEXTS = {  # kind, facts, record, and what its score is called
    "VQA": ("questions", {"answers": ["red"] * 5}, {"question_id": 1, "answer": "red"}, "vqa_accuracy"),
    "GROUNDING": ("expressions", BOX, {"sent_id": 1, "bbox": [0, 0, 10, 10]}, "grounding_acc50"),
    "WEAK_GROUNDING": ("expressions", BOX, {"sent_id": 1, "bbox": [0, 0, 10, 10]}, "weak_grounding_acc50"),
    "RETRIEVAL": ("captions", {}, {"caption_id": 1, "image_ids": [7], "scores": [1.0]}, "text_to_image_r1"),
    "MASKED": ("captions", {}, {"caption_id": 1, "position": 1, "token": "a", "target": "a"}, "mlm_accuracy"),
    "HIDDEN": ("captions", {}, {"image_id": 7, "error": 0.0, "mean_error": 1.0}, "mrm_explained"),
    "CAPTIONING": ("captions", {}, {"image_id": 7, "caption": "it is here now"}, "caption_bleu4"),
    "ENTAILMENT": ("hypotheses", {"gold_label": "neutral"}, {"pair_id": 1, "label": "neutral"}, "entailment_accuracy"),
    "NLVR2": ("statements", {"label": 1}, {"statement_id": 1, "label": "True"}, "nlvr2_accuracy"),
}


def sample(name):
    kind, facts, *_ = TEXTS[name]
    return [Sample(7, Path("7.png"), {kind: (Text(1, "it is here now", facts),)}, size=(20, 20))]


def test_each_benchmark_is_here():
    assert ALL.keys() == TEXTS.keys() | {"MATCHING"}


@pytest.mark.parametrize("name", TEXTS)
def test_a_right_record_scores_100_and_so_do_its_rows(name):
    benchmark, samples, (*_, record, metric) = ALL[name], sample(name), TEXTS[name]
    scores = benchmark([record], samples)
    assert scores[metric] == pytest.approx(100)
    rows = benchmark.rows([record], samples)
    if benchmark.measure is None:
        assert rows == []
    else:
        assert metric in {name for row in rows for name in row["values"]}
        assert not any("/" in name for row in rows for name in row["values"])
        assert rows[0]["score"] == 100


@pytest.mark.parametrize("name", ALL)
def test_guessers_are_scored_by_the_benchmark_itself(name):
    samples = sample(name) if name in TEXTS else []
    guesses = ALL[name].baseline(samples, samples, [], str.split, ALL[name])
    names = {key.rpartition("_")[0] for key in guesses}
    assert {key.rpartition("_")[2] for key in guesses} <= {"baseline", "chance"}
    assert name == "MASKED" or TEXTS.get(name, ("itm_accuracy",))[-1] in names


@pytest.mark.parametrize("name", ["VQA", "GROUNDING", "WEAK_GROUNDING", "RETRIEVAL"])
def test_records_are_shown_on_a_sheet(name):
    sheet = ALL[name].sheet([TEXTS[name][2]], sample(name))
    assert [panel.heading for panel in sheet.panels] == ["it is here now"]


def test_notes_are_about_the_samples():
    assert {name for name, each in ALL.items() if each.notes} == {"VQA", "CAPTIONING"}
    assert ALL["VQA"].notes(sample("VQA")) == {}
    few = Sample(7, Path("7.png"), {"captions": (Text(1, "la mesa " * 10),)})
    assert ALL["CAPTIONING"].notes([few]).keys() == {"language"}
