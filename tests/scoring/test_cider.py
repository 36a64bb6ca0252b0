"""CIDEr-D by given document frequencies: equal to pycocoevalcap's where these are those of the references themselves."""

import math
import random
from pathlib import Path

import pytest

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.scoring.captioning import Captions, cider
from fusionkit.scoring.corpus_metrics import CiderD
from fusionkit.scoring.ptb_tokenizer import tokenize
from fusionkit.training.rewards import CiderReward

WORDS = ["a", "an", "the", "red", "blue", "green", "ball", "star", "ring", "on", "in", "left", "of", "two", "and"]


def captions(rng, count):
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(count)]


def samples_of(texts):
    return [
        Sample(number, Path("x.jpg"), {"captions": tuple(Text(f"{number}/{at}", text) for at, text in enumerate(each))})
        for number, each in enumerate(texts)
    ]


def test_it_is_pycocoevalcap_s_where_the_corpus_is_the_references():
    rng = random.Random(0)
    wanted = [captions(rng, rng.randint(1, 5)) for _ in range(40)]
    said = [*captions(rng, 37), wanted[0][0], wanted[1][0] + " and a ball", ""]
    ours = CiderD(wanted)(said, wanted)
    assert [100 * score for score in ours] == pytest.approx(cider(said, wanted), rel=1e-9, abs=1e-9)
    assert max(ours) > 1


def test_a_word_counts_by_how_many_images_of_the_corpus_have_it():
    """By hand: of four images two have "red", one has "ball", none has "cube"; one-word captions have no pairs."""
    corpus = [["red", "red"], ["red"], ["ball"], ["star"]]
    metric = CiderD(corpus)
    assert metric.weight(("red",)) == pytest.approx(math.log(4 / 2))
    assert metric.weight(("ball",)) == pytest.approx(math.log(4))
    assert metric.weight(("cube",)) == pytest.approx(math.log(4))
    # a cosine of 1 for words, 0 for pairs and longer, mean over four lengths, times ten
    assert metric(["ball"], [["ball"]]) == pytest.approx([2.5])
    # "red ball" against "ball": log 4 / sqrt(log 2 ** 2 + log 4 ** 2), and one pair of words more
    clipped = math.log(4) ** 2 / (math.hypot(math.log(2), math.log(4)) * math.log(4))
    assert metric(["red ball"], [["ball"]]) == pytest.approx([2.5 * clipped * math.exp(-1 / 72)])
    assert metric(["ball"], [[]]) == [0.0]


def test_the_reward_is_our_scorer_s_cider_where_what_is_scored_is_what_was_trained_on():
    """Raw texts with capitals, dots and commas: the words are those of the scorer without Java."""
    texts = [["A red ball, on the left.", "Two rings."], ["The blue star isn't small!"], ["Three stars; a ring"]]
    samples, said = samples_of(texts), ["a red ball on a ring", "The blue star.", "two rings"]
    reward = CiderReward()
    reward.begin({"shapes": samples, "other": samples[:1]})
    records = [{"image_id": number, "caption": caption} for number, caption in enumerate(said)]
    rows = Captions(java=False).rows(records, samples).rows
    wanted = [row["values"]["cider"] for row in rows]
    assert min(wanted[:2]) > 10
    given = reward("shapes", [0, 1, 2], said, [True] * 3)
    assert [100 * score for score in given] == pytest.approx(wanted, rel=1e-9)
    assert reward("shapes", [0, 0, 2, 1], [said[0], said[0], said[2], said[1]], [True] * 4) == pytest.approx(
        [given[0], given[0], given[2], given[1]]
    )


def test_frequencies_are_those_of_all_training_captions_of_the_source():
    texts = [["a red ball", "the ball"], ["a blue ball"], ["a green star"], []]
    reward = CiderReward()
    reward.begin({"shapes": samples_of(texts)})
    metric = CiderD([tokenize(each) for each in texts[:3]])
    assert reward("shapes", [2], ["a star"], [True]) == metric(["a star"], [["a green star"]])
    assert metric.images == 3  # an image without captions is no document
    assert metric.frequencies[("ball",)] == 2
    assert metric.frequencies[("a",)] == 3


def test_a_caption_that_is_cut_loses_its_end_where_ends_count():
    reward = CiderReward(score_end=True)
    texts = [["a red ball on a star"], ["a blue ring"], ["two stars"]]
    reward.begin({"shapes": samples_of(texts)})
    whole, cut = reward("shapes", [0, 0], ["a red ball on a star"] * 2, [True, False])
    assert whole == pytest.approx(10)
    assert cut < whole - 0.5


def test_an_image_that_is_not_trained_on_is_named():
    reward = CiderReward()
    reward.begin({"shapes": samples_of([["a ball"], []])})
    for source, image in (("shapes", 7), ("shapes", 1), ("other", 0)):
        with pytest.raises(
            DataError, match=f"image {image} has no captions among those that source '{source}' trains on"
        ):
            reward(source, [image], ["a"], [True])
