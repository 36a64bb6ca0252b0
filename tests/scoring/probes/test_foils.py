"""Captions beside foils: each metric against the authors' own way of counting, written anew here."""

import json
from pathlib import Path

import numpy as np
import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.foils import foiled, samples_of
from fusionkit.errors import ConfigError, DataError
from fusionkit.scoring.bootstrap import intervals
from fusionkit.scoring.probes.foils import Foils
from fusionkit.scoring.probes.pairs import guessed_scores
from fusionkit.scoring.record_schema import check_predictions
from fusionkit.scoring.results import published_scores
from fusionkit.scoring.sample_scores import check_rows, prefixed, scores_of

GROUPS = {"add": ["add_att", "add_obj"], "swap": ["swap_att"], "replace": ["replace_rel"]}
SIZES = {"add_att": 3, "add_obj": 5, "swap_att": 2, "other-kind": 6}


def world(sizes=SIZES, images=4):
    """Pairs of several subsets on a few images, and scores, every third pair's a tie."""
    draw = np.random.default_rng(3)
    pairs, scores = [], {}
    for subset, size in sizes.items():
        for number in range(size):
            image = f"{number % images}.jpg"
            pairs.append(foiled(f"{subset}/{number}", image, f"a {number} {subset}", f"no {number} {subset}", subset))
            caption, foil = draw.normal(size=2).round(1)
            scores[pairs[-1].caption.id] = float(caption)
            scores[pairs[-1].foil.id] = float(caption if number % 3 == 2 else foil)
    return samples_of(pairs, {f"{n}.jpg": Path(f"{n}.jpg") for n in range(images)}), scores


def records_of(scores, value="log_odds"):
    return [{"caption_id": key, value: score} for key, score in scores.items()]


def by_subset(scores, sizes=SIZES):
    """(caption, foil) of each pair, by subset."""
    return {
        name: [(scores[f"{name}/{n}/caption"], scores[f"{name}/{n}/foil"]) for n in range(size)]
        for name, size in sizes.items()
    }


def percent(flags):
    flags = list(flags)
    return 100 * sum(flags) / len(flags)


def test_accuracy_is_that_of_sugarcrepes_script_and_its_averages_are_over_kinds():
    samples, scores = world()
    scorer = Foils(averages={"average": None, **GROUPS})
    found = published_scores(scorer.rows(records_of(scores), samples))
    pairs = by_subset(scores)
    ties = sum(caption == foil for both in pairs.values() for caption, foil in both)
    notes = scorer.rows(records_of(scores), samples).notes
    assert notes["ties"].startswith(f"{ties} of 16 pairs have equal scores, which count as wrong")
    assert ties > 0
    own = {name: percent(1 if caption > foil else 0 for caption, foil in both) for name, both in pairs.items()}
    assert found == {
        "accuracy": pytest.approx(percent(caption > foil for both in pairs.values() for caption, foil in both)),
        "accuracy/add_att": pytest.approx(own["add_att"]),
        "accuracy/add_obj": pytest.approx(own["add_obj"]),
        "accuracy/swap_att": pytest.approx(own["swap_att"]),
        "accuracy/other_kind": pytest.approx(own["other-kind"]),
        "accuracy/average": pytest.approx(np.mean(list(own.values()))),
        "accuracy/add": pytest.approx((own["add_att"] + own["add_obj"]) / 2),
        "accuracy/swap": pytest.approx(own["swap_att"]),
    }
    assert len(set(own.values())) > 2
    assert scorer.headlines == ("average",)
    assert scorer.directions(list(found)) == dict.fromkeys(found, True)


