"""The reader, and how a statement comes to its two image rows."""

import json

import pytest

from fusionkit.data.collate import Collate
from fusionkit.data.datamodule import DataModule
from fusionkit.data.images import image_key
from fusionkit.data.readers.nlvr2 import NLVR2
from fusionkit.data.sample import Sample
from fusionkit.data.source import Source
from fusionkit.data.tokenizer import word_tokenizer
from fusionkit.data.transforms import Augment
from fusionkit.errors import DataError
from tests.data.worlds import write_photo


def statement(number, pair, index=0, label="True", **more):
    return {"identifier": f"train-{number}-{pair}-{index}", "sentence": f"two dogs {pair}", "label": label} | more


def make_reader(root, *rows) -> NLVR2:
    (root / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for pair in range(3):
        for side in (0, 1):
            write_photo(root / f"images/{'4/' if pair else ''}train-7-{pair}-img{side}.png", 1 + 2 * pair + side)
    return NLVR2(str(root / "{split}.json"), str(root / "images"))


ROWS = [statement(7, 0), statement(7, 1, label="False", directory=4), statement(7, 1, 1, directory=4)]


def test_a_pair_is_a_sample(tmp_path):
    samples = make_reader(tmp_path, *ROWS).read("train")
    assert [sample.image_id for sample in samples] == ["train-7-0", "train-7-1"]
    assert [path.name for path in (samples[1].image, *samples[1].others)] == [
        "train-7-1-img0.png",
        "train-7-1-img1.png",
    ]
    assert [(text.id, text.facts) for text in samples[1].texts["statements"]] == [
        ("train-7-1-0", {"label": 0}),
        ("train-7-1-1", {"label": 1}),
    ]


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("augment", [None, Augment(num_ops=0)])
def test_a_statement_points_at_both_of_its_images(tmp_path, cache, augment):
    reader = make_reader(tmp_path, *ROWS)
    source = Source(reader, {"train": ["train"]}, 2, {"statements": 2}, cache=cache, augment=augment)
    data = DataModule(str(tmp_path), {"nlvr2": source}, image_size=8, mean=(0, 0, 0), std=(1, 1, 1))
    (evaluated,) = data.eval_loader("nlvr2", "train")
    (trained,) = data.train_dataloader()
    for batch in (evaluated, trained[0]["nlvr2"]):
        rows = batch["statements"]
        assert batch["pixel_values"].shape == (4, 3, 8, 8)
        assert len(batch["image_ids"]) == len(batch["image_sizes"]) == len(batch["image_keys"].unique()) == 4
        for row, number in enumerate(rows["ids"]):
            pair = int(number.split("-")[2])
            for side, name in enumerate(("image_index", "other_index")):
                red = batch["pixel_values"][rows[name][row], 0].mean() * 255  # the photo's number, as it was drawn
                assert red == pytest.approx((1 + 2 * pair + side) * 40, abs=3)


def test_pairs_and_single_images_do_not_mix(tmp_path):
    samples = make_reader(tmp_path, *ROWS).read("train")
    source = Source(make_reader(tmp_path, *ROWS), {"train": ["train"]}, 2, {"statements": 1})
    data = DataModule(str(tmp_path), {"nlvr2": source}, image_size=8)
    single = Sample("alone", samples[0].image, samples[0].texts)
    items = [data.eval_loader("nlvr2", "train").dataset[0]._replace(sample=single, others=())]
    collate = Collate("nlvr2", samples, ["statements"], word_tokenizer(["two dogs"]), 9, None)
    assert "image alone has no second image" in str(collate(items))
    assert image_key(samples[0]) != image_key(samples[0], 1)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (statement(7, 0, label="yes"), "has the label 'yes'; known: False, True"),
        (statement(7, 5), "2 of 2 images of .* are not under"),
        ({"identifier": "train-7-0-0"}, "has no 'sentence'; expected the NLVR2 json"),
    ],
)
def test_broken_files_are_one_sentence(tmp_path, row, sentence):
    with pytest.raises(DataError, match=sentence):
        make_reader(tmp_path, row).read("train")


def test_a_broken_line_is_named(tmp_path):
    reader = make_reader(tmp_path, *ROWS)
    path = tmp_path / "train.json"
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(DataError, match=r"line 4 of .*train\.json is no JSON"):
        reader.read("train")
