"""Region features: read from npz files or an lmdb, padded, found by an image's name, converted from the published layouts."""

import base64
import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fusionkit.assembly.checks import check_images
from fusionkit.cli.main import run
from fusionkit.data.datamodule import DataModule
from fusionkit.data.dataset import EvalData
from fusionkit.data.images import CorruptImage, find_images
from fusionkit.data.readers.coco import CocoCaptions
from fusionkit.data.readers.refcoco import RefCOCO
from fusionkit.data.regions import Detections, RegionFiles, as_found, pad_regions, read_regions
from fusionkit.data.sample import Sample, Text
from fusionkit.data.source import Source
from fusionkit.data.stores import lmdb_keys
from fusionkit.encoders.patches import PatchEncoder
from fusionkit.errors import ConfigError, DataError
from tests.data.worlds import IDS, captions, instances, refs, write_json, write_photos, write_refs
from tests.toys import toy_model

ALL = Detections(min_regions=1)


def write_regions(path: Path, count: int = 3, width: int = 5, **more: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = np.tile(np.array([[0.25, 0.5, 0.75, 0.75]]), (count, 1))
    boxes = np.concatenate([corners, corners[:, 2:] - corners[:, :2]], axis=1)
    features = np.arange(count * width).reshape(count, width)
    np.savez(path, features=features.astype(np.float16), norm_bb=boxes.astype(np.float32), **more)
    return path


def test_features_and_the_seven_numbers_of_a_box(tmp_path: Path) -> None:
    found, size = read_regions(write_regions(tmp_path / "a.npz", size=np.array([32, 24])), ALL)
    assert size == (32, 24)
    assert found.features.dtype == torch.float32
    assert found.features[1].tolist() == [5, 6, 7, 8, 9]
    assert found.positions[0].tolist() == [0.25, 0.5, 0.75, 0.75, 0.5, 0.25, 0.125]


@pytest.mark.parametrize(
    ("confidences", "detections", "count"),
    [
        ([0.9, 0.8, 0.5, 0.1], Detections(0.2, 1, 100), 3),
        ([0.9, 0.8, 0.5, 0.1], Detections(0.2, 4, 100), 4),
        ([0.9, 0.8, 0.5, 0.1], Detections(0.2, 1, 2), 2),
        (None, Detections(0.2, 1, 2), 2),
        (None, Detections(), 4),
    ],
)
def test_how_many_regions_are_read(tmp_path: Path, confidences, detections: Detections, count: int) -> None:
    more = {} if confidences is None else {"conf": np.array(confidences)}
    found, _ = read_regions(write_regions(tmp_path / "a.npz", 4, **more), detections)
    assert len(found.features) == len(found.positions) == count


def test_a_file_that_is_damaged_inside_or_of_another_format_is_corrupt(tmp_path: Path) -> None:
    """Of a compressed file zlib complains, not zipfile; and numpy reads a .npy under any name."""
    draw = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "a.npz", features=draw.random((50, 20)), norm_bb=draw.random((50, 6)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[100:130] = bytes(byte ^ 0x5A for byte in content[100:130])
    (tmp_path / "a.npz").write_bytes(content)
    with (tmp_path / "b.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(CorruptImage, match=f"{name} cannot be read"):
            read_regions(tmp_path / name, ALL)


def test_a_batch_is_padded_and_masked(tmp_path: Path) -> None:
    scores = {"soft_labels": np.ones((2, 4))}
    asks = Detections(min_regions=1, class_scores=True)
    short, _ = read_regions(write_regions(tmp_path / "a.npz", 2, **scores), asks)
    long, _ = read_regions(write_regions(tmp_path / "b.npz", 3, soft_labels=np.ones((3, 4))), asks)
    regions = pad_regions([short, long])
    assert regions.mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert regions.features.shape == (2, 3, 5)
    assert regions.class_scores.shape == (2, 3, 4)
    assert not regions.features[0, 2].any()
    wide, _ = read_regions(write_regions(tmp_path / "c.npz", 2, width=6, **scores), asks)
    with pytest.raises(DataError, match="5 and 6 wide"):
        pad_regions([short, wide])


@pytest.mark.parametrize(
    ("arrays", "detections", "words"),
    [
        ({"features": np.ones((2, 3))}, ALL, "has no 'norm_bb' (it has features)"),
        ({"features": np.ones((2, 3)), "norm_bb": np.ones((2, 4))}, ALL, "norm_bb (2, 4)"),
        ({"features": np.ones((0, 3)), "norm_bb": np.ones((0, 6))}, ALL, "N above 0"),
        (
            {"features": np.ones((2, 3)), "norm_bb": np.ones((2, 6))},
            Detections(class_scores=True),
            "set class_scores of the source's regions to false",
        ),
    ],
)
def test_another_layout_is_told(tmp_path: Path, arrays, detections: Detections, words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError) as caught:
        read_regions(tmp_path / "a.npz", detections)
    assert words in str(caught.value)


def test_a_broken_file_is_a_corrupt_image(tmp_path: Path) -> None:
    whole = write_regions(tmp_path / "a.npz").read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2]):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(CorruptImage, match=r"a\.npz cannot be read"):
            read_regions(tmp_path / "a.npz", ALL)


def test_a_reader_finds_features_by_the_image_s_name(tmp_path: Path) -> None:
    """Under COCO's name and under UNITER's, which is the same in small letters."""
    write_json(tmp_path / "captions_train2014.json", captions())
    for i in IDS:
        name = f"coco_train2014_{i:012d}" if i > 2 else f"{i:012d}"
        write_regions(tmp_path / "regions" / f"{name}.npz")
    reader = CocoCaptions(str(tmp_path / "captions_{split}.json"), str(tmp_path / "regions"))
    files = [sample.image.name for sample in reader.read("train2014")]
    assert files == ["000000000001.npz", "000000000002.npz", *(f"coco_train2014_{i:012d}.npz" for i in (3, 4))]


def region_data(root: Path, size: bool = True, **options) -> DataModule:
    """RefCOCO's boxes on regions; captions have no size of their own."""
    write_refs(root / "refs.p", refs())
    write_json(root / "instances.json", instances())
    write_json(root / "captions_train.json", captions())
    for i in IDS:
        more = {"size": np.array([32, 24])} if size else {}
        write_regions(root / "regions" / f"{i:012d}.npz", i, **more)
    boxes = RefCOCO(str(root / "refs.p"), str(root / "instances.json"), str(root / "regions"))
    told = CocoCaptions(str(root / "captions_{split}.json"), str(root / "regions"))
    settings = {"batch_size": 3, "regions": ALL} | options
    sources = {
        "boxes": Source(boxes, {"train": ["train"]}, texts_per_image={"expressions": 2}, **settings),
        "told": Source(told, {"train": ["train"]}, texts_per_image={"captions": 1}, **settings),
    }
    return DataModule(str(root), sources)


def test_a_data_module_gives_regions_and_boxes(tmp_path: Path) -> None:
    data = region_data(tmp_path)
    (batch,) = list(data.eval_loader("boxes", "train"))
    assert "pixel_values" not in batch
    assert batch["regions"].mask.sum(dim=1).tolist() == [1, 2, 3]
    assert batch["expressions"]["boxes"][0].tolist() == pytest.approx([8 / 32, 12 / 24, 8 / 32, 12 / 24])
    assert batch["image_sizes"].tolist() == [[32, 24]] * 3
    assert data.images.feature_size("told", "train") == 5
    train = next(iter(data.train_dataloader()))[0]
    assert train["told"]["regions"].features.shape[0] == 3
    assert toy_model(regions=True).image_encoder.reads == data.sources["boxes"].images


def test_a_corrupt_first_image_does_not_stop_the_check_of_widths(tmp_path: Path) -> None:
    data = region_data(tmp_path)
    (tmp_path / "regions" / f"{1:012d}.npz").write_bytes(b"nonsense")
    assert data.images.feature_size("told", "train") is None
    with pytest.raises(DataError, match=r"cannot be read .* evaluation needs every image"):
        next(iter(data.eval_loader("told", "train")))


def test_a_box_needs_a_size_to_refer_to(tmp_path: Path) -> None:
    data = region_data(tmp_path, size=False)
    next(iter(data.eval_loader("told", "train")))  # captions need none
    samples = [replace(sample, size=None) for sample in data.samples("boxes", "train")]
    data._splits.training["boxes"] = samples
    with pytest.raises(DataError, match="the size of its image is not known"):
        next(iter(data.eval_loader("boxes", "train")))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache": True}, "data.sources.boxes.cache is for pixels"),
        ({"regions": None}, "data.sources.told.regions is not set"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, options, words: str) -> None:
    with pytest.raises((ConfigError, DataError), match=words.replace(".", r"\.")):
        region_data(tmp_path, **options).eval_loader("told", "train")


def test_photos_are_no_regions(tmp_path: Path) -> None:
    data = region_data(tmp_path)
    for file in (tmp_path / "regions").iterdir():
        file.unlink()
    write_photos(tmp_path / "regions")
    with pytest.raises(
        DataError, match=r"are files such as .*000000000001\.jpg, but data\.sources\.told\.regions is set"
    ):
        data.eval_loader("told", "train")


def test_an_encoder_of_pixels_refuses_regions(tmp_path: Path) -> None:
    data = region_data(tmp_path)
    check_images("told", data, toy_model(regions=True).image_encoder)
    with pytest.raises(ConfigError, match="TimmEncoder reads pixel_values, but source 'told' has regions"):
        check_images("told", data, toy_model().image_encoder)


def test_images_of_different_shapes_are_for_patches_alone(tmp_path: Path) -> None:
    kept, squashed = (
        DataModule(str(tmp_path), {"a": Source(None, {}, 1, {"captions": 1})}, image_size=32, fit=fit)
        for fit in ("keep", "squash")
    )
    patches = PatchEncoder(8, 4, 16)
    for data, encoder in ((kept, patches), (squashed, patches), (squashed, toy_model().image_encoder)):
        check_images("a", data, encoder)
    with pytest.raises(
        ConfigError, match=r"data\.fit=keep gives images of different shapes, which TimmEncoder does not"
    ):
        check_images("a", kept, toy_model().image_encoder)


def encoded(array: np.ndarray) -> str:
    return base64.b64encode(array.astype(np.float32).tobytes()).decode()


BOXES, FEATURES = np.array([[8.0, 6.0, 16.0, 12.0], [0.0, 0.0, 32.0, 24.0]]), np.arange(6).reshape(2, 3)


@pytest.mark.parametrize(
    "line",
    [
        ["7", "32", "24", "2", encoded(BOXES), encoded(FEATURES)],
        ["7", "24", "32", "", encoded(np.array([0.9, 0.1])), "", "", "2", encoded(BOXES), encoded(FEATURES)],
    ],
)
def test_bottom_up_tsv_becomes_npz(tmp_path: Path, line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.tsv").write_text("\t".join(line) + "\n", encoding="utf-8-sig")  # as Windows writes it
    assert run(["data", "convert", "bottom_up", f"tsv={tmp_path}/a.tsv", f"root={tmp_path}/out"]) == 0
    assert capsys.readouterr().out == f"wrote 1 files to {tmp_path}/out\n"
    found, size = read_regions(tmp_path / "out" / "000000000007.npz", ALL)
    assert size == (32, 24)
    assert found.positions[0].tolist() == [0.25, 0.25, 0.5, 0.5, 0.25, 0.25, 0.0625]
    assert found.features.tolist() == FEATURES[: len(found.features)].tolist()
    assert len(found.features) == (1 if len(line) == 10 else 2)


@pytest.mark.parametrize(
    ("line", "more", "code", "words"),
    [
        ("7\t32\t24\t2\tx", [], 1, "line 1 of {}/a.tsv has 5 columns, where a tsv of bottom-up attention has 6 or 10"),
        ("7\t32\t24\t2\tAAAA\tAAAA", [], 1, "the boxes of image 7 in {}/a.tsv are no 2 rows of numbers"),
        ("7\t32\t24\ttwo\tAAAA\tAAAA", [], 1, "the num_boxes of image 7 in {}/a.tsv is 'two'"),
        ("7\t32\t24\t0\t\t", [], 1, "the num_boxes of image 7 in {}/a.tsv is '0', but has to be a number from 1 up"),
        ("7\t32\t24\t²\tAAAA\tAAAA", [], 1, "the num_boxes of image 7 in {}/a.tsv is '²'"),
        ("7\t32\t24\t1234567890\tAAAA\tAAAA", [], 1, "the num_boxes of image 7 in {}/a.tsv is '1234567890'"),
        ("7\t32\t24\t2\t" + encoded(FEATURES), [], 1, "line 1 of {}/a.tsv has 5 columns"),
        ("7\t32\t24\t2\t" + encoded(FEATURES) + "\t" + encoded(FEATURES), [], 1, "the boxes of image 7 in"),
        ("7\t32\t24\t1\té\tAAAA", [], 1, "the boxes of image 7 in"),
        ("../7\t32\t24\t2\t" + encoded(BOXES) + "\t" + encoded(FEATURES), ["name=%s"], 1,
         "the image id '../7' in {}/a.tsv is no part of a plain file name"),
        ("/7\t32\t24\t2\t" + encoded(BOXES) + "\t" + encoded(FEATURES), ["name=%s"], 1, "the image id '/7' in {}/a.tsv"),
        ("a\0b\t32\t24\t2\t" + encoded(BOXES) + "\t" + encoded(FEATURES), ["name=%s"], 1, "the image id 'a\\x00b'"),
        ("7\t32\t24\t1\t" + encoded(BOXES[:1]) + "\t" + encoded(FEATURES[:1]), ["name=%d/%d"], 2, "name=%d/%d cannot hold"),
        ("", [], 1, "{}/a.tsv is empty"),
        (gzip.compress(b"7\t32\t24\t2\tx", mtime=0), [], 1, "{}/a.tsv is compressed by gzip, where a tsv of bottom-up attention"),
    ],
)  # fmt: skip
def test_a_tsv_of_another_layout_is_one_sentence(tmp_path: Path, line, more, code, words, capsys) -> None:
    (tmp_path / "a.tsv").write_bytes(line if isinstance(line, bytes) else line.encode())
    assert run(["data", "convert", "bottom_up", f"tsv={tmp_path}/a.tsv", f"root={tmp_path}/out", *more]) == code
    (sentence,) = capsys.readouterr().err.splitlines()
    assert words.format(tmp_path, tmp_path) in sentence
    assert not list(tmp_path.rglob("*7.npz"))


def test_a_tsv_that_is_no_text_is_one_sentence(tmp_path: Path, capsys) -> None:
    line = "\t".join(["7", "32", "24", "2", encoded(BOXES), encoded(FEATURES)]).encode()
    (tmp_path / "a.tsv").write_bytes(line[:30] + b"\xe9" + line[31:])
    assert run(["data", "convert", "bottom_up", f"tsv={tmp_path}/a.tsv", f"root={tmp_path}/out"]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert f"the boxes of image 7 in {tmp_path}/a.tsv are no 2 rows of numbers" in sentence


def test_a_file_that_was_changed_or_cut_off_is_corrupt(tmp_path: Path) -> None:
    path = write_regions(tmp_path / "a.npz")
    whole = path.read_bytes()
    at = whole.index(b"NUMPY") + 140  # among the numbers
    huge = whole.replace(b"(3, 5)", b"(9" + b"9" * 12 + b",)")  # more than any memory holds
    for damaged in (b"", whole[:-1], whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], huge):
        path.write_bytes(damaged)
        with pytest.raises(CorruptImage, match=r"a\.npz cannot be read \(.+\)"):
            read_regions(path, ALL)


def test_an_lmdb_that_is_cut_off_or_changed_is_told(tmp_path: Path) -> None:
    values = {f"{i}.npz": write_regions(tmp_path / "npz" / f"{i}.npz", 9).read_bytes() for i in range(40)}
    whole = (write_lmdb(tmp_path / "db", values) / "data.mdb").read_bytes()
    used = whole.rindex(b"NUMPY")
    for number, content in enumerate((whole[: used - 4096], whole[:50], b"x" * len(whole))):
        folder = tmp_path / f"copy_{number}"
        folder.mkdir()
        (folder / "data.mdb").write_bytes(content)
        with pytest.raises(DataError, match=f"copy_{number} (cannot be read as an lmdb|is an lmdb that ends before)"):
            lmdb_keys(folder)


def test_an_lmdb_without_its_package_is_one_sentence(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "data.mdb").touch()
    monkeypatch.setitem(sys.modules, "lmdb", None)
    assert run(["data", "convert", "uniter", f"lmdb={tmp_path}/db", f"root={tmp_path}/out"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "run in fusionkit's repository: pip install '.[regions]'" in sentence
    assert run(["data", "convert", "uniter", f"lmdb={tmp_path}", f"root={tmp_path}/out"]) == 2
    assert f"did you mean {tmp_path}/db?" in capsys.readouterr().err


def write_lmdb(folder: Path, values: dict[str, bytes]) -> Path:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder), map_size=2**20) as store, store.begin(write=True) as transaction:
        for name, value in values.items():
            transaction.put(name.encode(), value)
        transaction.put(b"__keys__", json.dumps(list(values)).encode())
    return folder


def test_an_lmdb_of_uniter_is_read_in_place_and_converted(tmp_path: Path, capsys) -> None:
    names = {f"coco_train_{i:012d}.npz": i for i in IDS}
    values = {name: write_regions(tmp_path / "npz" / name, i).read_bytes() for name, i in names.items()}
    store = write_lmdb(tmp_path / "db", values)
    write_json(tmp_path / "captions_train.json", captions())
    samples = CocoCaptions(str(tmp_path / "captions_{split}.json"), str(store)).read("train")
    assert [len(read_regions(sample.image, ALL).image.features) for sample in samples] == list(IDS)
    assert run(["data", "convert", "uniter", f"lmdb={store}", f"root={tmp_path}/out"]) == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == values
    capsys.readouterr()
    packed = write_lmdb(tmp_path / "msgpack", {"a.npz": b"\x82"})
    assert run(["data", "convert", "uniter", f"lmdb={packed}", f"root={tmp_path}/out"]) == 1
    assert "whose name ends in _compressed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"conf": np.ones(3)}, r"a.npz has conf \(3,\), beside features \(4, \d+\); expected \(4,\)"),
        ({"conf": np.ones((4, 2))}, r"has conf \(4, 2\)"),
        ({"size": np.array(7)}, r"has size \(\), beside"),
        ({"size": np.array([32, 24, 3])}, r"has size \(3,\), .* expected \(2,\)"),
        ({"size": np.array([-1, 24])}, r"the size of .*a.npz is \[-1, 24\]"),
        ({"size": np.array(["32", "24"])}, r"the size of .*a.npz are not all finite numbers"),
        ({"soft_labels": np.ones((3, 5))}, r"has soft_labels \(3, 5\), .* expected \(4, 5\)"),
        ({"features": np.full((4, 5), np.nan)}, r"the features of .*a.npz are not all finite numbers"),
        ({"norm_bb": np.full((4, 6), np.inf)}, r"the norm_bb of .* are not all finite numbers"),
        ({"features": np.array([["x"] * 5] * 4)}, r"the features of .* are not all finite numbers"),
    ],
)
def test_arrays_that_do_not_belong_together_are_told(tmp_path, change, told):
    arrays = {"features": np.ones((4, 5)), "norm_bb": np.zeros((4, 6))}
    np.savez(tmp_path / "a.npz", **arrays | change)
    with pytest.raises(DataError, match=told):
        read_regions(tmp_path / "a.npz", Detections(class_scores="soft_labels" in change))
    np.savez(tmp_path / "a.npz", **arrays, conf=np.ones(4), size=np.array([32, 24]), soft_labels=np.ones((4, 9)))
    assert read_regions(tmp_path / "a.npz", Detections(class_scores=True)).size == (32, 24)


