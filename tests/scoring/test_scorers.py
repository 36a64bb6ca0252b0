"""What a run scores on its own data, by the scorers of its tasks."""

from pathlib import Path

import pytest
from hydra.utils import get_object

from fusionkit.assembly import trust
from fusionkit.assembly.renames import renamed
from fusionkit.data.sample import Sample, Text
from fusionkit.scoring import scorers
from fusionkit.scoring.base import BaseScorer
from fusionkit.scoring.sample_scores import check_rows, known_direction, prefixed, scores_of

ALL = {name: value for name, value in vars(scorers).items() if isinstance(value, BaseScorer)}
BOX = {"box": (0, 0, 10, 10)}
TALK = {"roles": ["user", "assistant"], "turns": ["it is here now", "So it is"]}
WORDS = [
    {"start": start, "end": end, "label": label}
    for start, end, label in ((0, 2, "O"), (3, 5, "O"), (6, 10, "LOC"), (11, 14, "O"))
]
TEXTS = {  # kind, facts, record, and what its score is called
    "VQA": ("questions", {"answers": ["red"] * 5}, {"question_id": 1, "answer": "red"}, "vqa_accuracy"),
    "GROUNDING": ("expressions", BOX, {"sent_id": 1, "bbox": [0, 0, 10, 10]}, "grounding_acc50"),
    "WEAK_GROUNDING": ("expressions", BOX, {"sent_id": 1, "bbox": [0, 0, 10, 10]}, "weak_grounding_acc50"),
    "RETRIEVAL": ("captions", {}, {"caption_id": 1, "image_ids": [7], "scores": [1.0]}, "text_to_image_r1"),
    "MASKED": ("captions", {}, {"caption_id": 1, "position": 1, "token": "a", "target": "a"}, "mlm_accuracy"),
    "HIDDEN": ("captions", {}, {"image_id": 7, "error": 0.0, "mean_error": 1.0}, "mrm_explained"),
    "CAPTIONING": ("captions", {}, {"image_id": 7, "caption": "it is here now"}, "caption_bleu4"),
    "WORD_LABELS": (
        "tagged",
        {"word_labels": ["O", "O", "LOC", "O"]},
        {"text_id": 1, "labels": WORDS},
        "words_accuracy",
    ),
    "ENTAILMENT": ("hypotheses", {"gold_label": "neutral"}, {"pair_id": 1, "label": "neutral"}, "entailment_accuracy"),
    "NLVR2": ("statements", {"label": 1}, {"statement_id": 1, "label": "True"}, "nlvr2_accuracy"),
    "REPLIES": ("conversations", TALK, {"conversation_id": 1, "answer": "so it is"}, "chat_rouge_l"),
}


def sample(name):
    kind, facts, *_ = TEXTS[name]
    return [Sample(7, Path("7.png"), {kind: (Text(1, "it is here now", facts),)}, size=(20, 20))]


def test_each_scorer_is_here_and_trusted():
    assert ALL.keys() == TEXTS.keys() | {"MATCHING"} == set(trust.SCORERS)
    assert all(any(scorer is each for each in scorers.OURS) for scorer in ALL.values())


@pytest.mark.parametrize("name", TEXTS)
def test_a_right_record_scores_100_and_so_do_its_rows(name):
    scorer, samples, (*_, record, metric) = ALL[name], sample(name), TEXTS[name]
    scores = scorer([record], samples)
    assert scores[metric] == pytest.approx(100)
    judged = scorer.rows([record], samples)
    assert judged.rows[0]["score"] == 100
    rows = [prefixed(row, scorer.own_name) for row in judged.rows]
    check_rows(rows, Path("x"))
    found = scores_of(rows)
    assert {metric: found[metric] for metric in scores} == pytest.approx(scores)
    assert not any("/" in metric for metric in found)
    assert judged.rows == scorer.rows([record], samples).rows  # nothing of them is renamed in place


