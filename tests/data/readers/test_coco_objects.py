"""Counting and left or right, made of COCO's boxes, drawn small."""

from collections import Counter

import pytest

from fusionkit.data.readers.coco_objects import CocoObjects, counted, with_article
from fusionkit.errors import ConfigError, DataError
from fusionkit.scoring.probes.foils import Foils
from fusionkit.scoring.probes.pairs import guessed_scores
from fusionkit.scoring.sample_scores import scores_of
from tests.data.worlds import write_json, write_photo

CATEGORIES = {1: "dog", 2: "cat", 3: "apple"}
LEFT, RIGHT, MIDDLE, TINY = [2, 4, 8, 8], [20, 4, 8, 8], [8, 4, 14, 8], [2, 2, 1, 1]


def instances(*photos, **changes):
    """COCO's content of photos, each a list of (category, box) or (category, box, iscrowd)."""
    rows = [
        {
            "id": 100 * number + at,
            "image_id": number,
            "category_id": thing[0],
            "bbox": thing[1],
            "iscrowd": int(len(thing) > 2),
        }
        for number, things in enumerate(photos, start=1)
        for at, thing in enumerate(things)
    ]
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 32, "height": 24} for n in range(1, len(photos) + 1)]
    names = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    return {"images": images, "annotations": rows, "categories": names} | changes


def reader(root, content, about="counting", **options):
    for number in range(1, 8):
        write_photo(root / f"val2017/{number:012d}.jpg", number)
    write_json(root / "instances_val2017.json", content)
    return CocoObjects(f"{root}/instances_{{split}}.json", f"{root}/{{split}}", about, **options)


def texts_of(samples):
    return {text.id: text.text for sample in samples for text in sample.texts["captions"]}


def test_two_photos_exchange_their_numbers(tmp_path):
    samples = reader(tmp_path, instances([(1, LEFT)], [(1, LEFT), (1, RIGHT), (2, LEFT)])).read("val2017")
    assert texts_of(samples) == {
        "dog/1/caption": "a photo of one dog",
        "dog/1/foil": "a photo of two dogs",
        "dog/2/caption": "a photo of two dogs",
        "dog/2/foil": "a photo of one dog",
    }
    facts = {text.id: text.facts["subset"] for sample in samples for text in sample.texts["captions"]}
    assert facts["dog/1/foil"] == "one"
    assert facts["dog/2/caption"] == "two"
    assert {(sample.image_id, sample.image.name, sample.size) for sample in samples} == {
        (str(n), f"{n:012d}.jpg", (32, 24)) for n in (1, 2)
    }


def test_what_cannot_be_counted_is_not_asked_about(tmp_path):
    sure = [[(1, LEFT)], [(1, LEFT), (1, RIGHT)]]
    crowd, small = [(1, LEFT), (1, RIGHT), (1, MIDDLE, True)], [(1, LEFT), (1, RIGHT), (1, TINY)]
    many = [(1, LEFT)] * 4
    with_others = reader(tmp_path, instances(*sure, crowd, small, many), most=3).read("val2017")
    assert {sample.image_id for sample in with_others} == {"1", "2"}
    every = reader(tmp_path, instances(sure[0], small), min_area=0.0).read("val2017")
    assert texts_of(every)["dog/2/caption"] == "a photo of three dogs"
    with pytest.raises(DataError, match=r"instances_val2017\.json has no two photos .* lower reader\.min_area"):
        reader(tmp_path, instances(sure[0], small)).read("val2017")


def test_left_and_right_stand_apart_and_are_exchanged(tmp_path):
    photos = [
        [(2, LEFT), (1, RIGHT)],
        [(2, RIGHT), (1, LEFT)],
        [(2, LEFT), (1, MIDDLE)],  # they overlap
        [(2, LEFT), (1, RIGHT), (1, RIGHT)],  # which dog?
    ]
    samples = reader(tmp_path, instances(*photos), "left_right").read("val2017")
    assert texts_of(samples) == {
        "cat, dog/1/caption": "a cat to the left of a dog",
        "cat, dog/1/foil": "a cat to the right of a dog",
        "cat, dog/2/caption": "a cat to the right of a dog",
        "cat, dog/2/foil": "a cat to the left of a dog",
    }


