import json
import warnings

import numpy as np
import pytest

from fusionkit.data.boxes import box_table, faults, image_size, require_boxes, size_or_none, usable, written_size
from fusionkit.data.readers.flickr30k_entities import Flickr30kEntities
from fusionkit.data.readers.visual_genome import VisualGenome
from fusionkit.errors import DataError
from tests.data.worlds import write_json, write_photo

SIZE = (64, 48)
NO_SIDE, OUTSIDE = "has a side that is not positive", "does not lie inside its image"


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ((0, 0, 64, 48), None),
        ((-1, -1, 66, 50), None),  # rounded outwards by a pixel, as published ones are
        ((-1.01, 0, 10, 10), OUTSIDE),
        ((0, -1.01, 10, 10), OUTSIDE),
        ((55, 0, 10.01, 10), OUTSIDE),
        ((0, 40, 10, 9.01), OUTSIDE),
        ((64, 0, 1, 10), OUTSIDE),  # within the tolerance, with nothing of it in the image
        ((-1, 0, 1, 10), OUTSIDE),
        ((0, 48, 10, 0.5), OUTSIDE),
        ((4, 4, 0, 10), NO_SIDE),
        ((4, 4, 10, 0), NO_SIDE),
        ((24, 24, -20, 10), NO_SIDE),
        ((900, 4, 0, 10), NO_SIDE),
    ],
)
def test_what_is_wrong_with_a_box(box, fault):
    assert faults(box_table([box, (1, 1, 2, 2)], ["a", "b"], "f"), [SIZE, SIZE]) == [fault, None]


def test_a_box_of_an_image_of_unknown_size_needs_an_area():
    boxes = box_table([(900, -5, 3, 3), (1, 1, 0, 3)], ["a", "b"], "f")
    assert faults(boxes, [None, None]) == [None, NO_SIDE]
    assert faults(boxes, [SIZE, None]) == [OUTSIDE, NO_SIDE]


@pytest.mark.parametrize(
    "value",
    [
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        np.ones(3),
        np.ones((4, 1)),
        np.array([True] * 4),
        [1, 2, "3", 4],
        [1, 2, True, 4],
        [1, 2, float("inf"), 4],
        [1, 2, 10**400, 4],
        None,
        "1234",
        {1: 2},
    ],
)
def test_a_box_is_four_numbers(value):
    with pytest.raises(DataError, match=r"the box of b in f.json is .*, but has to be four numbers"):
        require_boxes([(1, 1, 2, 2), value], [SIZE, SIZE], ["a", "b"], "f.json")
    require_boxes([(1, 1, 2, 2)], [SIZE], ["a"], "f.json")
    require_boxes([np.ones(4), np.arange(1, 5), [np.float32(1)] * 4], [None] * 3, "abc", "a reader of one's own")


def test_the_first_wrong_box_is_told_with_its_name_and_its_image():
    with pytest.raises(
        DataError, match=r"the box \[1, 1, 0, 2\] of b in f.json has a side .* \(64 x 48 pixels\); boxes are"
    ):
        require_boxes([(1, 1, 2, 2), (1, 1, 0, 2), (90, 1, 2, 2)], [SIZE] * 3, ["a", "b", "c"], "f.json")


def test_wrong_boxes_of_published_files_are_left_out_and_told():
    values = [(1, 1, 2, 2), (4, 4, 0, 2), (60, 1, 8, 2), (60.5, 1, 9, 2)]
    with pytest.warns(
        UserWarning, match=r"2 of 3 boxes|2 of 4 boxes are left out; the first: the box \[4, 4, 0, 2\] of b in f"
    ):
        kept = usable(values[:2] + values[3:] + values[:1], [SIZE] * 4, list("abcd"), "f")
    assert kept == [(1, 1, 2, 2), None, None, (1, 1, 2, 2)]
    with pytest.raises(DataError, match=r"2 of 3 boxes are wrong; the first: the box \[4, 4, 0, 2\]"):
        usable(values[:2] + values[3:], [SIZE] * 3, list("abc"), "f")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usable([], [], [], "f") == usable([], [], [], "f", cut=True) == []
        assert usable(values[2:3], [SIZE], ["a"], "f", cut=True) == [(60, 1, 4, 2)]  # half of it lies inside
        assert usable([(-2, -1, 8, 4)], [SIZE], ["a"], "f", cut=True) == [(0, 0, 6, 3)]
    with pytest.raises(
        DataError, match=r"1 of 1 boxes are wrong; the first: the box \[60.5, 1, 9, 2\] of a in f does not lie"
    ):
        usable(values[3:], [SIZE], ["a"], "f", cut=True)
    with pytest.raises(DataError, match="does not lie inside"):
        usable([(-9, -9, 4, 4)], [SIZE], ["a"], "f", cut=True)  # both sides negative: no area


@pytest.mark.parametrize("side", [0, -4, 6.5, "64", None, True, float("nan"), 2**31, 10**400])
def test_the_size_of_an_image_is_two_whole_numbers(side):
    for size in ((side, 48), (64, side)):
        with pytest.raises(DataError, match=r"image 7 of f is .* pixels; correct its width and height"):
            image_size(*size, 7, "f")
        assert size_or_none(dict(zip(("width", "height"), size, strict=True))) is None
    assert image_size(64.0, 48, 7, "f") == size_or_none({"width": 64, "height": 48.0}) == SIZE
    assert size_or_none({}) is None


