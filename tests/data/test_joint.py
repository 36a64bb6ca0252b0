from pathlib import Path

import pytest

from fusionkit.data.joint import Joint, Named, merge_samples, read_tables
from fusionkit.data.leakage import by_photo, require_apart, without
from fusionkit.data.readers.coco import CocoCaptions
from fusionkit.data.sample import Sample, Text
from fusionkit.data.source import Source, Splits
from fusionkit.errors import DataError
from tests.data.worlds import Listed, write_json, write_photo


def sample(image_id, path, *ids, kind="captions", **more) -> Sample:
    return Sample(image_id, Path(path), {kind: tuple(Text(id, f"text {id}") for id in ids)}, **more)


def ids_of(samples, kind="captions"):
    return [(each.image_id, [text.id for text in each.texts.get(kind, ())]) for each in samples]


def test_ids_of_two_groups_are_told_apart_and_no_text_is_lost():
    merged = merge_samples([("a/val", [sample(1, "a/1.jpg", 10, 11)]), ("b/val", [sample(1, "b/1.jpg", 10)])])
    assert ids_of(merged) == [("a/val/1", ["a/val/10", "a/val/11"]), ("b/val/1", ["b/val/10"])]
    assert [text.text for text in merged[0].texts["captions"]] == ["text 10", "text 11"]


def test_a_photo_of_two_groups_is_one_sample_with_the_texts_of_both():
    questions = sample(5, "a/1.jpg", 10, kind="questions", size=(4, 3))
    merged = merge_samples([("1", [sample(1, "a/1.jpg", 10)]), ("2", [questions]), ("3", [sample(7, "a/1.jpg", 10)])])
    assert ids_of(merged) == [(1, ["1/10", "3/10"])]
    assert ids_of(merged, "questions") == [(1, [10])]
    assert merged[0].size == (4, 3)


def test_an_image_of_two_ids_stays_two_samples():
    """Neither id is merged away: both are asked for, and captioned."""
    two = [sample(1, "a/1.jpg", 10), sample(2, "a/1.jpg", 20)]
    assert ids_of(merge_samples([("val", two)])) == [(1, [10]), (2, [20])]
    assert ids_of(merge_samples([("val", [*two, sample(1, "a/1.jpg", 30)])])) == [(1, [10, 30]), (2, [20])]
    again = merge_samples([("a", two), ("b", [sample(9, "a/1.jpg", 30)])])
    assert ids_of(again) == [(1, [10, 30]), (2, [20])]


def test_an_id_of_two_things_in_one_group_is_told():
    with pytest.raises(DataError, match=r"an image has the id 1 twice in val"):
        merge_samples([("val", [sample(1, "a/1.jpg", 10), sample(1, "a/2.jpg", 20)])])
    with pytest.raises(DataError, match=r"one of the captions has the id 10 twice in val"):
        merge_samples([("val", [sample(1, "a/1.jpg", 10), sample(2, "a/2.jpg", 10)])])


def test_an_id_that_is_told_apart_still_names_its_photo():
    mine = sample(1, "a/1.jpg", 10, collection="mine")
    first, second = merge_samples([("1", [sample(1, "b/2.jpg", 20)]), ("2", [mine])])
    assert (first.photo, second.image_id, second.photo) == (None, "2/1", "mine/1")
    assert by_photo([[second]]).keys() == by_photo([[mine]]).keys()
    assert merge_samples([("1", [first])]) == [first]


def test_pairs_that_share_one_image_stay_apart():
    pairs = [sample(name, "a/1.jpg", name, others=(Path(f"a/{name}.jpg"),)) for name in ("x", "y")]
    assert merge_samples([("val", pairs)]) == pairs


def own_and_coco(tmp_path, collection=None):
    """Two files named as COCO's photo 42, of which one is not."""
    readers = []
    for name, side in (("own", 20), ("coco", 30)):
        write_photo(tmp_path / name / "000000000042.jpg", size=(side, 20))
        rows = {"images": [{"id": 42, "file_name": "000000000042.jpg"}]}
        rows["annotations"] = [{"id": side, "image_id": 42, "caption": name}]
        path = write_json(tmp_path / f"{name}.json", rows)
        readers.append(CocoCaptions(str(path), str(tmp_path / name), collection if name == "own" else None))
    return readers


