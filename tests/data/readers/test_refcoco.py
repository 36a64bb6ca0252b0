import os
import pickle

import pytest

from fusionkit.data.joint import Joint
from fusionkit.data.readers.coco import CocoCaptions
from fusionkit.data.readers.refcoco import RefCOCO
from fusionkit.errors import DataError
from tests.data.worlds import captions, instances, refs, write_json, write_photos, write_refs


def make_reader(root, referred=None, objects=None) -> RefCOCO:
    path = write_refs(root / "refs(unc).p", referred or refs())
    boxes = write_json(root / "instances.json", objects or instances())
    return RefCOCO(str(path), str(boxes), str(write_photos(root / "images")))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_expressions_with_their_boxes(tmp_path, protocol):
    reader = make_reader(tmp_path)
    write_refs(tmp_path / "refs(unc).p", refs(), protocol)
    samples = reader.read("train")
    assert [sample.image_id for sample in samples] == [1, 2, 3]
    assert samples[0].size == (32, 24)
    expression = samples[1].texts["expressions"][1]
    assert (expression.id, expression.text) == (21, "thing 1")
    assert expression.facts == {"box": (4.0, 6.0, 8.0, 12.0), "ref_id": 2, "ann_id": 102}
    with pytest.raises(
        DataError, match=r"no entries of split 'testA'.*known: train, val \(entries: 3 of train, 1 of val\)"
    ):
        reader.read("testA")


def test_a_split_is_taken_by_its_whole_name(tmp_path):
    splits = ("testA", "testB", "test", "testA")
    reader = make_reader(tmp_path, [ref | {"split": split} for ref, split in zip(refs(), splits, strict=True)])
    read = {split: [sample.image_id for sample in reader.read(split)] for split in ("test", "testA", "testB")}
    assert read == {"test": [3], "testA": [1, 4], "testB": [2]}


def test_strings_of_python_2(tmp_path):
    reader = make_reader(tmp_path)
    content = b"(lp0\n(dp1\nS'split'\np2\nS'caf\\xe9'\np3\nsa."
    (tmp_path / "refs(unc).p").write_bytes(content)
    with pytest.raises(DataError, match="known: café"):
        reader.read("train")


class Attack:
    def __reduce__(self):
        return os.mkdir, (os.environ["ATTACKED"],)


def test_a_pickle_cannot_run_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTACKED", str(tmp_path / "attacked"))
    reader = make_reader(tmp_path, [Attack()])
    with pytest.raises(DataError, match=r"refs\(unc\).p wants to run '(posix|nt|os).mkdir' .* it was not run"):
        reader.read("train")
    assert not (tmp_path / "attacked").exists()
    pickle.loads((tmp_path / "refs(unc).p").read_bytes())  # the attack works where it is let
    assert (tmp_path / "attacked").exists()


def test_a_sentence_that_is_no_text_is_told_of_its_file(tmp_path):
    referred = refs()
    referred[0]["sentences"][0]["sent"] = 1e308
    with pytest.raises(DataError, match=r"refs\(unc\).p: text \d+ is 1e\+308, but has to be a string"):
        make_reader(tmp_path, referred).read("train")


def test_a_broken_pickle_and_one_of_another_layout(tmp_path):
    reader = make_reader(tmp_path)
    path = tmp_path / "refs(unc).p"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"refs\(unc\).p is not a complete pickle file"):
        reader.read("train")
    write_refs(path, {"train": []})
    with pytest.raises(DataError, match=r"refs\(unc\).p holds a dict; expected a list of referring expressions"):
        reader.read("train")


@pytest.mark.parametrize("box", [[-0.9, 0, 32, 24.9], [0, 0, 32.5, 24]])
def test_a_box_may_leave_its_image_by_rounding(tmp_path, box):
    objects = instances()
    objects["annotations"][0]["bbox"] = box
    assert make_reader(tmp_path, objects=objects).read("train")[0].texts["expressions"][0].facts["box"] == tuple(box)