def test_a_table_may_say_the_size_of_an_image_in_digits():
    assert written_size("64", 48) == written_size(64, "48") == SIZE
    for side in (None, "", "0", "6.5", 64.0, -4, True, 10**400, 10**5000, "9" * 5000, str(2**31)):
        assert written_size(side, 48) is None


XML = "<annotation><filename>{about}.jpg</filename><size><width>64</width><height>48</height></size>{}</annotation>"
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def entities(tmp_path, *boxes, about="100", listed="100") -> Flickr30kEntities:
    objects = "".join(OBJECT.format(*box) for box in boxes)
    for folder, ending, content in (
        ("Annotations", "xml", XML.format(objects, about=about)),
        ("Sentences", "txt", "".join(f"\ufeff[/EN#{box[0]}/people thing {box[0]}] .\n" for box in boxes)),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"100.{ending}").write_text(content)
    (tmp_path / "val.txt").write_text(listed)
    return Flickr30kEntities(str(tmp_path), None)


def found_in(reader) -> dict:
    return {
        text.facts["entity_id"]: text.facts["box"] for each in reader.read("val") for text in each.texts["expressions"]
    }


def test_entities_with_wrong_boxes_are_left_out(tmp_path):
    good = [(1, 4, 4, 24, 24), (2, 1, 1, 65, 49), (1, 10, 2, 12, 30)]
    with pytest.warns(UserWarning, match=r"2 of 5 boxes are left out; the first: the box .* of entity 3 of image 100"):
        found = found_in(entities(tmp_path, *good, (3, 24, 24, 4, 30), (2, 4, 4, 900, 30)))
    assert found == {1: (4, 2, 20, 28)}  # of entity 2 one box is wrong, and so the box around both
    assert found_in(entities(tmp_path, *good)) == {1: (4, 2, 20, 28), 2: (1, 1, 64, 48)}
    with pytest.raises(DataError, match=r"entity 1 of image 100 in .*Annotations has a side that is not positive"):
        found_in(entities(tmp_path, (1, 4, 4, 4, 24)))


def test_entities_lists_with_a_mark_and_endings_are_read_and_mistakes_told(tmp_path):
    good = (1, 4, 4, 24, 24)
    assert found_in(entities(tmp_path, good, listed="\ufeff100.jpg\n")) == {1: (4, 4, 20, 20)}
    for listed, sentence in (
        ("100\n100", "has the image 100 twice"),
        ("x1", r"val.txt is malformed \(invalid literal"),
    ):
        with pytest.raises(DataError, match=sentence):
            entities(tmp_path, good, listed=listed).read("val")
    with pytest.raises(DataError, match=r"100.xml is about image 99, not 100"):
        entities(tmp_path, good, about="99").read("val")
    with pytest.raises(DataError, match=r"100.xml is malformed"):
        entities(tmp_path, (1, "four", 4, 24, 24)).read("val")
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe100")
    with pytest.raises(DataError, match=r"val.txt is malformed"):
        Flickr30kEntities(str(tmp_path), None).read("val")


def genome(tmp_path, *boxes, outer=5, **data) -> VisualGenome:
    write_photo(tmp_path / "images/5.jpg")
    write_json(tmp_path / "data.json", [{"image_id": 5, "width": 64, "height": 48, **data}])
    rows = [
        {"region_id": at, "image_id": 5, "phrase": "it", **dict(zip(("x", "y", "width", "height"), box, strict=True))}
        for at, box in enumerate(boxes)
    ]
    write_json(tmp_path / "regions.json", [{"id": outer, "regions": rows}])
    return VisualGenome(f"{tmp_path}/images", f"{tmp_path}/data.json", regions=f"{tmp_path}/regions.json")


def test_regions_of_visual_genome_are_cut_to_their_image(tmp_path):
    (sample,) = genome(tmp_path, (-2, 0, 10, 10), (4, 4, 8, 8)).read("train")
    assert [text.facts["box"] for text in sample.texts["expressions"]] == [(0, 0, 8, 10), (4, 4, 8, 8)]
    with pytest.warns(
        UserWarning, match=r"1 of 2 boxes are left out; the first: the box .* of region 0 in .*regions.json"
    ):
        (sample,) = genome(tmp_path, (70, 0, 10, 10), (4, 4, 8, 8)).read("train")
    assert [text.id for text in sample.texts["expressions"]] == ["vg1"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"outer": 6}, r"regions.json has a row about image 5 among those of image 6"),
        ({"width": 0}, r"image 5 of .*data.json is 0 x 48 pixels"),
        ({"image_id": None}, r"data.json has the image with the id None"),
    ],
)
def test_mistakes_in_visual_genome_are_one_sentence(tmp_path, options, sentence):
    with pytest.raises(DataError, match=sentence):
        genome(tmp_path, (1, 1, 2, 2), **options).read("train")
    (tmp_path / "data.json").unlink()
    reader = genome(tmp_path, (1, 1, 2, 2))
    regions = json.loads((tmp_path / "regions.json").read_text())
    regions[0]["regions"][0]["region_id"] = None
    write_json(tmp_path / "regions.json", regions)
    with pytest.raises(DataError, match=r"regions.json has a row of image 5 with the id None"):
        reader.read("train")
    with pytest.raises(DataError, match=r"region 0 in .* four numbers"):
        genome(tmp_path, (1, 1, "2", 2)).read("train")
    rows = json.loads((tmp_path / "data.json").read_text())
    write_json(tmp_path / "data.json", rows * 2)
    with pytest.raises(DataError, match="has the image 5 twice"):
        VisualGenome(f"{tmp_path}/images", f"{tmp_path}/data.json", regions=f"{tmp_path}/regions.json").read("train")
