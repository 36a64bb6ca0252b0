from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusionkit.data.sample import Sample, Text
from fusionkit.scoring.scorers import CAPTIONING, ENTAILMENT, GROUNDING, HIDDEN, MASKED, MATCHING, RETRIEVAL, VQA


def questions(*pairs):
    rows = (Text(key, text, {"answers": [answer] * 10}) for key, (text, answer) in enumerate(pairs))
    return [Sample(1, Path("x.png"), {"questions": tuple(rows)})]


def captions(*texts):
    return [Sample(1, Path("x.png"), {"captions": tuple(Text(key, text) for key, text in enumerate(texts))})]


@pytest.mark.parametrize(
    ("asked", "guess"),
    [
        ("How many dogs", "5"),  # the same question
        ("how many dogs are there?", "2"),  # first three words
        ("How many cats?", "3"),  # first two
        ("How tall is he?", "6"),  # first
        ("Is it red?", "no"),  # none
    ],
)
def test_vqa_backs_off(asked, guess):
    train = questions(
        *[("how many dogs are in it", "2")] * 3,
        *[("How many dogs?", "5")] * 2,
        *[("how many sheep", "3")] * 4,
        *[("how old is she", "6")] * 8,
        *[("are you", "no")] * 9,
    )
    scores = VQA.baselines(train, questions((asked, guess)), [], str.split, VQA)
    assert scores["vqa_accuracy_baseline"] == 100
    assert scores["vqa_accuracy_chance"] == (100 if guess == "no" else 0)


def boxes(tmp_path, *pairs):
    Image.new("RGB", (200, 100)).save(tmp_path / "x.png")
    rows = tuple(Text(key, text, {"box": box}) for key, (text, box) in enumerate(pairs))
    return [Sample(1, tmp_path / "x.png", {"expressions": rows})]


def test_grounding_reads_the_words(tmp_path):
    left, right = ("the left dog", (0, 0, 100, 100)), ("the right dog", (100, 0, 100, 100))
    train = boxes(tmp_path, *[left, right] * 200)
    small = [Sample(2, Path("y.png"), {"expressions": (Text(7, "left", {"box": (0, 0, 5, 10)}),)}, size=(10, 10))]
    scores = GROUNDING.baselines(train, small, [], str.split, GROUNDING)
    assert scores["grounding_mean_iou_baseline"] > 98  # relative to the image, whatever its size
    assert scores["grounding_mean_iou_chance"] == pytest.approx(100 / 3)  # the mean box stands in the middle


def test_grounding_regression_solves_the_ridge_equations(tmp_path):
    rng = np.random.default_rng(0)
    words = np.array(["a", "b", "c", "d"])
    chosen = rng.random((30, 4)) < 0.5
    targets = rng.random((30, 4)) * 50
    train = boxes(tmp_path, *[(" ".join(words[row]), tuple(box)) for row, box in zip(chosen, targets, strict=True)])
    scale = np.array([200, 100, 200, 100])
    mean = (targets / scale).mean(axis=0)
    x = chosen.astype(float)
    weights = np.linalg.solve(x.T @ x + np.eye(4), x.T @ (targets / scale - mean))
    expected = tuple(((weights[0] + weights[2] + mean) * scale).tolist())
    scores = GROUNDING.baselines(train, boxes(tmp_path, ("c a", expected)), [], str.split, GROUNDING)
    assert scores["grounding_mean_iou_baseline"] == pytest.approx(100)


def framed(text):
    """Tokens at their places in ``input_ids``, between [CLS] and [SEP]."""
    return ["", *text.split(), ""]


def test_masked_backs_off_and_does_not_see_masked_neighbours():
    train = captions(*["a red dog"] * 2, *["a blue cat"] * 3, *["big blue dog", "one tiny dog", "his tiny hat"] * 2)
    asked = captions("a red dog", "a red x", "big blue dog")
    records = [
        {"caption_id": 0, "position": 2, "token": "?", "target": "red"},  # between "a" and "dog"
        {"caption_id": 1, "position": 2, "token": "?", "target": "blue"},  # after "a"; no "x" was seen
        {"caption_id": 2, "position": 2, "token": "?", "target": "tiny"},  # before a mask, after "big": never "tiny"
        {"caption_id": 2, "position": 3, "token": "?", "target": "dog"},  # at the end, after a mask
    ]
    scores = MASKED.baselines(train, asked, records, framed, MASKED)
    assert scores == {"mlm_accuracy_baseline": 75, "mlm_accuracy_chance": 25}  # "dog" is the commonest


def test_what_frames_a_caption_is_a_neighbour_and_no_guess():
    """Captions of one token, which begin and end with others: the commonest token is one of theirs."""
    train, records = captions("a", "a", "b"), [{"caption_id": 0, "position": 1, "token": "?", "target": "a"}]
    scores = MASKED.baselines(train, captions("a"), records, lambda text: ["", text, "", ""], MASKED)
    assert scores == {"mlm_accuracy_baseline": 100, "mlm_accuracy_chance": 100}


def test_retrieval_chance_by_counting():
    counts = (1, 3, 2)
    samples = [
        Sample(image, Path("x.png"), {"captions": tuple(Text(10 * image + i, "a") for i in range(count))})
        for image, count in enumerate(counts)
    ]
    scores = RETRIEVAL.baselines([], [*samples, Sample(9, Path("x.png"), {})], [], str.split, VQA)
    assert scores["text_to_image_r1_chance"] == pytest.approx(100 / 3)
    assert scores["text_to_image_r5_chance"] == 100
    draws = list(combinations(range(6), 5))
    hits = [sum(any(start <= i < start + c for i in draw) for draw in draws) for start, c in ((0, 1), (1, 3), (4, 2))]
    assert scores["image_to_text_r5_chance"] == pytest.approx(100 * sum(hits) / 3 / len(draws))
    assert scores["image_to_text_r10_chance"] == scores["image_to_text_r10_baseline"] == 100


