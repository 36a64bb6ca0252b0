"""Retrieval from ranked lists: whole splits and folds."""

import random
from pathlib import Path

import numpy as np
import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.scoring.retrieval import MISS, Retrieval, list_rank
from fusionkit.scoring.sample_scores import scores_of

COUNTS = (5, 5, 6, 5, 5, 5, 7, 5, 5, 5, 5, 5)  # captions of each image


def world(counts=COUNTS):
    samples, number = [], 0
    for image, count in enumerate(counts):
        samples.append(Sample(image, Path(), {"captions": tuple(Text(1000 + number + n, "a") for n in range(count))}))
        number += count
    return samples


def lists(samples, score, depth=None, with_scores=True):
    """Ranked lists of every query by score(caption_id, image_id)."""
    images = [sample.image_id for sample in samples]
    captions = [text.id for sample in samples for text in sample.texts["captions"]]
    records = []
    for key, queries, items, pair in (
        ("caption_id", captions, images, lambda q, i: score(q, i)),
        ("image_id", images, captions, lambda q, i: score(i, q)),
    ):
        other = "image_ids" if key == "caption_id" else "caption_ids"
        for query in queries:
            best = sorted(items, key=lambda item, query=query: -pair(query, item))[:depth]
            record = {key: query, other: best}
            records.append(record | {"scores": [pair(query, item) for item in best]} if with_scores else record)
    return records


def seen(samples):
    """A score that prefers the right image, but not always."""
    owner = {text.id: sample.image_id for sample in samples for text in sample.texts["captions"]}
    rng = random.Random(0)
    noise = {(caption, sample.image_id): rng.random() for caption in owner for sample in samples}
    return lambda caption, image: noise[caption, image] + 0.6 * (owner[caption] == image)


def test_a_perfect_ranking_is_exactly_100():
    samples = world()
    owner = {text.id: sample.image_id for sample in samples for text in sample.texts["captions"]}
    for with_scores in (True, False):
        records = lists(samples, lambda caption, image: float(owner[caption] == image), with_scores=with_scores)
        scores = scores_of(Retrieval({"small": 4}).rows(records, samples).rows)
        ranks = {name: scores.pop(name) for name in list(scores) if name.endswith("median_rank")}
        assert set(ranks.values()) == {1.0}
        assert scores.keys() >= {"text_to_image_r1", "image_to_text_r10", "small/text_to_image_r1"}
        assert list(scores.values()) == [100.0] * len(scores)  # exactly, also where the folds have unequal weights
        assert scores["text_to_image_r1"] == scores["image_to_text_r5"] == 100.0


def test_folds_are_the_mean_of_scoring_each_alone():
    samples = world()
    score = seen(samples)
    found = scores_of(Retrieval({"small": 4}).rows(lists(samples, score), samples).rows)
    alone = [samples[start : start + 4] for start in (0, 4, 8)]
    parts = [scores_of(Retrieval().rows(lists(fold, score), fold).rows) for fold in alone]
    for name in (f"{way}_r{cut}" for way in ("text_to_image", "image_to_text") for cut in (1, 5, 10)):
        assert found[f"small/{name}"] == pytest.approx(np.mean([part[name] for part in parts]))


def test_medians_against_sorting():
    samples = world()
    score = seen(samples)
    found = scores_of(Retrieval().rows(lists(samples, score), samples).rows)
    images = range(len(samples))
    owner = {text.id: sample.image_id for sample in samples for text in sample.texts["captions"]}
    ranks = [1 + sum(score(caption, image) > score(caption, owner[caption]) for image in images) for caption in owner]
    assert found["text_to_image_median_rank"] == np.median(ranks)


def test_ties_count_against_us_in_any_order():
    samples = world()
    records = lists(samples, lambda caption, image: 0.0)
    scores = scores_of(Retrieval({"small": 4}).rows(records, samples).rows)
    assert scores["text_to_image_r10"] == 0
    assert scores["text_to_image_median_rank"] == len(samples)
    assert scores["small/image_to_text_r10"] == 0  # the 15 or more captions of the other three come first


def test_a_split_that_folds_do_not_fill_says_so():
    samples = world()
    judged = Retrieval({"1k": 1000, "odd": 5}).rows(lists(samples, seen(samples)), samples)
    assert judged.notes["1k"] == "left out: 12 images do not make folds of 1,000"
    assert "odd" in judged.notes
    assert not any("/" in name for row in judged.rows for name in row["values"])


def test_a_cut_list_hides_no_rank_below_its_depth():
    samples = world()
    score = seen(samples)
    whole, cut = (scores_of(Retrieval().rows(lists(samples, score, depth), samples).rows) for depth in (None, 11))
    names = [name for name in whole if not name.endswith("median_rank")]
    assert {name: cut[name] for name in names} == {name: whole[name] for name in names}