def test_a_text_alone_says_nothing(tmp_path):
    photos = [[(1, LEFT)] * (1 + n % 3) for n in range(7)]
    samples = reader(tmp_path, instances(*photos)).read("val2017")
    said = Counter((text.text, text.facts["label"]) for sample in samples for text in sample.texts["captions"])
    assert all(said[text, "caption"] == said[text, "foil"] for text, _ in said)
    assert len(samples) == 6
    records = [
        {"caption_id": text.id, "cosine": float(len(text.text))}
        for sample in samples
        for text in sample.texts["captions"]
    ]
    assert scores_of(Foils("cosine").rows(records, samples).rows)["accuracy"] <= 50
    again = reader(tmp_path, instances(*photos)).read("val2017")
    assert texts_of(again) == texts_of(samples)
    few = reader(tmp_path, instances(*photos), per_topic=1).read("val2017")
    assert len(texts_of(few)) == 4
    draws = {
        str(sorted(texts_of(reader(tmp_path, instances(*photos), per_topic=1, seed=n).read("val2017"))))
        for n in range(9)
    }
    assert len(draws) > 1


@pytest.mark.parametrize(
    ("number", "name", "told"),
    [
        (1, "dog", "one dog"),
        (2, "bus", "two buses"),
        (3, "wine glass", "three wine glasses"),
        (4, "person", "four people"),
        (2, "sheep", "two sheep"),
        (5, "computer mouse", "five computer mice"),
        (2, "toothbrush", "two toothbrushes"),
    ],
)
def test_numbers_are_said_in_words(number, name, told):
    assert counted(number, name) == told


def test_the_guesser_that_reads_other_topics_alone_is_left_with_a_coin(tmp_path):
    photos = [[(1 + kind, LEFT)] * (1 + (n + kind) % 3) for n in range(7) for kind in range(3)]
    content = instances(*photos)
    for number in range(8, 22):
        write_photo(tmp_path / f"val2017/{number:012d}.jpg", number)
    samples = reader(tmp_path, content).read("val2017")
    guessed = guessed_scores(samples)
    assert len(guessed) == 3 * 12
    assert max(map(abs, guessed.values())) < 1e-6
    assert {text.facts["topic"] for sample in samples for text in sample.texts["captions"]} == {"dog", "cat", "apple"}


def test_articles():
    assert [with_article(name) for name in ("apple", "dog")] == ["an apple", "a dog"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"categories": None}, "has no list 'categories'"),
        (
            {"annotations": [{"id": 5, "image_id": 9, "category_id": 1, "bbox": LEFT}]},
            "annotation 5 of .* image_id 9, which is not",
        ),
        (
            {"annotations": [{"id": 5, "image_id": 1, "category_id": 9, "bbox": LEFT}]},
            "category_id 9, which is not among its categ",
        ),
        (
            {"annotations": [{"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2]}]},
            "the box of annotation 5 in .* four numbers",
        ),
        ({"annotations": [{"id": 5, "image_id": 1, "bbox": LEFT}]}, "has no 'category_id'"),
        ({"images": [{"id": 1, "file_name": "1.jpg", "width": 0, "height": 3}]}, "image 1 of .* is 0 x 3 pixels"),
    ],
)
def test_a_mistake_in_coco_is_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(DataError, match=sentence):
        reader(tmp_path, instances([(1, LEFT)], [(1, LEFT), (1, RIGHT)], **changes)).read("val2017")


def test_images_that_are_missing_or_elsewhere_and_wrong_options_are_told(tmp_path):
    content = instances([(1, LEFT)], [(1, LEFT), (1, RIGHT)])
    content["images"][1]["file_name"] = "../secret.jpg"
    with pytest.raises(DataError, match="which lies outside of its folder"):
        reader(tmp_path, content).read("val2017")
    with pytest.raises(ConfigError, match=r"reader\.about .* is 'count'; did you mean 'counting'"):
        CocoObjects("a", None, "count")
    with pytest.raises(ConfigError, match=r"reader\.most is 11, but has to be a number from 2 to 10"):
        CocoObjects("a", None, most=11)
