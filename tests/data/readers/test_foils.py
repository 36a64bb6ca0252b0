"""SugarCREPE, VALSE and Winoground in their published layouts, drawn small."""

import json

import pytest

from fusionkit.data.readers.sugarcrepe import KINDS, SugarCrepe
from fusionkit.data.readers.valse import FOLDERS, PIECES, Valse
from fusionkit.data.readers.winoground import Winoground
from fusionkit.errors import ConfigError, DataError
from tests.data.worlds import write_json, write_photo


def crepe(number, more="striped ", **changes):
    row = {"filename": f"{number:012d}.jpg", "caption": "a cat", "negative_caption": f"a {more}cat"}
    return row | changes


def sugarcrepe(root, rows, kinds=("add_att", "swap_obj")):
    for kind in kinds:
        write_json(root / f"sugarcrepe/{kind}.json", rows)
    for number in (1, 2):
        write_photo(root / f"val2017/{number:012d}.jpg", number)
    return SugarCrepe(f"{root}/sugarcrepe", f"{root}/val2017", kinds)


def test_sugarcrepe_has_the_pairs_of_all_kinds_by_photo(tmp_path):
    samples = sugarcrepe(tmp_path, {"0": crepe(1), "1": crepe(2), "2": crepe(1, "grey ", source="x")}).read("val2017")
    assert [sample.image.name for sample in samples] == ["000000000001.jpg", "000000000002.jpg"]
    first = samples[0].texts["captions"]
    assert [text.id for text in first[:4]] == [f"add_att/{n}/{label}" for n in (0, 2) for label in ("caption", "foil")]
    assert [text.text for text in first[:4]] == ["a cat", "a striped cat", "a cat", "a grey cat"]
    assert first[3].facts == {"pair": "add_att/2", "label": "foil", "subset": "add_att"}
    assert {text.facts["subset"] for text in first} == {"add_att", "swap_obj"}
    assert sugarcrepe(tmp_path, {"0": crepe(1)}, KINDS).read("x")[0].image_id == "000000000001.jpg"
    alone = SugarCrepe(f"{tmp_path}/sugarcrepe", None).read("val2017")
    assert len(alone[0].texts["captions"]) == 2 * len(KINDS)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([crepe(1)], r"add_att\.json is not an object with at least one entry; expected the SugarCREPE json"),
        ({}, "is not an object with at least one entry"),
        ({"0": {"filename": "1.jpg", "caption": "a cat"}}, r"an entry of .*add_att\.json has no 'negative_caption'"),
        ({"0": crepe(1, negative_caption=None)}, r"add_att\.json: text add_att/0/foil is None"),
        ({"0": crepe(1, filename=3)}, r"an entry of .*add_att\.json is malformed"),
        ({"0": crepe(1), "1": crepe(3)}, r"1 of 2 images of .*add_att\.json are not under .*val2017"),
        (
            {"0": crepe(1, filename="../sugarcrepe/add_att.json")},
            r"add_att\.json says .* which lies outside of its folder",
        ),
        ({"0": crepe(1, filename="/etc/passwd")}, "which lies outside of its folder"),
    ],
)
def test_a_mistake_in_sugarcrepe_is_one_sentence(tmp_path, rows, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        sugarcrepe(tmp_path, rows).read("val2017")
    assert "\n" not in str(caught.value)


def test_files_and_kinds_that_are_not_there_are_told(tmp_path):
    reader = sugarcrepe(tmp_path, {"0": crepe(1)})
    (tmp_path / "sugarcrepe/swap_obj.json").unlink()
    with pytest.raises(DataError, match=r"the annotation file .*swap_obj\.json does not exist"):
        reader.read("val2017")
    with pytest.raises(ConfigError, match="has 'swap_objects'; did you mean 'swap_obj'"):
        SugarCrepe("a", None, ["swap_objects"])
    with pytest.raises(ConfigError, match="has 'existance'; did you mean 'existence'"):
        Valse("a", None, ["existance"])


def valse_row(dataset, image, votes=3, **changes):
    row = {"dataset": dataset, "image_file": image, "caption": "there are cats.", "foil": "there are no cats."}
    return row | {"mturk": {"foil": 3 - votes, "caption": votes, "other": 0}} | changes


def valse(root, rows, pieces=("existence", "foil-it"), **options):
    for piece in pieces:
        write_json(root / f"valse/{piece}.json", rows)
    for place in ("visual7w/v7w_1.jpg", "val2014/COCO_val2014_000000000007.jpg", "train2014/000000000008.jpg"):
        write_photo(root / place)
    return Valse(f"{root}/valse", str(root), pieces, **options)


def test_valse_keeps_what_two_annotators_called_valid(tmp_path):
    rows = {
        "a": valse_row("visual7w", "v7w_1.jpg", 2),
        "b": valse_row("visual7w", "v7w_1.jpg", 1),
        "c": valse_row("FOIL dataset", "COCO_val2014_000000000007.jpg"),
        "d": valse_row("VisDial_v1.0", "COCO_train2014_000000000008.jpg"),
    }
    samples = valse(tmp_path, rows).read("test")
    places = ["visual7w/v7w_1.jpg", "val2014/COCO_val2014_000000000007.jpg", "train2014/000000000008.jpg"]
    assert [str(sample.image.relative_to(tmp_path)) for sample in samples] == places
    ids = [text.id for text in samples[0].texts["captions"]]
    assert ids == [f"{piece}/a/{label}" for piece in ("existence", "foil-it") for label in ("caption", "foil")]
    assert samples[0].texts["captions"][3].facts == {"pair": "foil-it/a", "label": "foil", "subset": "foil-it"}
    every = valse(tmp_path, rows, votes=0).read("test")
    assert len(every[0].texts["captions"]) == 8
    moved = valse(tmp_path, {"a": rows["a"]}, folders={"visual7w": "val2014"})
    with pytest.raises(DataError, match=r"first missing: val2014/v7w_1\.jpg"):
        moved.read("test")


def test_valse_knows_all_pieces_and_data_sets():
    assert len(PIECES) == len(set(PIECES)) == 11
    assert set(FOLDERS) == {"visual7w", "coco2017", "coco_2017", "SWiG", "VisDial_v1.0", "FOIL dataset"}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            valse_row("imagenet", "a.jpg"),
            r"entry a of .*existence\.json is of the dataset 'imagenet'; known: .*reader\.folders",
        ),
        (
            valse_row("visual7w", "v7w_1.jpg", mturk={}),
            r"an entry of .*existence\.json has no 'caption'; expected the VALSE",
        ),
        (valse_row("visual7w", "v7w_1.jpg", mturk=None), r"existence\.json is malformed"),
        (valse_row("visual7w", "v7w_1.jpg", foil=["a"]), "text existence/a/foil is .*has to be a string"),
        (valse_row("visual7w", "../../v7w_1.jpg"), "which lies outside of its folder"),
    ],
)
def test_a_mistake_in_valse_is_one_sentence(tmp_path, row, sentence):
    with pytest.raises(DataError, match=sentence):
        valse(tmp_path, {"a": row}).read("test")


