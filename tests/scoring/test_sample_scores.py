"""Scores, intervals and comparisons from the rows of samples."""

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu

from fusionkit.errors import ConfigError, DataError
from fusionkit.scoring.bootstrap import _weights, check_draws, compare, intervals
from fusionkit.scoring.captioning import bleu_counts
from fusionkit.scoring.sample_scores import Table, check_rows, is_error, known_direction, scores_of


def rows_of(scores, images, **more):
    return [
        {"id": at, "score": score, "image_id": image, "values": {"accuracy": score}} | more
        for at, (score, image) in enumerate(zip(scores, images, strict=True))
    ]


ROW = {"id": 1, "score": 50.0, "image_id": "a", "values": {"x": 1}, "ranks": {"r": 2.0}, "sums": {"bleu": [1] * 10}}


def test_rows_that_can_be_reckoned_with_pass():
    check_rows([ROW, {"id": "b", "score": 0, "image_id": 3}, ROW | {"sums": {"meteor": [0.5] * 23}}], "x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": None}, "its id is no whole number or text"),
        ({"image_id": [1]}, "its image_id is no whole number or text"),
        ({"image_id": True}, "its image_id is no whole number or text"),
        ({"score": None}, "its score is no number"),
        ({"score": float("inf")}, "its score is no number"),
        ({"values": [1]}, "its values are no map"),
        ({"ranks": None}, "its ranks are no map"),
        ({"values": {"x": "1"}}, "its x is no number"),
        ({"ranks": {"r": float("nan")}}, "its r is no number"),
        ({"sums": {"bleu": 3}}, "its sums of bleu are not those of a metric"),
        ({"sums": {"bleu": [1, None]}}, "its sums of bleu are not those of a metric"),
        ({"sums": {"bleu": [1] * 9}}, "its sums of bleu are not those of a metric"),
        ({"sums": {"rouge": [1] * 10}}, "its sums of rouge are not those of a metric"),
        ({"sums": {"lowest:x": [1, 2, 3]}}, "its sums of lowest:x are not those of a metric"),
        ({"areas": [1, 2]}, "its areas are no map"),
        ({"areas": {"a": [1, 2, 3]}}, "its areas of a are no two numbers"),
        ({"areas": {"a": [1, None]}}, "its areas of a are no two numbers"),
        ({"areas": {"a": 1}}, "its areas of a are no two numbers"),
    ],
)
def test_rows_that_cannot_be_are_told(change, words):
    with pytest.raises(DataError, match=f"x.jsonl row 2: {words}; evaluate that run again"):
        check_rows([ROW, ROW | change], "x.jsonl")


def test_runs_that_put_a_sample_on_different_images_are_not_compared():
    rows = rows_of([100.0, 0.0], [1, 2])
    with pytest.raises(DataError, match=r"the runs disagree on the image of 1 \(2 and 3\); score both alike"):
        compare(rows, rows_of([100.0, 0.0], [1, 3]), 10)


def test_a_metric_is_the_mean_over_the_rows_that_have_it():
    rows = rows_of([100.0, 0.0, 50.0], [1, 1, 2])
    rows[1]["values"]["rare"] = 20.0
    assert scores_of(rows) == {"accuracy": 50.0, "rare": 20.0}


def test_sums_are_of_the_rows_that_have_them_and_the_lowest_share_counts():
    rows = rows_of([100.0, 0.0, 50.0], [1, 1, 2])
    rows[0]["sums"], rows[2]["sums"] = {"lowest:least": [1, 2, 3, 3]}, {"lowest:least": [1, 2, 0, 1]}
    assert scores_of(rows) == {"accuracy": 50.0, "least": 50.0}
    rows[2]["sums"] = {"lowest:least": [2, 2, 0, 1], "ratios:only": [1, 4]}
    assert scores_of(rows) == {"accuracy": 50.0, "least": 75.0, "only": 25.0}
    assert intervals(rows, 50)["only"] == (25.0, 25.0)


def test_an_area_under_the_roc_curve_counts_ties_half_and_images_as_often_as_they_are_drawn():
    rng = np.random.default_rng(8)
    true, false = rng.integers(0, 6, size=(2, 30))
    rows = [
        {"id": at, "score": 0.0, "image_id": at % 7, "areas": {"a": [float(one), float(other)]}}
        for at, (one, other) in enumerate(zip(true, false, strict=True))
    ]
    weights = rng.integers(0, 3, size=(5, 7)).astype(float)

    def area(drawn):
        pairs = [(true[one], false[other]) for one in drawn for other in drawn]
        return 100 * np.mean([(one > other) + (one == other) / 2 for one, other in pairs])

    expected = [area([at for at in range(30) for _ in range(int(row[at % 7]))]) for row in weights]
    assert Table(rows)(weights)["a"] == pytest.approx(expected)
    assert scores_of(rows)["a"] == pytest.approx(area(range(30)))
    assert len(set(expected)) == 5


