"""METEOR from the counts of sentences, as pycocoevalcap's jar computes it. ``data/meteor_jar.json`` is what the jar said."""

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from fusionkit.scoring.captioning import bleu_counts, meteor_counts
from fusionkit.scoring.corpus_metrics import CHOICES, WIDTHS, bleu, fits, is_of, without_whole
from fusionkit.scoring.sample_scores import Table, scores_of

RECORDED = json.loads((Path(__file__).parent / "data/meteor_jar.json").read_text())


def rows_of(counts):
    return [{"id": at, "image_id": at, "sums": {"meteor": each}} for at, each in enumerate(counts)]


ROWS = rows_of(caption["counts"] for caption in RECORDED["captions"])


def meteor(numbers):
    return scores_of([ROWS[number] for number in numbers])["meteor"]


def test_each_caption_alone_is_scored_as_by_the_jar():
    assert [meteor([at]) for at in range(len(ROWS))] == pytest.approx(
        [caption["alone"] for caption in RECORDED["captions"]], abs=1e-8
    )
    assert sum(caption["alone"] == 100 for caption in RECORDED["captions"]) == 4


def test_corpora_are_scored_as_by_the_jar():
    assert len(RECORDED["corpora"]) == 9
    for corpus in RECORDED["corpora"]:
        assert meteor(corpus["numbers"]) == pytest.approx(corpus["score"], abs=1e-8), corpus


def test_a_caption_drawn_twice_counts_twice():
    weights = [[2.0, 0.0, 1.0]]
    assert Table(ROWS[:3])(weights)["meteor"][0] == pytest.approx(meteor([0, 0, 2]), abs=1e-8)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="no java on the PATH: the recorded figures are tested above")
def test_new_captions_are_scored_as_by_the_jar():
    from pycocoevalcap.meteor.meteor import Meteor

    rng = random.Random(3)
    words = [
        "a",
        "the",
        "of",
        "on",
        "two",
        "man",
        "dogs",
        "dog",
        "rides",
        "riding",
        "red",
        "big",
        "street",
        "road",
        "runs",
    ]
    wanted = [[" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(rng.randint(1, 3))] for _ in range(40)]
    said = [rng.choice(refs) if at % 2 else " ".join(rng.choices(words, k=6)) for at, refs in enumerate(wanted)]
    rows = rows_of(meteor_counts(said, wanted, shutil.which("java")))
    jar = Meteor()
    whole, alone = jar.compute_score(dict(enumerate(wanted)), {at: [text] for at, text in enumerate(said)})
    assert scores_of(rows)["meteor"] == pytest.approx(100 * whole, abs=1e-8)
    assert [scores_of([row])["meteor"] for row in rows] == pytest.approx([100 * each for each in alone], abs=1e-8)
    assert alone[1::2] == pytest.approx([1.0] * 20)


def test_bleu_by_hand():
    """With pycocoevalcap's constants; a caption as long as its reference has no penalty."""
    counts = [
        [4, 4, 4, 3, 2, 1, 4, 3, 2, 1],
        [9, 4, 4, 3, 2, 1, 2, 0, 0, 0],
        [2, 4, 2, 1, 0, 0, 2, 1, 0, 0],
        [0, 3, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    found = bleu(np.array(counts, dtype=float))
    for at, (length, wanted, *rest) in enumerate(counts):
        product = 1.0
        for order in (1, 2, 3, 4):
            product *= (rest[3 + order] + 1e-15) / (rest[order - 1] + 1e-9)
            brevity = min(1.0, math.exp(1 - (wanted + 1e-9) / (length + 1e-15)) if length else 0.0)
            assert found[f"bleu_{order}"][at] == pytest.approx(
                100 * brevity * product ** (1 / order), rel=1e-11, abs=1e-300
            )
    assert found["bleu_4"][0] == pytest.approx(100)
    assert found["bleu_1"][2] == pytest.approx(100 / math.e)


def test_what_is_summed_has_its_width():
    counts = len(bleu_counts(["a"], [["a"]])[0])
    assert (
        dict.fromkeys(("bleu", "caption_bleu", "chat_bleu"), counts)
        | {"meteor": len(RECORDED["captions"][0]["counts"])}
        | {"kappa": CHOICES**2, "alpha": CHOICES**2}
        == WIDTHS
    )


def test_a_mean_of_ratios_of_sums_has_the_name_that_its_key_says():
    rows = [
        {"id": at, "image_id": at, "sums": {"ratios:balanced": sums, "ratios:share": sums[:2]}}
        for at, sums in enumerate([[1, 2, 0, 0], [0, 1, 3, 4]])
    ]
    assert scores_of(rows) == {"balanced": 54.1666666667, "share": round(100 / 3, 10)}
    assert scores_of(rows[:1]) == {"share": 50.0}  # half of the balance is not known
    assert fits("ratios:x", 2)
    assert not fits("ratios:x", 3)
    assert not fits("ratios:x", 0)
    assert not fits("other", 2)
    assert is_of("x", "ratios:x")
    assert not is_of("xy", "ratios:x")
    assert is_of("bleu_4", "bleu")


def test_the_chunk_of_a_caption_that_is_its_reference_does_not_count():
    """Of two words, both matched: one chunk is the whole caption; of two chunks, or of a longer one, each counts."""
    stages = [1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]  # one exact, one synonym
    counts = np.array([[*lengths, 0, 0, *stages, chunks, 2, 2] for lengths, chunks in (
        ((2, 2), 1), ((2, 2), 2), ((3, 2), 1), ((2, 3), 1)
    )], dtype=float)  # fmt: skip
    found = without_whole(counts)
    assert found[:, 20].tolist() == [0, 2, 1, 1]
    assert np.array_equal(np.delete(found, 20, axis=1), np.delete(counts, 20, axis=1))