def test_the_measures_of_a_matching_head_are_valses():
    samples, scores = world()
    scorer = Foils(metric="acc_r", averages={"average": None}, threshold=0.0)
    judged = scorer.rows(records_of(scores), samples)
    found, pairs = published_scores(judged), by_subset(scores)
    everything = [pair for both in pairs.values() for pair in both]
    told = {}
    parts = {f"/subset/{name.replace('-', '_')}": both for name, both in pairs.items()}
    for name, both in {"": everything, **parts}.items():
        count, fits, detected, ranked = len(both), 0, 0, 0
        for caption, foil in both:  # as lxmert_valse_eval.py, of the difference of its two logits
            fits += caption > 0
            detected += foil <= 0
            ranked += caption > foil
        told[f"acc{name}"] = (fits + detected) / count * 50
        told[f"p_c{name}"], told[f"p_f{name}"] = fits / count * 100, detected / count * 100
        told[f"acc_r{name.replace('/subset', '')}"] = ranked / count * 100
        told[f"min_p_c_p_f{name}"] = min(told[f"p_c{name}"], told[f"p_f{name}"])
        wins = [(c > f) + (c == f) / 2 for c, _ in both for _, f in both]
        told[f"auroc{name}"] = 100 * np.mean(wins)
    for metric in ("acc", "p_c", "p_f"):
        told[f"{metric}/average"] = np.mean([told[f"{metric}{name}"] for name in parts])
    told["acc_r/average"] = np.mean([told[f"acc_r{name.replace('/subset', '')}"] for name in parts])
    assert found == {name: pytest.approx(value) for name, value in told.items()}
    assert 0 < found["p_c"] < 100
    assert found["min_p_c_p_f"] < found["acc"]
    check_rows(json.loads(json.dumps(judged.rows)), Path("samples.jsonl"))
    ends = intervals(judged.rows, 200)
    assert set(ends) == set(found)
    assert ends["auroc"][0] <= found["auroc"] <= ends["auroc"][1]
    assert ends["auroc"][0] < ends["auroc"][1]
    renamed = scores_of([prefixed(row, lambda name: f"own_{name}") for row in judged.rows])
    assert renamed == {f"own_{name}": pytest.approx(value) for name, value in found.items()}


def test_even_odds_are_no_match():
    samples, _ = world({"add_att": 1})
    at_the_threshold = records_of({"add_att/0/caption": 0.5, "add_att/0/foil": 0.5})
    found = scores_of(Foils(threshold=0.5).rows(at_the_threshold, samples).rows)
    assert (found["p_c"], found["p_f"], found["acc"], found["min_p_c_p_f"], found["auroc"]) == (0, 100, 50, 0, 50)


def test_macro_averages_leave_out_as_aro_does():
    sizes = {"left of": 4, "on": 3, "rare": 2, "near": 6}
    samples, scores = world(sizes)
    scorer = Foils("cosine", averages={"macro": None}, left_out=["near"], min_count=3, within="relation/")
    found = published_scores(scorer.rows(records_of(scores, "cosine"), samples))
    pairs = by_subset(scores, sizes)
    own = {name: percent(np.argmax([foil, caption]) == 1 for caption, foil in both) for name, both in pairs.items()}
    assert found["accuracy/macro"] == pytest.approx((own["left of"] + own["on"]) / 2)
    assert found["accuracy/relation/near"] == pytest.approx(own["near"])
    assert found["accuracy/relation/left_of"] == pytest.approx(own["left of"])
    assert found["accuracy"] == pytest.approx(percent(c > f for both in pairs.values() for c, f in both))


def test_what_lacks_a_score_is_wrong_and_texts_without_a_pair_are_not_asked_about():
    samples, _ = world({"add_att": 2})
    right = {"add_att/0/caption": 1.0, "add_att/0/foil": -1.0, "add_att/1/caption": 1.0, "add_att/1/foil": -1.0}
    scorer = Foils(threshold=0.0)
    assert scores_of(scorer.rows(records_of(right), samples).rows)["acc"] == 100
    assert "ties" not in scorer.rows(records_of(right), samples).notes
    assert "ties" not in scorer.rows([], samples).notes
    for gone in right:
        rest = records_of({key: score for key, score in right.items() if key != gone})
        found = scores_of(scorer.rows(rest, samples).rows)
        assert (found["accuracy"], found["acc"], found["auroc"]) == (50, 75, 50)
    alone = [Sample(1, Path("x.jpg"), {"captions": (Text(1, "a cat"),)})]
    assert scorer.rows([], alone).rows == []
    with pytest.raises(DataError, match="two predictions for caption_id 'add_att/0/foil'"):
        scorer.rows([*records_of(right), *records_of({"add_att/0/foil": 2.0})], samples)


