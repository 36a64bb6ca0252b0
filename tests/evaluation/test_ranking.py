"""Retrieval from ranked lists: whole splits and folds."""

import random
from pathlib import Path

import numpy as np
import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.evaluation.judging import scores_of
from fusionkit.evaluation.ranking import RetrievalMeasure

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
        scores = scores_of(RetrievalMeasure({"small": 4})(records, samples).rows)
        ranks = {name: scores.pop(name) for name in list(scores) if name.endswith("median_rank")}
        assert set(ranks.values()) == {1.0}
        assert scores.keys() >= {"text_to_image_r1", "image_to_text_r10", "small/text_to_image_r1"}
        assert list(scores.values()) == [100.0] * len(scores)  # exactly, also where the folds have unequal weights
        assert scores["text_to_image_r1"] == scores["image_to_text_r5"] == 100.0


def test_folds_are_the_mean_of_scoring_each_alone():
    samples = world()
    score = seen(samples)
    found = scores_of(RetrievalMeasure({"small": 4})(lists(samples, score), samples).rows)
    alone = [samples[start : start + 4] for start in (0, 4, 8)]
    parts = [scores_of(RetrievalMeasure()(lists(fold, score), fold).rows) for fold in alone]
    for name in (f"{way}_r{cut}" for way in ("text_to_image", "image_to_text") for cut in (1, 5, 10)):
        assert found[f"small/{name}"] == pytest.approx(np.mean([part[name] for part in parts]))


def test_medians_against_sorting():
    samples = world()
    score = seen(samples)
    found = scores_of(RetrievalMeasure()(lists(samples, score), samples).rows)
    images = range(len(samples))
    owner = {text.id: sample.image_id for sample in samples for text in sample.texts["captions"]}
    ranks = [1 + sum(score(caption, image) > score(caption, owner[caption]) for image in images) for caption in owner]
    assert found["text_to_image_median_rank"] == np.median(ranks)


def test_ties_count_against_us_in_any_order():
    samples = world()
    records = lists(samples, lambda caption, image: 0.0)
    scores = scores_of(RetrievalMeasure({"small": 4})(records, samples).rows)
    assert scores["text_to_image_r10"] == 0
    assert scores["text_to_image_median_rank"] == len(samples)
    assert scores["small/image_to_text_r10"] == 0  # the 15 or more captions of the other three come first


def test_a_split_that_folds_do_not_fill_says_so():
    samples = world()
    judged = RetrievalMeasure({"1k": 1000, "odd": 5})(lists(samples, seen(samples)), samples)
    assert judged.notes["1k"] == "left out: 12 images do not make folds of 1,000"
    assert "odd" in judged.notes
    assert not any("/" in name for row in judged.rows for name in row["values"])


def test_a_cut_list_hides_no_rank_below_its_depth():
    samples = world()
    score = seen(samples)
    whole, cut = (scores_of(RetrievalMeasure()(lists(samples, score, depth), samples).rows) for depth in (None, 11))
    names = [name for name in whole if not name.endswith("median_rank")]
    assert {name: cut[name] for name in names} == {name: whole[name] for name in names}


def test_a_median_rank_beyond_the_lists_is_missing():
    samples = world()
    judged = RetrievalMeasure()(lists(samples, lambda caption, image: 0.0, 5), samples)
    assert not any("median" in name for name in scores_of(judged.rows))
    said = "missing: it lies beyond the 5 items of 12 that are listed"
    assert judged.notes["text_to_image_median_rank"] == said
    assert "text_to_image_median_rank" in scores_of(RetrievalMeasure()(lists(samples, seen(samples), 5), samples).rows)
