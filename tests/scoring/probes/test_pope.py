"""POPE's measures against its `evaluate.py`, written anew here."""

from pathlib import Path

import numpy as np
import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError
from fusionkit.scoring.bootstrap import intervals
from fusionkit.scoring.probes.pope import Pope, PopeStatements, says_yes
from fusionkit.scoring.sample_scores import scores_of

THINGS = ("cat", "dog", "car")


def world(labels):
    """A question a label, three an image, with a caption for yes and one for no."""
    samples = []
    for start in range(0, len(labels), 3):
        numbers = range(start, min(start + 3, len(labels)))
        asked = [Text(n, f"Is there a {THINGS[n % 3]} in the image?", {"label": labels[n]}) for n in numbers]
        said = [
            Text(f"{n}/{says}", f"{says}", {"pair": n, "says": says, "label": labels[n]})
            for n in numbers
            for says in ("yes", "no")
        ]
        texts = {"questions": tuple(asked), "captions": tuple(said)}
        samples.append(Sample(f"{start}.jpg", Path(f"{start}.jpg"), texts))
    return samples


def official(answers, labels):
    """As evaluate.py prints, in percent."""
    said = []
    for text in answers:
        text = text.split(".")[0] if text.find(".") != -1 else text
        words = text.replace(",", "").split(" ")
        said.append(0 if "No" in words or "not" in words or "no" in words else 1)
    truth = [0 if label == "no" else 1 for label in labels]
    pairs = list(zip(said, truth, strict=True))
    tp, fp, tn, fn = (pairs.count(each) for each in ((1, 1), (1, 0), (0, 0), (0, 1)))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": 100 * (tp + tn) / (tp + tn + fp + fn),
        "yes_ratio": 100 * said.count(1) / len(said),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "f1": 100 * 2 * precision * recall / (precision + recall),
    }


@pytest.mark.parametrize(
    ("answer", "is_yes"),
    [
        ("Yes", True),
        ("no", False),
        ("No", False),
        ("NO", True),  # as the script has it
        ("No, there is no cat.", False),
        ("no, sir", False),
        ("There is not a cat", False),
        ("Yes. There is no dog.", True),
        ("nothing", True),
        ("", True),
        ("I see,no", True),  # the comma goes, and "seeno" is one word
    ],
)
def test_an_answer_is_read_as_by_the_script(answer, is_yes):
    assert says_yes(answer) is is_yes


def test_measures_are_those_of_the_script():
    draw = np.random.default_rng(2)
    labels = [str(each) for each in draw.choice(["yes", "no"], 50)]
    answers = [str(each) for each in draw.choice(["yes", "no", "No, not there.", "Yes, a cat.", "a dog", "yes"], 50)]
    records = [{"question_id": n, "answer": answer} for n, answer in enumerate(answers)]
    judged = Pope().rows(records, world(labels))
    assert scores_of(judged.rows) == {name: pytest.approx(value) for name, value in official(answers, labels).items()}
    ends = intervals(judged.rows, 200)
    assert set(ends) == {"accuracy", "yes_ratio", "precision", "recall", "f1"}
    assert all(low < high for low, high in ends.values())


def test_captions_answer_by_the_higher_score_and_a_tie_is_a_no():
    draw = np.random.default_rng(4)
    labels = [str(each) for each in draw.choice(["yes", "no"], 40)]
    scores = draw.integers(0, 3, size=(40, 2))
    answers = ["yes" if yes > no else "no" for yes, no in scores]
    assert any(yes == no for yes, no in scores)
    said = {
        f"{n}/{name}": float(score)
        for n, both in enumerate(scores)
        for name, score in zip(("yes", "no"), both, strict=True)
    }
    records = [{"caption_id": key, "cosine": score} for key, score in said.items()]
    judged = PopeStatements("cosine").rows(records, world(labels))
    assert scores_of(judged.rows) == {name: pytest.approx(value) for name, value in official(answers, labels).items()}
    assert "cosine" in judged.notes["scored by"]
    with pytest.raises(ConfigError, match="is 'cosin'; did you mean 'cosine'"):
        PopeStatements("cosin")


def test_a_question_without_an_answer_is_wrong_and_shares_of_nothing_are_missing():
    labels = ["yes", "no", "yes"]
    assert scores_of(Pope().rows([], world(labels)).rows)["accuracy"] == 0
    half = [{"caption_id": "0/yes", "cosine": 1.0}]
    assert scores_of(PopeStatements().rows(half, world(labels)).rows)["accuracy"] == 0
    never = [{"question_id": n, "answer": "no"} for n in range(3)]
    found = scores_of(Pope().rows(never, world(labels)).rows)
    assert "precision" not in found
    assert (found["recall"], found["f1"], found["yes_ratio"]) == (0, 0, 0)


@pytest.mark.parametrize("scorer", [Pope(), PopeStatements("log_odds")])
def test_guessers_answer_without_the_image(scorer):
    """Cats are always there, dogs and cars never: who reads the question knows, who says yes is right in a third."""
    samples = world(["yes", "no", "no"] * 6)

    def score(records, samples):
        return scores_of(scorer.rows(records, samples).rows)

    found = scorer.baselines([], samples, [], str.split, score)
    assert found["accuracy_baseline"] == found["f1_baseline"] == 100
    assert found["accuracy_chance"] == pytest.approx(100 / 3)
    assert (found["yes_ratio_chance"], found["recall_chance"]) == (100, 100)
    assert found["yes_ratio_baseline"] == pytest.approx(100 / 3)


def test_the_guesser_has_not_seen_the_answer():
    """One image alone differs from the others: the others tell the guesser wrong."""
    samples = world(["no"] * 3 + ["yes"] * 12)

    def score(records, samples):
        return {str(record["question_id"]): record["answer"] for record in records}

    found = Pope().baselines([], samples, [], str.split, score)
    assert [found[f"{n}_baseline"] for n in range(3)] == ["yes"] * 3


def test_a_gallery_shows_yes_or_no():
    samples = world(["yes", "no", "yes"])
    records = [{"question_id": 0, "answer": "No."}, {"question_id": 1, "answer": "no"}]
    scorer = Pope()
    shown = scorer.examples(records, samples, scorer.rows(records, samples).rows, None)
    assert [(each.given, each.true, each.score) for each in shown] == [
        ("no", "yes", 0),
        ("no", "no", 100),
        (None, "yes", 0),
    ]
    assert scorer.headlines == ("f1", "accuracy")