def test_a_median_rank_beyond_the_lists_is_missing():
    samples = world()
    judged = Retrieval().rows(lists(samples, lambda caption, image: 0.0, 5), samples)
    assert not any("median" in name for name in scores_of(judged.rows))
    said = "missing: it lies beyond the 5 items of 12 that are listed"
    assert judged.notes["text_to_image_median_rank"] == said
    assert "text_to_image_median_rank" in scores_of(Retrieval().rows(lists(samples, seen(samples), 5), samples).rows)


def row(way, query, image, reached, rank):
    values = {f"{way}_r{cut}": 100.0 * is_in for cut, is_in in zip((1, 5, 10), reached, strict=True)}
    own = {"id": f"{way}/{query}", "score": values[f"{way}_r1"], "image_id": image}
    return own | {"values": values, "ranks": {f"{way}_median_rank": rank}}


def test_rows_say_what_each_query_reached():
    records = [
        {"caption_id": 1000, "image_ids": [0, 1]},
        {"caption_id": 1001, "image_ids": [1, 0]},
        {"image_id": 0, "caption_ids": [1002, 1000, 1001], "scores": [0.5, 0.2, 0.1]},
    ]
    judged = Retrieval().rows(records, world((2, 1)))
    assert judged.rows == [
        row("text_to_image", 1000, 0, (1, 1, 1), 1),
        row("text_to_image", 1001, 0, (0, 1, 1), 2),
        row("text_to_image", 1002, 1, (0, 0, 0), 3),  # not answered: behind the last of two
        row("image_to_text", 0, 0, (0, 1, 1), 2),
        row("image_to_text", 1, 1, (0, 0, 0), 4),
    ]
    assert judged.notes == {"ties": "pessimistic: an equal score counts as a better one"}
    nothing = Retrieval().rows([], world((2, 1)))
    assert nothing.notes == judged.notes
    assert [each["ranks"] for each in nothing.rows[:1]] == [{"text_to_image_median_rank": 3}]


@pytest.mark.parametrize(("place", "reached"), [(4, (0, 1, 1)), (5, (0, 0, 1)), (9, (0, 0, 1)), (10, (0, 0, 0))])
def test_the_cuts_are_those_of_the_first_one_five_and_ten(place, reached):
    others = list(range(1, 12))
    record = {"caption_id": 1000, "image_ids": [*others[:place], 0, *others[place:]]}
    assert Retrieval().rows([record], world((1,) * 12)).rows[0] == row("text_to_image", 1000, 0, reached, place + 1)


def test_a_rank_within_a_list():
    record = {"ids": [5, 6, 7, 8], "scores": [0.9, 0.8, 0.8, 0.1]}
    assert [list_rank(record, "ids", {item}, 4) for item in (5, 6, 7, 8)] == [0, 2, 2, 3]
    assert [list_rank(record, "ids", {item}, 9) for item in (5, 7, 8, 1)] == [0, 2, 8, 8]
    assert list_rank(record, "ids", {7, 8}, 9) == 2  # itself is none of those before it
    assert list_rank(record, "ids", {1, 2}, 9) == 7
    assert list_rank(record, "ids", {7}, 3, {6, 7, 8}) == 1
    assert list_rank(record, "ids", {7}, 2, {7, 8}) == 0
    assert list_rank(None, "ids", {7}, 2) == MISS == 2**31
    assert list_rank(record | {"scores": [float("nan")] * 4}, "ids", {5}, 4) == 3
    with pytest.raises(ValueError, match="shorter"):
        list_rank(record | {"scores": [1]}, "ids", {5}, 4)


@pytest.mark.parametrize("beyond", [1, 2, 3])
def test_a_median_rank_is_known_where_both_in_the_middle_are_listed(beyond):
    """Lists of three of four images; a mean of a rank and of the unknown one behind the list would look as if known."""
    samples = world((1,) * 4)
    records = [{"caption_id": 1000 + at, "image_ids": [at, (at + 1) % 4, (at + 2) % 4]} for at in range(4)]
    for at in range(beyond):
        records[at]["image_ids"] = [image for image in range(4) if image != at]
    judged = Retrieval().rows(records, samples)
    scores = scores_of(judged.rows)
    if beyond == 1:
        assert scores["text_to_image_median_rank"] == 1
        assert "text_to_image_median_rank" not in judged.notes
    else:
        assert "text_to_image_median_rank" not in scores
        said = "missing: it lies beyond the 3 items of 4 that are listed"
        assert judged.notes["text_to_image_median_rank"] == said
    assert scores["image_to_text_median_rank"] == 5  # without a list at all


def test_folds_larger_than_the_split_or_as_large_are_left_out():
    samples = world((1,) * 6)
    judged = Retrieval({"all": 6, "4": 4, "halves": 3}).rows(lists(samples, seen(samples)), samples)
    assert judged.notes["all"] == "left out: 6 images do not make folds of 6"
    assert judged.notes["4"] == "left out: 6 images do not make folds of 4"
    assert "halves" not in judged.notes
    assert {name.split("/")[0] for row in judged.rows for name in row["values"] if "/" in name} == {"halves"}
    assert not any(form.of_images != (form.key == "image_id") for form in Retrieval().schema)
