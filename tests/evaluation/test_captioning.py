import math
from pathlib import Path

import pytest
from torchmetrics.functional.text import bleu_score

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.evaluation.baselines import caption_baselines
from fusionkit.evaluation.captioning import bleu, score_captions, words_of

CAPTIONS = {
    1: ("A man rides a brown horse.", "The man's horse is running on the beach"),
    2: ("Two dogs play in the snow.", "Dogs in snow"),
    3: ("A red bus on a street.", "A red bus drives down the busy street"),
}
SAID = {1: "a man rides a horse on the beach", 2: "two dogs in the snow", 3: "a red red bus"}


def samples():
    return [
        Sample(image, Path("x.jpg"), {"captions": tuple(Text(10 * image + k, text) for k, text in enumerate(texts))})
        for image, texts in CAPTIONS.items()
    ]


def test_bleu_is_torchmetrics():
    candidates = [words_of(SAID[image]) for image in CAPTIONS]
    references = [[words_of(text) for text in texts] for texts in CAPTIONS.values()]
    ours = bleu(candidates, references)
    for order in (1, 2, 3, 4):
        theirs = bleu_score(
            [" ".join(words) for words in candidates], [[" ".join(r) for r in rs] for rs in references], n_gram=order
        )
        assert ours[order - 1] == pytest.approx(theirs.item(), abs=1e-6)


def test_clipping_and_brevity():
    assert bleu([["the"] * 7], [[["the", "cat", "is", "on", "the", "mat"]]])[0] == pytest.approx(2 / 7)
    assert bleu([["a", "b"]], [[["a", "b", "c", "d"]]])[0] == pytest.approx(math.exp(-1))


def test_scores_are_over_all_images():
    records = [{"image_id": image, "caption": caption} for image, caption in SAID.items()]
    scores = score_captions(records, samples())
    assert 0 < scores["caption_bleu4"] < scores["caption_bleu1"] < 100
    assert score_captions(records[:2], samples())["caption_bleu1"] < scores["caption_bleu1"]
    perfect = [{"image_id": image, "caption": texts[0]} for image, texts in CAPTIONS.items()]
    assert score_captions(perfect, samples()) == pytest.approx({"caption_bleu4": 100.0, "caption_bleu1": 100.0})
    with pytest.raises(DataError, match="unknown image_id 9"):
        score_captions([{"image_id": 9, "caption": "a"}], samples())


def test_the_guesser_says_one_caption_of_all():
    train = [*samples(), Sample(4, Path("x.jpg"), {"captions": (Text(50, "Dogs in snow"),)})]
    scores = caption_baselines(train, samples(), [], str.split)
    told = [{"image_id": image, "caption": "Dogs in snow"} for image in CAPTIONS]
    assert scores["caption_bleu1_baseline"] == scores["caption_bleu1_chance"]
    assert scores["caption_bleu1_baseline"] == score_captions(told, samples())["caption_bleu1"]