@pytest.mark.parametrize("name", TEXTS)
def test_every_metric_has_a_direction_and_a_comparison_shows_one_of_them(name):
    scorer, samples, (*_, record, metric) = ALL[name], sample(name), TEXTS[name]
    found = list(scores_of(scorer.rows([record], samples).rows))
    for names in (found, [scorer.own_name(each) for each in found]):
        assert scorer.directions(names) == {each: "rank" not in each for each in names}
    assert all(known_direction(each, scorer.metrics) is not None for each in found)
    assert metric in scorer.headlines_of_run()
    assert scorer.headlines_of_run() & {scorer.own_name(each) for each in found}


@pytest.mark.parametrize("name", ALL)
def test_guessers_are_scored_by_the_scorer_itself(name):
    samples = sample(name) if name in TEXTS else []
    guesses = ALL[name].baselines(samples, samples, [], str.split, ALL[name])
    names = {key.rpartition("_")[0] for key in guesses}
    assert {key.rpartition("_")[2] for key in guesses} <= {"baseline", "chance"}
    assert name == "MASKED" or TEXTS.get(name, ("itm_accuracy",))[-1] in names


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "HIDDEN"])
def test_records_are_shown_on_a_sheet_and_one_by_one(name):
    scorer, samples, records = ALL[name], sample(name), [TEXTS[name][2]]
    rows = scorer.rows(records, samples).rows
    sheet = scorer.sheet(records, samples, rows)
    text = "" if name == "CAPTIONING" else "it is here now"
    assert [panel.heading for panel in sheet.panels] == [text]
    (shown,) = scorer.examples(records, samples, rows, 5)
    assert (shown.text, shown.score, shown.image_id) == (text, 100, 7)


def test_nobody_sees_hidden_features():
    rows = ALL["HIDDEN"].rows([TEXTS["HIDDEN"][2]], sample("HIDDEN")).rows
    assert ALL["HIDDEN"].sheet([TEXTS["HIDDEN"][2]], sample("HIDDEN"), rows).panels == []


def test_notes_are_about_the_samples():
    assert ALL["VQA"].notes(sample("VQA")) == {}
    few = Sample(7, Path("7.png"), {"captions": (Text(1, "la mesa " * 10),)})
    assert ALL["CAPTIONING"].notes([few]).keys() == {"language"}
    assert ALL["RETRIEVAL"].notes([few]) == {}


def test_the_rule_of_a_metric_names_it():
    evalai = scorers.OURS[-1]
    assert evalai.headlines_of_run() == {"evalai_accuracy", "vqa_evalai_accuracy"}
    assert evalai.directions(["evalai_accuracy/other", "accuracy"]) == {"evalai_accuracy/other": True}


@pytest.mark.parametrize(
    ("stored", "today"),
    [
        ("fusionkit.evaluation.benchmarks.VQA", scorers.VQA),
        ("fusionkit.evaluation.benchmarks.WEAK_GROUNDING", scorers.WEAK_GROUNDING),
        ("fusionkit.evaluation.vqa.VQAMeasure", type(scorers.VQA)),
        ("fusionkit.evaluation.ranking.RetrievalMeasure", type(scorers.RETRIEVAL)),
        ("fusionkit.evaluation.labels.NLVR2Measure", type(scorers.NLVR2)),
        ("fusionkit.evaluation.labels.EntailmentMeasure", type(scorers.ENTAILMENT)),
        ("fusionkit.evaluation.grounding.GroundingMeasure", type(scorers.GROUNDING)),
        ("fusionkit.scoring.vqa.VQAMeasure", type(scorers.VQA)),
        ("fusionkit.scoring.ranked_retrieval.RetrievalMeasure", type(scorers.RETRIEVAL)),
    ],
)
def test_scorers_of_earlier_checkpoints_are_read_as_those_of_today(stored, today):
    block = {"mine": {"scorer": {"_target_": "hydra.utils.get_object", "path": renamed(stored)}}}
    trust.require_trusted_block(block, "task", "task", "a.ckpt")
    assert get_object(renamed(stored)) is today