def test_any_damage_of_an_archive_is_a_corrupt_image(tmp_path):
    path = write_regions(tmp_path / "a.npz")
    whole = path.read_bytes()
    rng, outcomes = np.random.default_rng(0), set()
    for _ in range(60):
        start = int(rng.integers(len(whole)))
        path.write_bytes(whole[:start] + bytes(rng.integers(0, 255, 6, dtype=np.uint8)) + whole[start + 6 :])
        try:
            read_regions(path, ALL)
        except (CorruptImage, DataError) as error:
            outcomes.add(type(error))
    assert CorruptImage in outcomes


def test_boxes_need_regions_of_their_own_picture(tmp_path):
    """A detector that saw the picture turned has found other places than the boxes are about."""
    box = Text(1, "it", {"box": (1.0, 1.0, 4.0, 4.0)})
    path = write_regions(tmp_path / "a.npz", size=np.array([64, 48]))
    data = EvalData(
        [Sample(1, path, {"expressions": (box,)}, (32, 24))], RegionFiles([path], ALL), ["expressions"], as_found
    )
    assert data[0].size == (32, 24)
    write_regions(path, size=np.array([24, 32]))
    with pytest.raises(DataError, match=r"a.npz is 24 x 32 pixels, which its annotations' 32 x 24 are no scale of"):
        data[0]


def test_the_regions_of_a_picture_are_those_of_its_own_spelling(tmp_path):
    for name in ("Cat.npz", "cat.npz"):
        write_regions(tmp_path / name)
    found = find_images(tmp_path, {1: ["cat.jpg"], 2: ["Cat.jpg"]}, tmp_path / "x.json")
    assert [found[number].name for number in (1, 2)] == ["cat.npz", "Cat.npz"]