def test_two_files_with_one_name_of_cocos_are_one_photo_only_where_they_are_one_file(tmp_path):
    readers = own_and_coco(tmp_path)
    with pytest.raises(
        DataError, match=r"own/000000000042.jpg and .*coco/0.*have names of one photo, but are not one file"
    ):
        Joint(readers).read("val")
    assert [each.image_id for each in Joint(own_and_coco(tmp_path, "own")).read("val")] == ["1/42", "2/42"]
    train, val = (reader.read("val") for reader in readers)
    with pytest.raises(DataError, match=r"own/0.* and .*coco/0.*give one of their readers a name of its own"):
        without(train, by_photo([val]))
    with pytest.raises(DataError, match=r"own/0.* and .*coco/0.*give one of their readers a name of its own"):
        require_apart({"a/train": train, "a/val": val}, [])
    copy = (tmp_path / "coco/000000000042.jpg").read_bytes()
    (tmp_path / "own/000000000042.jpg").write_bytes(copy)
    assert ids_of(Joint(readers).read("val")) == [(42, [20, 30])]
    assert without(train, by_photo([val])) == []
    with pytest.raises(DataError, match="share 1 of their images, such as image 42"):
        require_apart({"a/train": train, "a/val": val}, [])
    same = bytes([copy[0] ^ 1]) + copy[1:]  # of the same length
    (tmp_path / "own/000000000042.jpg").write_bytes(same)
    with pytest.raises(DataError, match="are not one file"):
        Joint(readers).read("val")


def test_the_second_image_of_a_pair_counts_as_shown():
    pair = sample("p", "a/1.png", 1, others=(Path("a/2.png"),))
    alone = sample(2, "a/2.png", 2)
    assert without([pair], by_photo([[alone]])) == without([alone], by_photo([[pair]])) == []
    assert without([pair], by_photo([[sample(3, "a/3.png", 3)]])) == [pair]
    with pytest.raises(DataError, match="share 1 of their images"):
        require_apart({"a/train": [alone], "b/test": [pair]}, [])


def test_of_two_pairs_those_images_are_compared_that_have_one_name(tmp_path):
    for folder, side in (("a", 20), ("b", 30)):
        write_photo(tmp_path / folder / "000000000042.jpg", size=(side, 20))
    for name in ("x", "y"):
        write_photo(tmp_path / f"{name}.jpg", size=(len(name) + 8, 9))
    first = sample("p", tmp_path / "x.jpg", 1, others=(tmp_path / "a/000000000042.jpg",))
    for second in (
        sample("q", tmp_path / "y.jpg", 2, others=(tmp_path / "b/000000000042.jpg",)),
        sample("q", tmp_path / "b/000000000042.jpg", 2),
    ):
        with pytest.raises(DataError, match=r"a/000000000042.jpg and .*b/000000000042.jpg have names of one photo"):
            require_apart({"a/train": [first], "b/val": [second]}, [])
    same = sample("q", tmp_path / "y.jpg", 2, others=(tmp_path / "a/000000000042.jpg",))
    with pytest.raises(DataError, match="share 1 of their images"):
        require_apart({"a/train": [first], "b/val": [same]}, [])


def test_two_data_sets_in_one_evaluated_split(tmp_path):
    readers = {name: Listed(val=[sample(1, f"{name}/1.jpg", 10)]) for name in ("a", "b")}
    source = Source(Named(readers), {"val": ["a/val", "b/val"]}, 2, {"captions": 1})
    assert ids_of(Splits({"x": source}).samples("x", "val")) == [("a/val/1", ["a/val/10"]), ("b/val/1", ["b/val/10"])]


@pytest.mark.parametrize(
    ("box", "sentence"),
    [([1, 1, 0, 2], "source x has a side"), ([1, 1, 9, 2], "does not lie inside"), (["1", 1, 2, 2], "four numbers")],
)
def test_boxes_of_ones_own_reader_are_checked(box, sentence):
    told = Text(7, "it", {"box": box})
    reader = Listed(val=[Sample(1, Path("a.jpg"), {"expressions": (told,)}, (8, 8))])
    with pytest.raises(DataError, match=f"7 of the expressions in .*{sentence}"):
        Splits({"x": Source(reader, {"val": ["val"]}, 2, {"expressions": 1})}).samples("x", "val")


def test_a_reader_of_ones_own_may_have_parts():
    class Mine:
        parts = ("a", "b")

        def read(self, split):
            return [sample(1, "a.jpg", 1)]

    assert len(read_tables(Mine(), "train")) == 1