def test_without_training_samples():
    assert VQA.baselines([], questions(("is it", "no")), [], str.split, VQA) == {}
    assert GROUNDING.baselines([], [], [], str.split, GROUNDING) == {}
    assert MASKED.baselines([], captions("a"), [{"caption_id": 0, "position": 1, "target": "a"}], framed, MASKED) == {}
    assert MATCHING.baselines([], [], [], str.split, VQA) == {
        "itm_accuracy_baseline": 50,
        "itm_accuracy_chance": 50,
    }


def test_hidden_features_are_guessed_as_their_mean():
    assert HIDDEN.baselines([], [], [], str.split, VQA) == {
        "mrm_explained_baseline": 0,
        "mrm_explained_chance": 0,
    }


def test_of_equally_common_captions_the_first_by_the_alphabet_is_said():
    told = []
    train = captions("b", "a", "b", "a", "c")
    asked = [*captions("x"), Sample(2, Path("y.png"), {})]
    scores = CAPTIONING.baselines(
        train, asked, [], str.split, lambda records, samples: told.append(records) or {"s": 1.0}
    )
    assert told == [[{"image_id": 1, "caption": "a"}]]
    assert scores == {"s_baseline": 1, "s_chance": 1}
    assert CAPTIONING.baselines([], asked, [], str.split, VQA) == {}


def test_labels_come_from_the_words_or_are_the_commonest():
    texts = [("red", "yes"), ("red it", "yes"), ("blue", "no"), ("it", "yes"), ("blue it", "no")]

    def hypotheses(pairs):
        rows = (Text(at, text, {"gold_label": label}) for at, (text, label) in enumerate(pairs))
        return [Sample(1, Path("x.png"), {"hypotheses": tuple(rows)})]

    told = []
    ENTAILMENT.baselines(
        hypotheses(texts),
        hypotheses([("it", "yes"), ("blue", "yes"), ("red it", "no")]),
        [],
        str.split,
        lambda records, samples: told.append([record["label"] for record in records]) or {},
    )
    assert told == [["yes", "no", "yes"], ["yes", "yes", "yes"]]


def test_what_is_published_as_the_answer_comes_before_the_commonest():
    chosen = Text(1, "is it", {"answers": ["a", "b", "b"], "multiple_choice_answer": "a"})
    train = [Sample(1, Path("x.png"), {"questions": (chosen,)})]
    told = []
    VQA.baselines(train, questions(("is it?", "z")), [], str.split, lambda records, _: told.append(records) or {})
    assert told == [[{"question_id": 0, "answer": "a"}]] * 2


def test_boxes_are_relative_to_the_picture_as_it_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (200, 100)).save(tmp_path / "turned.jpg", exif=exif)
    known = Text(1, "it", {"box": (10, 20, 30, 40)})
    train = [Sample(1, Path("x.png"), {"expressions": (known,)}, size=(100, 200))]
    asked = [
        Sample(2, tmp_path / "turned.jpg", {"expressions": (Text(2, "it", {"box": (0, 0, 1, 1)}),)}, upright=upright)
        for upright in (True, False)
    ]
    told = []
    GROUNDING.baselines(train, asked, [], str.split, lambda records, _: told.append(records) or {})
    for records in told:
        assert [record["sent_id"] for record in records] == [2, 2]
        assert records[0]["bbox"] == pytest.approx([10, 20, 30, 40])
        assert records[1]["bbox"] == pytest.approx([20, 10, 60, 20])


def test_neighbours_of_a_masked_token():
    """Before and behind a caption stands nothing; of the end itself, where it is masked, only what is before is known."""
    train = captions("a b c", "a x c", "a x d", "q b c", "q e", "z")
    records = [{"caption_id": 0, "position": place} for place in (1, 2, 3, 4)]
    told = []
    asked = captions("a b c")
    for chosen in (records[1:2], records[:1], records[2:3], records[3:]):
        MASKED.baselines(train, asked, chosen, framed, lambda found, _: told.append(found[0]["token"]) or {})
    assert told[::2] == ["b", "a", "c", "a"]
    assert set(told[1::2]) == {"a"}


def test_retrieval_chance_at_each_cut_by_counting():
    counts = (1, 3, 2)
    samples = [
        Sample(image, Path("x.png"), {"captions": tuple(Text(10 * image + i, "a") for i in range(count))})
        for image, count in enumerate(counts)
    ]
    scores = RETRIEVAL.baselines([], samples, [], str.split, VQA)
    assert scores == {
        f"{name}_{guesser}": pytest.approx(value)
        for guesser in ("baseline", "chance")
        for name, value in {
            "text_to_image_r1": 100 / 3,
            "text_to_image_r5": 100,
            "text_to_image_r10": 100,
            "image_to_text_r1": 100 * (1 / 6 + 3 / 6 + 2 / 6) / 3,
            "image_to_text_r5": 100 * (5 / 6 + 1 + 1) / 3,
            "image_to_text_r10": 100,
        }.items()
    }
    assert RETRIEVAL.baselines([], [], [], str.split, VQA) == {}