@pytest.mark.parametrize(
    ("box", "wrong"),
    [
        ([30, 0, 4, 5], r"does not lie inside its image \(32 x 24 pixels\)"),
        ([0, -2, 4, 5], "does not lie inside its image"),
        ([0, 20, 4, 6], "does not lie inside its image"),
        ([4, 4, 0, 5], "has a side that is not positive"),
        ([4, 4, 5, -1], "has a side that is not positive"),
        ([None, 4, 5, 5], r"is \[None, 4, 5, 5\], but has to be four numbers"),
        ([4, 4, 5, 5, 1], r"is \[4, 4, 5, 5, 1\], but has to be four numbers"),
    ],
)
def test_an_impossible_box_names_its_annotation(tmp_path, box, wrong):
    objects = instances()
    objects["annotations"][1]["bbox"] = box
    with pytest.raises(DataError, match=rf"ann_id 102 of image 2 in .*instances.json {wrong}"):
        make_reader(tmp_path, objects=objects).read("train")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r, o: r[1].update(ref_id=1), "has the reference 1 twice"),
        (lambda r, o: r[1]["sentences"][0].update(sent_id=10), "has the sentence 10 twice"),
        (lambda r, o: o["annotations"].pop(1), "reference 2 of .* names box 102, which .*instances.json lacks"),
        (lambda r, o: o["images"].pop(1), "reference 2 of .* names image 2, which .*instances.json lacks"),
        (lambda r, o: r[1].pop("sentences"), "an entry of .*unc.*p has no 'sentences'; expected the RefCOCO refs"),
        (lambda r, o: o["images"][1].update(width=0), "image 2 of .*instances.json is 0 x 24 pixels"),
        (
            lambda r, o: o["annotations"][1].update(image_id=3),
            "reference 2 of .* is about image 2, but its box 102 lies on image 3",
        ),
        (lambda r, o: r[1].update(image_id=None), "names image None, which|with the id None"),
        (lambda r, o: o["images"][0].pop("width"), "an entry of .*instances.json has no 'width'"),
    ],
)
def test_files_that_disagree_are_one_sentence(tmp_path, change, sentence):
    referred, objects = refs(), instances()
    change(referred, objects)
    with pytest.raises(DataError, match=sentence):
        make_reader(tmp_path, referred, objects).read("train")


def test_joint_readers_make_one_sample_an_image(tmp_path):
    write_json(tmp_path / "captions_train.json", captions())
    said = CocoCaptions(str(tmp_path / "captions_{split}.json"), str(tmp_path / "images"))
    samples = Joint([said, make_reader(tmp_path)]).read("train")
    assert [sorted(sample.texts) for sample in samples] == [["captions", "expressions"]] * 3 + [["captions"]]
    assert samples[0].size == (32, 24)
    objects = instances()
    objects["images"][0]["width"] = 33
    write_json(tmp_path / "other.json", objects)
    other = RefCOCO(str(tmp_path / "refs(unc).p"), str(tmp_path / "other.json"), str(tmp_path / "images"))
    with pytest.raises(DataError, match="image 1 is 32 x 24 pixels in one annotation file and 33 x 24 in another"):
        Joint([make_reader(tmp_path), other]).read("train")


def test_grefcocos_references_to_one_thing_are_read_and_the_others_told(tmp_path):
    """ann_id is a list there, [-1] for an expression of nothing; the published file is json."""
    listed = [ref | {"ann_id": [ref["ann_id"]], "no_target": False} for ref in refs()]
    listed[1] |= {"ann_id": [102, 103]}
    listed[2] |= {"ann_id": [-1], "no_target": True}
    make_reader(tmp_path)
    path = write_json(tmp_path / "grefs(unc).json", listed)
    reader = RefCOCO(str(path), str(tmp_path / "instances.json"), str(tmp_path / "images"))
    with pytest.warns(UserWarning, match=r"2 of 3 references of .*grefs\(unc\).json are to several things or to none"):
        (sample,) = reader.read("train")
    assert sample.texts["expressions"][0].facts == {"box": (4.0, 6.0, 8.0, 12.0), "ref_id": 1, "ann_id": 101}
    assert [each.image_id for each in reader.read("val")] == [4]


def test_references_as_json_are_those_of_the_pickle(tmp_path):
    pickled = make_reader(tmp_path)
    path = write_json(tmp_path / "refs.json", refs())
    reader = RefCOCO(str(path), str(tmp_path / "instances.json"), str(tmp_path / "images"))
    assert reader.read("train") == pickled.read("train")