def winoground_row(number, **changes):
    row = {"id": number, "tag": "Adjective-Size", "secondary_tag": "", "num_main_preds": 1, "collapsed_tag": "Object"}
    row |= {f"image_{k}": f"ex_{number}_img_{k}" for k in (0, 1)}
    return row | {"caption_0": "an old man and a young woman", "caption_1": "a young man and an old woman"} | changes


def winoground(root, *rows):
    (root / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in (0, 1):
        for k in (0, 1):
            write_photo(root / f"images/ex_{number}_img_{k}.png", number + k)
    return Winoground(f"{root}/examples.jsonl", f"{root}/images")


def test_winoground_has_both_captions_with_each_image(tmp_path):
    samples = winoground(tmp_path, winoground_row(0), winoground_row(1, collapsed_tag=None)).read("test")
    assert [sample.image_id for sample in samples] == ["0/0", "0/1", "1/0", "1/1"]
    assert [sample.image.name for sample in samples[:2]] == ["ex_0_img_0.png", "ex_0_img_1.png"]
    texts = [text for sample in samples[:2] for text in sample.texts["captions"]]
    assert [text.id for text in texts] == ["0/0/0", "0/0/1", "0/1/0", "0/1/1"]
    assert [text.facts["label"] for text in texts] == ["caption", "foil", "foil", "caption"]
    assert [text.text[:5] for text in texts] == ["an ol", "a you"] * 2
    assert {text.facts["subset"] for text in texts} == {"Object"}
    assert samples[2].texts["captions"][0].facts == {"pair": "1", "label": "caption", "subset": ""}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([winoground_row(0), winoground_row(0)], "has the example 0 twice"),
        ([winoground_row(2)], "2 of 2 images of .* are not under"),
        ([{"id": 0, "image_0": "ex_0_img_0", "caption_0": "a"}], "has no 'caption_1'"),
        ([winoground_row(0, image_1=7)], "is malformed .*7 is no name of an image"),
        ([winoground_row(0, image_1="../secret")], "which lies outside of its folder"),
        ([winoground_row([1])], "ids are whole numbers or texts"),
        ([], "is empty"),
    ],
)
def test_a_mistake_in_winoground_is_one_sentence(tmp_path, rows, sentence):
    with pytest.raises(DataError, match=sentence):
        winoground(tmp_path, *rows).read("test")
