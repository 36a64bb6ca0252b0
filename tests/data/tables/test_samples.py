"""Samples over columns are the samples that they were made of, one by one, all at once, and in another process."""

import pickle
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from fusionkit.data.images import photo_keys
from fusionkit.data.sample import Sample, Text
from fusionkit.data.tables.samples import ImagePaths, OtherPlaces, Samples, as_samples
from fusionkit.data.tables.table import open_tables, tables_of, write_tables
from fusionkit.files.unicode import BadText


def make(count: int = 5) -> list[Sample]:
    """Samples that differ in all that samples can differ in."""
    made = []
    for number in range(count):
        captions = tuple(Text(10 * number + n, f"said {n} of {number}") for n in range(number % 3))
        box = {"box": (1.0, 2.0, 3.0, float(number + 1)), "ann_id": number}
        texts = {
            "captions": captions,
            "expressions": (Text(f"e{number}", "it", box), Text(number, "that", {"n": None})),
        }
        others = tuple(Path(f"b/{number}-{n}.png") for n in range(number % 2 * 2))
        made.append(
            Sample(
                number if number % 2 else f"p{number}",
                Path("a") / f"{number}\udcff.jpg",
                {kind: said for kind, said in texts.items() if said},
                (number + 1, 20) if number else None,
                "mine" if number == 3 else None,
                others,
                "coco/7" if number == 2 else None,
                number == 4,
            )
        )
    return made


@pytest.fixture(params=["memory", "files", "pickled"])
def samples(request, tmp_path) -> Samples:
    tables = tables_of(make())
    if request.param != "memory":
        tables = open_tables(tmp_path, write_tables(tables, tmp_path))
    made = Samples(tables)
    return pickle.loads(pickle.dumps(made)) if request.param == "pickled" else made


def test_each_is_what_it_was(samples):
    made = make()
    assert list(samples) == made
    assert [samples[number] for number in range(-5, 5)] == made + made
    assert [[type(text.id) for text in each.texts["expressions"]] for each in samples] == [[str, int]] * 5
    assert samples == made
    assert samples != made[:-1]
    assert list(samples[1:4]) == made[1:4]
    with pytest.raises(IndexError):
        samples[5]
    assert list(samples[0].texts) == ["expressions"]


def test_columns_say_what_samples_say(samples):
    made = make()
    assert samples.counts("captions").tolist() == [0, 1, 2, 0, 1]
    assert samples.counts("none").tolist() == [0] * 5
    assert list(samples.strings("captions")) == [text.text for each in made for text in each.texts.get("captions", ())]
    assert list(samples.ids("expressions")) == [text.id for each in made for text in each.texts["expressions"]]
    assert list(samples.facts("expressions", "ann_id")) == [0, 1, 2, 3, 4]
    assert list(samples.facts("expressions", "n")) == [None] * 5
    assert list(samples.facts("captions", "n")) == []
    assert samples.image_ids() == ["p0", 1, "p2", 3, "p4"]
    assert samples.first("captions") == Text(10, "said 0 of 1")
    assert samples.first("none") is None
    assert samples.kinds == ["expressions", "captions"]
    keys, rows = samples.photos
    found = {row: {int(key) for key in keys[rows == row]} for row in range(5)}
    assert found == {row: set(photo_keys(each)) for row, each in enumerate(made)}
    assert samples.is_by_name.tolist() == [True, True, False, False, True]


def test_some_of_them_are_as_good_as_all(samples):
    kept = samples.where(np.array([False, True, True, False, True]))
    made = [each for number, each in enumerate(make()) if number in (1, 2, 4)]
    assert list(kept) == made == [kept[number] for number in range(3)]
    assert kept.counts("captions").tolist() == [1, 2, 1]
    assert list(kept.strings("captions")) == ["said 0 of 1", "said 0 of 2", "said 1 of 2", "said 0 of 4"]
    assert kept.keys.tolist() == [photo_keys(each)[0] for each in made]
    assert kept.first("expressions").id == "e1"
    assert list(pickle.loads(pickle.dumps(kept))) == made
    assert list(kept.where(np.array([False, True, False]))) == made[1:2]
    assert not samples.where(np.array([True, False, True, False, True])).has_others
    assert samples.where(np.ones(5, dtype=bool)) is samples


def test_paths_stand_as_the_places_say(samples):
    made = make()
    paths = list(chain((each.image for each in made), *(each.others for each in made)))
    assert list(ImagePaths(samples)) == paths == [ImagePaths(samples)[number] for number in range(len(paths))]
    assert len(ImagePaths(samples)) == len(paths) == 9
    assert [[paths[place] for place in places] for places in OtherPlaces(samples)] == [list(e.others) for e in made]
    assert len(ImagePaths(as_samples([]))) == 0


def test_no_samples_are_some(tmp_path):
    tables = open_tables(tmp_path, write_tables(tables_of([]), tmp_path))
    assert list(Samples(tables)) == []
    assert Samples(tables).keys.tolist() == []


def test_a_fact_that_no_column_holds_is_named():
    texts = {"captions": (Text(1, "a", {"x": 1}), Text(2, "b", {"x": object()}))}
    with pytest.raises(BadText, match=r"text 2, 'x': a fact is a object"):
        tables_of([Sample(1, Path("a.jpg"), texts)])


def test_the_folders_of_images_are_numbered():
    paths = ("a/1.jpg", "b/1.jpg", "a/x.tar/k@1+2.jpg", "a/2.jpg", "a/x.tar/l@3+2.jpg")
    samples = as_samples([Sample(number, Path("/d") / path, {}) for number, path in enumerate(paths)])
    assert samples.folders.tolist() == [0, 1, 2, 0, 2]
    assert samples.where(np.array([False, True, True, False, True])).folders.tolist() == [0, 1, 1]


def test_the_weight_of_a_sample_is_the_mean_of_its_texts():
    def text(number: int, **facts: float) -> Text:
        return Text(number, "x", facts)

    texts = [
        {"captions": (text(1, sample_weight=3.0), text(2)), "questions": (text(1, sample_weight=0.5),)},
        {"questions": (text(2),)},
        {},
        {"captions": (text(3, sample_weight=0.0),)},
    ]
    samples = as_samples([Sample(number, Path(f"{number}.jpg"), each) for number, each in enumerate(texts)])
    assert samples.weights.tolist() == [1.5, 1.0, 1.0, 0.0]
    assert samples.where(np.array([True, False, False, True])).weights.tolist() == [1.5, 0.0]
    assert as_samples([Sample(1, Path("1.jpg"), {"captions": (text(1),)})]).weights is None