def test_a_file_of_scores_is_checked():
    samples, scores = world({"add_att": 1})
    (form,) = Foils().schema
    wanted = {form.key: form.wanted(samples)}
    check_predictions(records_of(scores), [form], wanted, Path("p.json"), "add them")
    with pytest.raises(
        DataError, match=r"log_odds for caption_id 'add_att/0/foil' is null .* a number, more for what suits"
    ):
        check_predictions(records_of({**scores, "add_att/0/foil": None}), [form], wanted, Path("p.json"))
    with pytest.raises(DataError, match="has no 'log_odds'"):
        check_predictions(records_of(scores, "score"), [form], wanted, Path("p.json"))
    with pytest.raises(ConfigError, match="value of a scorer of foils is 'cosin'; did you mean 'cosine'"):
        Foils("cosin")


def test_the_guesser_reads_other_images_texts_alone():
    """Foils that all say "not" are found without an image; on one image there is nothing to learn from."""
    pairs = [foiled(f"add/{n}", f"{n}.jpg", f"a cat {n}", f"a cat not {n}", "add") for n in range(10)]
    samples = samples_of(pairs, {f"{n}.jpg": Path() for n in range(10)})
    scorer = Foils(metric="acc_r", threshold=0.0)

    def score(records, samples):
        return scores_of(scorer.rows(records, samples).rows)

    found = scorer.baselines([], samples, [], str.split, score)
    assert found["acc_r_baseline"] == found["acc_r/add_baseline"] == found["auroc_baseline"] == 100
    assert found["acc_baseline"] == 100
    assert {value for name, value in found.items() if name.endswith("_chance")} == {50}
    guessed = guessed_scores(samples)
    swapped = samples_of(
        [foiled("add/0", "0.jpg", "a cat not 0", "a cat 0", "add"), *pairs[1:]], {f"{n}.jpg": Path() for n in range(10)}
    )
    changed = guessed_scores(swapped)
    assert changed["add/0/foil"] > changed["add/0/caption"]
    assert guessed["add/0/caption"] == pytest.approx(changed["add/0/foil"], abs=1e-6)
    assert all(abs(guess) < 1e-6 for guess in guessed_scores(samples[:1]).values())
    assert score([], samples[:1])["acc_r"] == 0


def test_the_guesser_knows_the_order_of_words():
    pairs = [
        foiled(f"s/{n}", f"{n}.jpg", f"the man rides the horse {n}", f"the horse rides the man {n}", "s")
        for n in range(10)
    ]
    samples = samples_of(pairs, {f"{n}.jpg": Path() for n in range(10)})
    guessed = guessed_scores(samples)
    assert all(guessed[f"s/{n}/caption"] > guessed[f"s/{n}/foil"] for n in range(10))


def test_a_gallery_shows_which_text_was_preferred():
    samples, _ = world({"add_att": 2})
    given = {"add_att/0/caption": 1.0, "add_att/0/foil": 2.0, "add_att/1/caption": 1.0, "add_att/1/foil": -1.5}
    scorer, records = Foils(), records_of(given)
    rows = scorer.rows(records, samples).rows
    wrong, right = scorer.examples(records, samples, rows, None)
    assert (wrong.given, wrong.true, wrong.score) == ("no 0 add_att", "a 0 add_att", 0)
    assert (right.given, right.text) == ("a 1 add_att", "add_att: caption 1, foil -1.5")
    assert [each.id for each in scorer.examples(records, samples, rows, 1)] == ["add_att/0/caption"]
    assert scorer.examples(records, samples, rows, 0) == []
    assert [panel.heading[:7] for panel in scorer.sheet(records, samples, rows).panels] == ["add_att"] * 2
