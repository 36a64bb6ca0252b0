"""Winoground's three scores against the authors' own inequalities, written anew here."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError
from fusionkit.scoring.bootstrap import intervals
from fusionkit.scoring.probes.winoground import Winoground
from fusionkit.scoring.sample_scores import scores_of

TAGS = ("Object", "Relation", "")


def world(count=9):
    samples = []
    for number in range(count):
        for image in (0, 1):
            texts = [
                Text(
                    f"{number}/{image}/{caption}",
                    f"caption {caption}",
                    {
                        "pair": str(number),
                        "label": "caption" if image == caption else "foil",
                        "subset": TAGS[number % 3],
                    },
                )
                for caption in (0, 1)
            ]
            samples.append(Sample(f"{number}/{image}", Path(f"{number}{image}.png"), {"captions": tuple(texts)}))
    return samples


def records_of(scores, value="log_odds"):
    return [{"caption_id": key, value: score} for key, score in scores.items()]


def grid_scores(grids):
    """{text id: score} of arrays indexed [caption, image]."""
    return {f"{n}/{i}/{c}": float(grid[c, i]) for n, grid in enumerate(grids) for i in (0, 1) for c in (0, 1)}


def official(grid):
    text = grid[0, 0] > grid[1, 0] and grid[1, 1] > grid[0, 1]
    image = grid[0, 0] > grid[0, 1] and grid[1, 1] > grid[1, 0]
    return text, image, text and image


def test_scores_are_the_authors():
    draw = np.random.default_rng(1)
    grids = draw.integers(0, 4, size=(60, 2, 2))  # with ties
    found = scores_of(Winoground().rows(records_of(grid_scores(grids)), world(60)).rows)
    told = np.array([official(grid) for grid in grids])
    for column, metric in enumerate(("text_score", "image_score", "group_score")):
        assert found[metric] == pytest.approx(100 * told[:, column].mean())
        assert found[f"{metric}/object"] == pytest.approx(100 * told[::3, column].mean())
    assert set(found) == {
        f"{m}{t}" for m in ("text_score", "image_score", "group_score") for t in ("", "/object", "/relation")
    }
    assert 0 < found["group_score"] < min(found["text_score"], found["image_score"])


@pytest.mark.parametrize("tied", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_inequalities_are_strict(tied):
    grid = np.array([[2.0, 1.0], [1.0, 2.0]])
    assert official(grid) == (True, True, True)
    grid[tied] = 1.0 if tied[0] == tied[1] else 2.0
    found = scores_of(Winoground().rows(records_of(grid_scores([grid])), world(1)).rows)
    assert (found["text_score"], found["image_score"], found["group_score"]) == (0, 0, 0)


def test_chance_is_that_of_scores_in_any_order_and_text_alone_gets_nothing():
    orders = [np.array(order).reshape(2, 2) for order in permutations(range(4))]
    by_chance = 100 * np.array([official(grid) for grid in orders]).mean(axis=0)
    scorer = Winoground("cosine")

    def score(records, samples):
        return scores_of(scorer.rows(records, samples).rows)

    found = scorer.baselines([], world(), [], str.split, score)
    assert [found[f"{metric}_chance"] for metric in ("text_score", "image_score", "group_score")] == pytest.approx(
        list(by_chance)
    )
    assert found["group_score/object_chance"] == pytest.approx(100 / 6)
    assert {value for name, value in found.items() if name.endswith("_baseline")} == {0}


def test_an_example_is_resampled_as_a_whole_and_one_that_lacks_a_score_is_wrong():
    right = np.array([[2.0, 1.0], [1.0, 2.0]])
    scores = grid_scores([right, right, -right])
    judged = Winoground().rows(records_of(scores), world(3))
    assert [row["image_id"] for row in judged.rows] == ["0", "1", "2"]
    assert [row["id"] for row in judged.rows] == ["0/0/0", "1/0/0", "2/0/0"]
    assert intervals(judged.rows, 300)["group_score"] == (0.0, 100.0)
    for gone in ("0/0/0", "0/0/1", "0/1/0", "0/1/1"):
        rest = {key: score for key, score in scores.items() if key != gone}
        assert Winoground().rows(records_of(rest), world(3)).rows[0]["values"]["image_score"] == 0
    with pytest.raises(ConfigError, match="is 'cosines'; did you mean 'cosine'"):
        Winoground("cosines")
    assert Winoground().rows([], world(3)[:1]).rows == []


def test_a_gallery_has_both_images():
    right = np.array([[2.0, 1.0], [1.0, 2.0]])
    scorer, samples = Winoground(), world(2)
    records = records_of(grid_scores([right, -right]))
    rows = scorer.rows(records, samples).rows
    first, second = scorer.sheet(records, samples, rows).panels
    assert [picture.path.name for picture in first.pictures] == ["10.png", "11.png"]  # the wrong one first
    assert second.pictures[0].notes[0].text == "own and other caption: 2 and 1"
    shown = scorer.examples(records, samples, rows, None)
    assert [(each.given, each.true) for each in shown] == [("caption 0", "caption 0"), ("caption 1", "caption 0")]
    assert len(scorer.examples(records, samples, rows, 1)) == 1
