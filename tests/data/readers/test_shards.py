"""Web shards are read where they lie: by their members' places, whatever is missing, cut short or named oddly."""

import gzip
import io
import os
import shutil
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest

from fusionkit.data.images import decode
from fusionkit.data.pixels.bitmap import Bitmap, FastImages
from fusionkit.data.pixels.damage import Damage, fault_of
from fusionkit.data.readers import shard_index
from fusionkit.data.readers.row_shards import unbraced
from fusionkit.data.readers.table import Table
from fusionkit.data.readers.table_data import told
from fusionkit.data.source import Source, Splits
from fusionkit.data.stores import stamp_of, stored_bytes
from fusionkit.errors import ConfigError, DataError
from tests.data.worlds import pair, write_photo, write_shard, write_shards

NONE = {"val": 0, "test": 0}  # no split is drawn


@pytest.fixture
def web(tmp_path) -> Path:
    """Three shards of four samples."""
    return write_shards(tmp_path / "web")


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    """Where indexes are kept in a test."""
    monkeypatch.setenv("FUSIONKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/tables/shards"


def read(files: Any, split: str = "train", root: Path = Path(), **options: Any) -> list[Any]:
    return Table(str(files) if isinstance(files, Path) else files, str(root), **{"split_by": NONE, **options}).read(
        split
    )


def captions(samples: list[Any]) -> list[str]:
    return [text.text for sample in samples for text in sample.texts["captions"]]


def test_a_folder_of_img2dataset_is_read_as_it_is(web):
    samples = read(web)
    keys = [f"{shard:05d}{place:04d}" for shard in range(3) for place in range(4)]
    assert [sample.image_id for sample in samples] == [f"{key}.jpg" for key in keys]
    assert captions(samples) == [f"caption of {key}" for key in keys]
    assert len({text.id for sample in samples for text in sample.texts["captions"]}) == 12
    contents = [pair(key, number)[f"{key}.jpg"] for number, key in enumerate(keys)]
    assert [stored_bytes(sample.image) for sample in samples] == contents
    assert "caption=caption" in told(Table(str(web)).opened)[0]
    assert "similarity" not in told(Table(str(web)).opened)[0]


def test_shards_are_named_in_the_ways_of_their_users(web):
    whole = read(web)
    names = ["web/{00000..00002}.tar", "web/0000{0,1,2}.tar", "web/*.tar", "web/*"]
    for given in (
        *names,
        [f"web/0000{number}.tar" for number in range(3)],
        ["web/{00000..00001}.tar", "web/00002.tar"],
    ):
        assert read(given, root=web.parent) == whole, given
    assert read("web/00001.tar", root=web.parent)[0].image == whole[4].image
    by_split = {"train": "web/{00000..00001}.tar", "val": "web/00002.tar"}
    assert [len(read(by_split, split, web.parent)) for split in ("train", "val")] == [8, 4]


def test_braces_are_those_of_a_shell():
    assert unbraced("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert unbraced("{2..0}{a,}") == ["2a", "2", "1a", "1", "0a", "0"]
    assert unbraced("{0..6..3}") == ["0", "3", "6"]
    assert unbraced("{split}.csv") == ["{split}.csv"]
    assert unbraced("{c..a}{A..B}") == ["cA", "cB", "bA", "bB", "aA", "aB"]
    assert len(unbraced("{0..999999}")) == 1_000_000
    with pytest.raises(ConfigError, match="stands for more than 1,000,000 files"):
        unbraced("{0..99999999}.tar")
    with pytest.raises(ConfigError, match="stands for more than 1,000,000 files"):
        unbraced("{0..9999}{0..9999}{0..9999}.tar")


def test_splits_are_told_by_the_names_of_shards(tmp_path):
    for name in ("train-000", "train-001", "val-000"):
        write_shard(tmp_path / f"web/data-{name}.tar", pair(name))
    assert [len(read(tmp_path / "web", split)) for split in ("train", "val")] == [2, 1]


def test_a_picture_is_in_the_same_split_whether_it_is_unpacked_or_not(tmp_path):
    keys = [f"{number:09d}" for number in range(40)]
    shard = write_shard(tmp_path / "web/0.tar", *(pair(key, number) for number, key in enumerate(keys)))
    with tarfile.open(shard) as archive:
        archive.extractall(tmp_path / "folder", filter="data")
    shares = {"val": 0.3, "test": 0.3}
    for split in ("train", "val", "test"):
        packed, unpacked = (read(place, split, split_by=shares) for place in (shard, tmp_path / "folder"))
        assert [each.image_id for each in packed] == [each.image_id for each in unpacked]
        assert len(packed) > 4


def test_shards_that_are_missing_cut_or_damaged_are_told_and_the_rest_is_read(web):
    (web / "00000.tar").unlink()
    shard = web / "00001.tar"
    place = shard.read_bytes().index(b"000010003.json")
    shard.write_bytes(shard.read_bytes()[: place + 560])
    write_shard(web / "00003.tar")
    (web / "00004.tar").write_bytes(b"")
    (web / "00005.tar").write_bytes(b"no tar " * 1000)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        samples = read("web/{00000..00005}.tar", root=web.parent)
    assert [each.image_id[:9] for each in samples] == [
        "000010000",
        "000010001",
        "000010002",
        *(f"00002000{n}" for n in range(4)),
    ]
    messages = {str(each.message).replace(f"{web}/", "") for each in found}
    assert len(messages) == 5
    for words in (
        "the shard 00000.tar is missing; complete the download: it is left out, and 2 others are read",
        "00004.tar is empty, where a tar archive is read; download it again: it is left out",
        "00003.tar holds no samples",
        "00005.tar holds no samples (its header at byte 0 is damaged)",
        "00001.tar is cut short or damaged (its member at byte",
    ):
        assert any(words in message for message in messages), (words, messages)


def test_no_shard_at_all_is_one_sentence(web, tmp_path):
    with pytest.raises(DataError, match=r"the shard .*8.tar is missing; complete the download"):
        read("web/{8,9}.tar", root=tmp_path)
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "0.tar.gz").write_bytes(gzip.compress((web / "00000.tar").read_bytes()))
    with pytest.raises(
        DataError, match=r"0.tar.gz is compressed by gzip, where a tar archive is read; unpack it first"
    ):
        read(packed)
    shutil.copy(packed / "0.tar.gz", packed / "0.tar")
    with pytest.raises(DataError, match=r"0.tar is compressed by gzip"):
        read("packed/0.tar", root=tmp_path)


def test_texts_that_cannot_be_read_are_counted(tmp_path):
    odd = pair("2") | {"2.json": b"{cut"}
    strange = pair("3") | {"3.txt": b"\xff\xfe\x00"}
    shard = write_shard(tmp_path / "web/0.tar", pair("1"), odd, strange, pair("4"))
    with pytest.warns(UserWarning, match=r"0.tar: 2 samples have texts or json that cannot be read, and are left out"):
        assert captions(read(shard)) == ["caption of 1", "caption of 4"]


def test_names_of_members_are_words_and_lead_nowhere(tmp_path):
    secret = write_photo(tmp_path / "secret.jpg", 7)
    shard = tmp_path / "web/0.tar"
    write_shard(
        shard,
        *(pair(key, number) for number, key in enumerate(("../../secret", str(tmp_path / "secret"), "a b/ü@1+2"))),
    )
    with tarfile.open(shard, "a") as archive:
        for name in ("link.jpg", "hard.jpg"):
            about = tarfile.TarInfo(name)
            about.type, about.linkname = (tarfile.SYMTYPE if name == "link.jpg" else tarfile.LNKTYPE), str(secret)
            archive.addfile(about)
        about = tarfile.TarInfo("link.txt")
        about.size = 4
        archive.addfile(about, io.BytesIO(b"text"))
    samples = read(shard)
    assert captions(samples) == ["caption of ../../secret", f"caption of {tmp_path}/secret", "caption of a b/ü@1+2"]
    assert all(sample.image.parent == shard for sample in samples)
    pictures = [content for number in range(3) for content in [pair("x", number)["x.jpg"]]]
    assert [stored_bytes(sample.image) for sample in samples] == pictures


def test_fields_are_columns_and_dots_in_folders_are_none(tmp_path):
    key = "v1.0/000"
    picture = pair("x")["x.jpg"]
    members = {"left.PNG": picture, "right.jpg": picture, "sentence.txt": b"two dogs\n", "cls": b"1", "npy": b"0"}
    shard = write_shard(tmp_path / "web/0.tar", {f"{key}.{kind}": content for kind, content in members.items()})
    (sample,) = read(shard, columns={"image": ["left", "right"], "label": "cls"})
    (statement,) = sample.texts["statements"]
    assert (statement.text, statement.facts["label"]) == ("two dogs", 1)
    assert [stored_bytes(path) for path in (sample.image, *sample.others)] == [picture] * 2
    assert sample.image.suffix == ".PNG" or sample.image.suffix == ".png"


def test_a_sample_has_one_number_whatever_split_it_is_drawn_into(tmp_path, monkeypatch):
    shard = write_shard(tmp_path / "web/0.tar", *(pair(f"{number:03d}", number) for number in range(30)))
    shares = {"val": 0.3, "test": 0.2}
    for rows in (4096, 7):
        monkeypatch.setattr("fusionkit.data.readers.row_shards.BATCH", rows)
        found = [sample for split in ("train", "val", "test") for sample in read(shard, split, split_by=shares)]
        assert len(found) == 30
        assert {text.id: sample.image_id for sample in found for text in sample.texts["captions"]} == {
            f"{number}/0": f"{number:03d}.jpg" for number in range(30)
        }


def test_a_sample_without_a_picture_is_left_out(tmp_path):
    bare = {name: content for name, content in pair("1").items() if not name.endswith("jpg")}
    shard = write_shard(tmp_path / "web/0.tar", pair("0"), bare, pair("2", 2))
    table = Table(str(shard), split_by={"val": 0.5, "test": 0})
    assert sorted(sample.image_id for split in ("train", "val") for sample in table.read(split)) == ["0.jpg", "2.jpg"]
    assert table.opened.skipped == {"train": 1, "val": 0}


def test_keys_that_start_anew_in_each_shard_stay_apart(tmp_path):
    for number in range(2):
        write_shard(tmp_path / f"web/{number}.tar", pair("000", number), pair("001", number + 2))
    samples = read(tmp_path / "web")
    assert [sample.image_id for sample in samples] == ["0/000.jpg", "0/001.jpg", "1/000.jpg", "1/001.jpg"]


def test_the_names_of_a_collections_photos_are_known(tmp_path):
    shard = write_shard(tmp_path / "web/0.tar", pair("COCO_train2014_000000000042"))
    assert read(shard)[0].photo == "coco/42"
    numbered = write_shard(tmp_path / "flickr30k/0.tar", pair("000000042"))
    assert read(numbered)[0].photo is None


def test_a_shard_is_gone_through_once_until_it_changes(web, kept, monkeypatch):
    made = []
    make = shard_index._made
    monkeypatch.setattr(shard_index, "_made", lambda shard: made.append(shard.name) or make(shard))
    first = read(web)
    assert sorted(made) == ["00000.tar", "00001.tar", "00002.tar"]
    assert len(list(kept.glob("*.arrow"))) == 3
    assert read(web) == first
    assert len(made) == 3
    write_shard(web / "00001.tar", pair("new"))
    os.utime(web / "00001.tar", (2e9, 2e9))
    assert "caption of new" in captions(read(web))
    assert made[3:] == ["00001.tar"]
    for path in kept.glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:100])
    assert len(read(web)) == 9
    assert len(made) == 7


