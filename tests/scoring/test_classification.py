from pathlib import Path

import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.scoring import scorers
from fusionkit.scoring.classification import NLVR2, Entailment
from fusionkit.scoring.scorers import ENTAILMENT


def sample(kind, *texts):
    return [Sample(1, Path("x.jpg"), {kind: texts})]


PAIRS = sample(
    "hypotheses",
    Text("a", "nobody sleeps", {"gold_label": "contradiction"}),
    Text("b", "a man sleeps", {"gold_label": "entailment"}),
    Text("c", "a man sleeps well", {"gold_label": "entailment"}),
    Text("d", "a tall man sleeps", {"gold_label": "entailment"}),
    Text("e", "of a secret split", {}),
)
STATEMENTS = sample(
    "statements",
    *(Text(f"dev-{s}-{p}-0", f"sentence {s}", {"label": int(p < 2)}) for s in (1, 2) for p in (0, 1, 2)),
)


def test_entailment_accuracy_overall_and_by_label():
    records = [{"pair_id": i, "label": "entailment"} for i in "abc"]  # d is not answered
    assert ENTAILMENT(records, PAIRS) == {
        "entailment_accuracy": 50.0,
        "entailment_accuracy_contradiction": 0.0,
        "entailment_accuracy_entailment": pytest.approx(200 / 3),
    }
    with pytest.raises(DataError, match="unknown pair_id 'z'"):
        ENTAILMENT([{"pair_id": "z", "label": "neutral"}], PAIRS)


def test_consistency_wants_all_pairs_of_a_sentence():
    right = {text.id: str(bool(text.facts["label"])) for text in STATEMENTS[0].texts["statements"]}
    records = [{"statement_id": i, "label": label} for i, label in right.items()]
    assert scorers.NLVR2(records, STATEMENTS) == {"nlvr2_accuracy": 100.0, "nlvr2_consistency": 100.0}
    records[0]["label"] = "False"
    assert scorers.NLVR2(records, STATEMENTS) == {"nlvr2_accuracy": pytest.approx(500 / 6), "nlvr2_consistency": 50.0}
    assert scorers.NLVR2([], sample("statements", Text("test2-1-0-0", "secret", {}))) == {}


def test_guessers_read_the_words_or_nothing():
    scores = ENTAILMENT.baselines(PAIRS, PAIRS, [], str.split, ENTAILMENT)
    assert scores["entailment_accuracy_baseline"] == 100.0  # "nobody" tells
    assert scores["entailment_accuracy_chance"] == 75.0
    assert scorers.NLVR2.baselines(STATEMENTS, STATEMENTS, [], str.split, scorers.NLVR2)[
        "nlvr2_accuracy_chance"
    ] == pytest.approx(400 / 6)
    assert ENTAILMENT.baselines([], PAIRS, [], str.split, ENTAILMENT) == {}


def test_what_is_asked_and_what_is_taken_for_an_answer():
    (form,) = Entailment().schema
    assert (form.wanted(PAIRS), form.expected) == (list("abcde"), "one of contradiction, neutral, entailment")
    assert [form.is_valid(label) for label in ("neutral", "Neutral", 1)] == [True, False, False]
    (form,) = NLVR2().schema
    assert (form.wanted(STATEMENTS)[0], [form.is_valid(label) for label in ("True", "False", True)]) == (
        "dev-1-0-0",
        [True, True, False],
    )


def test_rows_of_labels():
    rows = Entailment().rows([{"pair_id": "b", "label": "entailment"}], PAIRS).rows
    assert [(row["id"], row["score"], row["image_id"]) for row in rows] == [
        (key, 100.0 * (key == "b"), PAIRS[0].image_id) for key in "abcd"
    ]
    assert rows[1]["values"] == {"accuracy": 100.0, "accuracy/entailment": 100.0}
    given = [{"statement_id": f"dev-1-{pair}-0", "label": "True"} for pair in (0, 1, 2)]
    rows = NLVR2().rows(given, STATEMENTS).rows
    assert [row["image_id"] for row in rows] == ["dev-1"] * 3 + ["dev-2"] * 3
    assert [row["score"] for row in rows] == [100, 100, 0, 0, 0, 0]
    assert [row["values"].get("consistency") for row in rows] == [0, None, None, 0, None, None]
