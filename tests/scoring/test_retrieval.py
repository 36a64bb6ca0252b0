from pathlib import Path

import pytest
import torch

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.inference.candidates import best
from fusionkit.inference.rankings import Pairing, list_records, similarities
from fusionkit.scoring.scorers import RETRIEVAL

CAPTIONS = (2, 1, 3, 2, 5, 1, 1, 2, 4, 1, 2, 1, 1)  # of each image; image 1000 has none


@pytest.fixture
def samples():
    made, caption_id = [Sample(1000, Path("x.png"), {})], 0
    for image_id, count in enumerate(CAPTIONS):
        made.append(
            Sample(image_id, Path("x.png"), {"captions": tuple(Text(caption_id + i, "a") for i in range(count))})
        )
        caption_id += count
    return made


def ranking_records(text_to_image, image_to_text, pairing, depth=100):
    return list_records(best(text_to_image, depth), best(image_to_text, depth), pairing)


def features(samples, images, texts):
    """Feature records of a matrix of image rows and one of text rows; shuffled, as ranks would deliver them."""
    pairing = Pairing.of(samples)
    records = [{"image_id": key, "feats": row} for key, row in zip(pairing.image_ids, images, strict=True)]
    records += [{"caption_id": key, "feats": row} for key, row in zip(pairing.caption_ids, texts, strict=True)]
    return [{"image_id": 1000, "feats": torch.ones(images.shape[1])}, *records[::-1]]


def brute_force(sim, owner):
    """Ranks by sorting, every tie resolved against the query."""
    text_ranks = [sorted((-s, image == owner[t]) for image, s in enumerate(row)) for t, row in enumerate(sim.tolist())]
    image_ranks = [
        sorted((-s, owner[t] == image) for t, s in enumerate(column)) for image, column in enumerate(sim.T.tolist())
    ]
    first = [[is_right for _, is_right in order].index(True) for order in text_ranks + image_ranks]
    cut = len(text_ranks)
    named = {"text_to_image": first[:cut], "image_to_text": first[cut:]}
    return {
        f"{way}_r{k}": pytest.approx(100 * sum(rank < k for rank in ranks) / len(ranks))
        for way, ranks in named.items()
        for k in (1, 5, 10)
    }


@pytest.mark.parametrize("levels", [None, 3])
def test_recalls_against_brute_force(samples, levels):
    torch.manual_seed(0)
    for _ in range(20):
        images, texts = torch.randn(13, 4), torch.randn(26, 4)
        if levels:  # many ties
            images, texts = images.sign(), texts.sign()
        pairing = Pairing.of(samples)
        expected = brute_force(texts @ images.T, pairing.owner.tolist())
        records = features(samples, images, texts)
        assert RETRIEVAL(records, samples) == expected
        sim = similarities(records, samples)
        assert RETRIEVAL(ranking_records(sim, sim.T, pairing), samples) == expected


def test_a_cut_list_scores_the_same_up_to_its_depth(samples):
    torch.manual_seed(1)
    sim, pairing = torch.randn(26, 13), Pairing.of(samples)
    cut, whole = (RETRIEVAL(ranking_records(sim, sim.T, pairing, depth), samples) for depth in (11, 26))
    assert cut == whole == brute_force(sim, pairing.owner.tolist())


def test_a_tie_across_the_cut_counts_against_us(samples):
    pairing = Pairing.of(samples)
    sim = torch.zeros(26, 13)
    scores = RETRIEVAL(ranking_records(sim, sim.T, pairing, 10), samples)
    assert set(scores.values()) == {0.0}


def test_a_perfect_matrix_is_exactly_100(samples):
    pairing = Pairing.of(samples)
    scores = RETRIEVAL(features(samples, torch.eye(13), torch.eye(13)[pairing.owner]), samples)
    assert set(scores.values()) == {100.0}


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_constant_and_nan_features_never_win(samples, bad):
    scores = RETRIEVAL(features(samples, torch.full((13, 4), bad), torch.full((26, 4), bad)), samples)
    assert set(scores.values()) == {0.0}


def test_missing_features_are_misses(samples):
    pairing = Pairing.of(samples)
    records = features(samples, torch.eye(13), torch.eye(13)[pairing.owner])
    kept = [record for record in records if record.get("caption_id") != 0 and record.get("image_id") != 1]
    scores = RETRIEVAL(kept, samples)
    assert scores["text_to_image_r1"] == pytest.approx(100 * 24 / 26)  # caption 0, and the caption of image 1
    assert scores["image_to_text_r10"] == pytest.approx(100 * 12 / 13)


def test_a_caption_without_features_misses_even_among_few_images(samples):
    few = samples[:3]
    records = features(few, torch.eye(2), torch.eye(2)[Pairing.of(few).owner])
    kept = [record for record in records if record.get("caption_id") != 0]
    assert RETRIEVAL(kept, few)["text_to_image_r10"] == pytest.approx(200 / 3)


def test_unknown_ids(samples):
    with pytest.raises(DataError, match="unknown image_id 55"):
        RETRIEVAL([{"image_id": 55, "feats": torch.ones(2)}], samples)
    with pytest.raises(DataError, match="unknown caption_id 555"):
        RETRIEVAL([{"caption_id": 555, "image_ids": [1], "scores": [1.0]}], samples)


def test_no_captions():
    assert RETRIEVAL([], [Sample(1, Path("x.png"), {})]) == {}


def test_an_image_without_features_misses_even_among_few_captions(samples):
    few = samples[:3]  # image 0 with two captions, image 1 with one
    records = features(few, torch.eye(2), torch.eye(2)[Pairing.of(few).owner])
    kept = [record for record in records if record.get("image_id") != 1]
    scores = RETRIEVAL(kept, few)
    assert scores["image_to_text_r10"] == pytest.approx(50)
    assert scores["text_to_image_r10"] == pytest.approx(200 / 3)


def test_an_image_whose_captions_have_no_features_misses(samples):
    few = samples[:3]
    records = features(few, torch.eye(2), torch.eye(2)[Pairing.of(few).owner])
    kept = [record for record in records if record.get("caption_id") != 2]  # the only one of image 1
    assert RETRIEVAL(kept, few)["image_to_text_r10"] == pytest.approx(50)