def test_a_shard_that_is_being_written_is_not_kept(web, kept):
    os.utime(web / "00000.tar")
    assert len(read(web / "00000.tar")) == 4
    assert not kept.exists() or not list(kept.glob("*.arrow"))


def test_what_no_run_asks_for_is_removed(web, kept):
    read(web)
    (kept / "old.arrow").write_bytes(b"of a shard that is gone")
    os.utime(kept / "old.arrow", (1e9, 1e9))
    source = Source(Table(str(web), split_by=NONE), {"train": ["train"]}, 2, {"captions": 1})
    assert len(Splits({"x": source}).samples("x", "train")) == 12
    assert not (kept / "old.arrow").exists()
    assert len(list(kept.glob("*.arrow"))) == 3


def test_the_tables_are_made_anew_where_a_shard_comes_or_goes(web):
    def count() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = Source(
                Table("web/{00000..00003}.tar", str(web.parent), split_by=NONE),
                {"train": ["train"]},
                2,
                {"captions": 1},
            )
            return len(Splits({"x": source}).samples("x", "train"))

    assert count() == 12
    write_shard(web / "00003.tar", pair("more"))
    assert count() == 13
    (web / "00000.tar").unlink()
    assert count() == 9


def test_a_member_is_a_picture_to_whatever_reads_pictures(web):
    sample = read(web)[0]
    assert decode(sample.image, 1).size == (32, 24)
    assert isinstance(FastImages([sample.image], 24, "torchvision").load(0).image, Bitmap)
    assert stamp_of(sample.image) == stamp_of(web / "00000.tar") is not None
    assert fault_of(sample.image, True) is None
    assert fault_of(sample.image, False) is None
    shutil.move(web / "00000.tar", web / "gone")
    assert "is missing" in str(fault_of(sample.image, False))
    odd = write_shard(web / "odd.tar", pair("1") | {"1.jpg": pair("1")["1.jpg"][:-200]}, pair("2") | {"2.jpg": b""})
    cut, empty = (each.image for each in read(odd))
    assert "cannot be decoded" in str(fault_of(cut, False))
    assert "is missing" in str(fault_of(empty, False))


def test_pictures_that_are_damaged_are_left_out_and_counted(tmp_path):
    samples = [pair(str(number), number) for number in range(5)]
    samples[2]["2.jpg"] = b"\xff\xd8\xff no picture"
    reader = Table(str(write_shard(tmp_path / "web/0.tar", *samples)), split_by=NONE)
    source = Source(reader, {"train": ["train"]}, 2, {"captions": 1})
    splits = Splits({"x": source}, damage=Damage("skip", 0.5))
    assert [sample.image_id for sample in splits.samples("x", "train")] == ["0.jpg", "1.jpg", "3.jpg", "4.jpg"]
    assert splits.left_out == {("x", "train"): 1}