def test_a_median_rank_is_numpys():
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 8):
        ranks = rng.integers(1, 20, count)
        rows = [{"id": at, "image_id": at % 3, "ranks": {"median": int(rank)}} for at, rank in enumerate(ranks)]
        assert scores_of(rows) == {"median": np.median(ranks)}
        doubled = Table(rows)(np.full((1, min(3, count)), 2.0))
        assert doubled["median"][0] == np.median(ranks)


def test_bleu_of_summed_counts_is_pycocoevalcaps():
    said = ["a man rides a horse", "", "two dogs", "a red bus on the road in rain"]
    wanted = [
        ["a man on a horse", "man rides horse"],
        ["a cat"],
        ["two dogs run", "dogs"],
        ["a red bus on the road in rain"],
    ]
    rows = [{"id": at, "image_id": at, "sums": {"bleu": counts}} for at, counts in enumerate(bleu_counts(said, wanted))]
    theirs, _ = Bleu(4).compute_score(dict(enumerate(wanted)), {at: [text] for at, text in enumerate(said)}, verbose=0)
    assert scores_of(rows) == pytest.approx({f"bleu_{n + 1}": 100 * score for n, score in enumerate(theirs)}, abs=1e-9)


def test_an_interval_draws_images_with_all_their_rows():
    rng = np.random.default_rng(1)
    images = np.repeat(np.arange(40), 5)
    of_image = rng.uniform(0, 100, 40)  # the five rows of an image are equal: as good as 40 samples, not 200
    low, high = intervals(rows_of(of_image[images].tolist(), images.tolist()), resamples=2000)["accuracy"]
    error = of_image.std() / np.sqrt(40)
    assert low == pytest.approx(of_image.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(of_image.mean() + 1.96 * error, abs=0.3 * error)


def test_an_interval_covers_95_of_100_truths():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        low, high = intervals(rows_of(rng.normal(10, 5, 60).tolist(), range(60)), resamples=200)["accuracy"]
        covered += low <= 10 <= high
    assert 88 <= covered <= 99


def test_seeded_and_in_bounded_memory(monkeypatch):
    rows = rows_of([float(score) for score in range(20)], range(20))
    whole = intervals(rows, resamples=50, seed=3)
    assert whole == intervals(rows, resamples=50, seed=3)
    assert whole != intervals(rows, resamples=50, seed=4)
    monkeypatch.setattr("fusionkit.scoring.bootstrap.CELLS", 60)  # three draws at a time
    assert whole == intervals(rows, resamples=50, seed=3)


def test_no_draws_are_no_interval():
    with pytest.raises(ConfigError, match="resamples is 0"):
        intervals(rows_of([1.0], [1]), resamples=0)


def test_a_metric_that_few_images_have_is_estimated_from_the_draws_that_have_it():
    rows = rows_of([1.0, 2.0, 3.0], [1, 2, 3])
    rows[0]["values"]["rare"] = 7.0
    assert intervals(rows)["rare"] == (7.0, 7.0)


def test_a_metric_that_no_draw_has_has_no_interval():
    rows = rows_of([1.0] * 200, range(200))
    rows[0]["values"]["rare"] = 7.0
    assert intervals(rows, resamples=1, seed=1) == {"accuracy": (1.0, 1.0)}


def test_a_paired_comparison_sees_what_intervals_hide():
    rng = np.random.default_rng(4)
    scores = rng.uniform(0, 90, 100)
    worse, better = (
        rows_of(scores.tolist(), range(100)),
        rows_of((scores + rng.uniform(0, 4, 100)).tolist(), range(100)),
    )
    assert intervals(better)["accuracy"][0] < intervals(worse)["accuracy"][1]  # the intervals overlap
    found = compare(better, worse[::-1])["accuracy"]  # the order of the rows is no matter
    assert found.low > 0
    assert found.low < found.value < found.high
    assert found.p < 0.01
    assert compare(worse, better)["accuracy"].value == pytest.approx(-found.value)


def test_equal_runs_do_not_differ():
    rows = rows_of([0.0, 100.0, 50.0], [1, 2, 3])
    assert compare(rows, rows)["accuracy"] == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("others", [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
def test_runs_on_other_samples_are_not_compared(others):
    with pytest.raises(DataError, match=r"different samples: only one has [23]; score both alike"):
        compare(rows_of([1.0, 2.0, 3.0], [1, 2, 3]), rows_of(others, range(len(others))))


def test_intervals_and_comparisons_by_a_plain_bootstrap():
    rng = np.random.default_rng(5)
    scores = rng.integers(0, 101, 7).astype(float)
    others = scores + rng.integers(-30, 60, 7)
    rows, beside = rows_of(scores.tolist(), range(7)), rows_of(others.tolist(), range(7))
    draws = np.random.default_rng(3).integers(7, size=(40, 7))
    means, moved = scores[draws].mean(axis=1), (scores - others)[draws].mean(axis=1)
    assert intervals(rows, 40, 3)["accuracy"] == pytest.approx(np.percentile(means, [2.5, 97.5]))
    assert intervals(rows, 40, 3, 0.5)["accuracy"] == pytest.approx(np.percentile(means, [25, 75]))
    against = min((moved <= 0).sum(), (moved >= 0).sum())
    assert 0 < against < 19
    expected = ((scores - others).mean(), *np.percentile(moved, [2.5, 97.5]), 2 * (1 + against) / 41)
    assert compare(rows, beside, 40, 3)["accuracy"] == pytest.approx(expected)
    assert compare(beside, rows, 40, 3)["accuracy"].p == pytest.approx(expected[3])
    assert compare(rows, beside, 40, 3, 0.5)["accuracy"][1:3] == pytest.approx(np.percentile(moved, [25, 75]))
    assert intervals(rows) == intervals(rows, 1000, 0, 0.95)
    assert compare(rows, beside) == compare(rows, beside, 1000, 0, 0.95)


def test_only_metrics_of_both_runs_are_compared_in_the_order_of_the_first():
    rows, others = rows_of([1.0, 2.0], [1, 2]), rows_of([3.0, 4.0], [1, 2])
    for each, name in ((rows, "own"), (others, "theirs")):
        each[0]["values"] = {name: 1.0, "shared": 5.0, "accuracy": 2.0}
    assert list(compare(rows, others, 20)) == ["shared", "accuracy"]
    assert compare(rows, others, 20)["shared"] == (0, 0, 0, 1)
    rare = rows_of([1.0] * 200, range(200))
    rare[0]["values"]["rare"] = 7.0
    assert list(compare(rare, rare, 1, 1)) == ["accuracy"]  # the draw lacks the only image that has the other


def test_what_can_be_drawn():
    check_draws(1, 0)
    with pytest.raises(
        ConfigError, match="resamples is 0, but an interval needs at least 1 draw; the default is 1,000"
    ):
        check_draws(0, 0)
    with pytest.raises(ConfigError, match="seed is -1, but has to be a whole number from 0 up"):
        check_draws(1, -1)


def test_a_matrix_of_weights_is_cut_into_draws(monkeypatch):
    whole = np.concatenate(list(_weights(20, 50, 3)))
    for cells, heights in ((5, [1] * 50), (60, [3] * 16 + [2]), (2000, [50])):
        monkeypatch.setattr("fusionkit.scoring.bootstrap.CELLS", cells)
        parts = list(_weights(20, 50, 3))
        assert [len(part) for part in parts] == heights
        assert np.array_equal(np.concatenate(parts), whole)
    assert (whole.sum(axis=1) == 20).all()


def test_the_direction_of_a_metric():
    names = ("coco/median_rank", "WER", "mean_error", "val/a/loss", "accuracy", "rank_correlation", "word/accuracy")
    assert [known_direction(name) for name in names] == [False] * 4 + [None] * 3
    assert [is_error(name) for name in names] == [True] * 4 + [False] * 3
    declared = {"wer": True, "gap": 0}
    names = ("x/wer", "gap", "x/rank", "accuracy")
    assert [known_direction(name, declared) for name in names] == [True, False, False, None]
    assert known_direction("wer", ["wer"]) is False


def test_scores_have_ten_decimals_and_stand_in_their_order():
    rows = [{"id": at, "image_id": at, "values": {"b": value, "a": 1}} for at, value in enumerate((0.0, 0.0, 1.0))]
    assert list(scores_of(rows).items()) == [("b", 0.3333333333), ("a", 1.0)]
    assert scores_of([]) == {}


def test_a_weighted_median_and_one_of_nothing():
    rows = [{"id": at, "image_id": at, "ranks": {"r": rank}} for at, rank in enumerate((4, 1, 9))]
    weights = np.array([[1.0, 1, 1], [0, 1, 1], [3, 1, 1], [1, 0, 5], [2, 1, 1]])
    assert Table(rows)(weights)["r"].tolist() == [4, 5, 4, 9, 4]
    assert Table([{"id": 1, "image_id": 1, "values": {"x": 3}}])(np.zeros((1, 1)))["x"].tolist() == pytest.approx(
        [np.nan], nan_ok=True
    )
