"""Which files of a folder are its data: what lies beside them by chance neither replaces them nor goes unsaid."""

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from fusionkit.data.readers.row_files import open_rows
from fusionkit.data.readers.row_pictures import FIRST, fullest
from fusionkit.data.readers.table import Table
from fusionkit.errors import ConfigError, DataError
from tests.data.worlds import pair, write_photo, write_shard

NONE = {"val": 0, "test": 0}  # no split is drawn


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FUSIONKIT_CACHE", str(tmp_path / "cache"))


def read(root: Path, files: Any = None, split: str = "train") -> tuple[list[str], list[str]]:
    """The captions, and what was warned of."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        samples = Table(files, str(root), split_by=NONE).read(split)
    told = {str(each.message).replace(f"{root}/", "") for each in found}
    return [text.text for sample in samples for text in sample.texts["captions"]], sorted(told)


@pytest.fixture
def mine(tmp_path) -> Path:
    """A table beside its pictures."""
    write_photo(tmp_path / "mine/images/a.png", 1)
    (tmp_path / "mine/captions.csv").write_text("image,caption\na.png,mine\n")
    return tmp_path / "mine"


def test_an_old_tar_does_not_replace_a_table(mine):
    write_shard(mine / "downloads/old.tar", pair("0", 2, "theirs"))
    assert read(mine) == (["mine"], [])
    write_shard(mine / "old.tar", pair("0", 2, "theirs"))
    told = "old.tar: not read, since captions.csv is; name what is meant as data.files=PATH, or move the other away"
    assert read(mine) == (["mine"], [told])
    assert read(mine, "old.tar") == (["theirs"], [])


def test_a_packed_tar_beside_data_is_no_shard(mine):
    (mine / "images.tar.gz").write_bytes(gzip.compress(b"pictures"))
    shown, (told,) = read(mine)
    assert shown == ["mine"]
    assert told.startswith("images.tar.gz: not read, since captions.csv is")
    (mine / "captions.csv").unlink()
    (mine / "images/a.txt").write_text("beside")
    assert read(mine)[0] == ["beside"]


def test_shards_are_read_before_what_is_written_about_them(tmp_path):
    for place in ("web", "repository/data"):
        write_shard(tmp_path / place / "00000.tar", pair("0", 2, "theirs"))
        (tmp_path / place / "00000.parquet").write_bytes(b"not read")
        (tmp_path / place / "sizes.json").write_text(json.dumps({"00000.tar": 1}))
    assert read(tmp_path / "web") == read(tmp_path / "repository") == (["theirs"], [])
    assert read(tmp_path / "web", "*") == (["theirs"], [])


def test_what_tells_of_shards_does_not_replace_them(tmp_path):
    for number in (0, 2):
        write_shard(tmp_path / f"web/{number:05}.tar", pair(f"{number}", number, "theirs"))
    for number in range(3):  # img2dataset's; one tar has not been downloaded
        table = pa.table({"url": ["http://x"], "caption": ["of a table"], "key": ["0"], "status": ["success"]})
        parquet.write_table(table, tmp_path / f"web/{number:05}.parquet")
    (tmp_path / "web/meta.json").write_text(json.dumps({"name": "web", "nsamples": 2}))
    (tmp_path / "web/shards.json").write_text(json.dumps([{"url": "00000.tar", "nsamples": 1}]))
    (tmp_path / "web/urls.tsv").write_text("url\tcaption\nhttp://x\tof a table\n")
    for files in (None, "*"):
        shown, told = read(tmp_path / "web", files)
        assert shown == ["theirs"] * 2
        assert not told or "not read, since 00000.tar is" in told[0]


def test_classes_of_pictures_that_a_tar_replaces_are_told(tmp_path):
    write_shard(tmp_path / "old.tar", pair("0", 2, "theirs"))
    for name in ("cat", "dog"):
        write_photo(tmp_path / name / "0.png", 1)
    shown, (told,) = read(tmp_path)
    assert shown == ["theirs"]
    assert told.startswith("cat/0.png and 1 more: not read, since old.tar is")


def test_a_pattern_of_two_kinds_is_one_sentence(mine):
    write_shard(mine / "0.tar", pair("0", 2, "theirs"))
    with pytest.raises(DataError) as error:
        read(mine, "*")
    assert str(error.value).replace(f"{mine}/", "") == (
        "the pattern * fits shards, such as 0.tar, and tables, such as captions.csv; name those that are meant, as "
        "files='*.tar' or files=captions.csv"
    )


def test_splits_and_numbers_in_one_pattern(tmp_path):
    for split in ("train", "val"):
        for number in range(3):
            write_shard(tmp_path / f"{split}-{number:03d}.tar", pair(f"{number}", number, f"{split} {number}"))
            write_photo(tmp_path / f"{split}{number}.png", number)
            (tmp_path / f"{split}-{number}.csv").write_text(f"image,caption\n{split}{number}.png,{split} {number}\n")
    (tmp_path / "val-001.tar").unlink()
    assert read(tmp_path, "{split}-{000..002}.tar")[0] == [f"train {n}" for n in range(3)]
    shown, (told,) = read(tmp_path, "{split}-{000..002}.tar", "val")
    assert shown == ["val 0", "val 2"]
    assert told.startswith("the shard val-001.tar is missing")
    assert read(tmp_path, ["{split}-0.csv", "{split}-2.csv"], "val") == (["val 0", "val 2"], [])
    (tmp_path / "val-0.csv").unlink()
    with pytest.raises(DataError, match=r"val-0.csv does not exist; did you mean 'val-"):
        read(tmp_path, "{split}-{0..2}.csv")


@pytest.mark.parametrize("files", [["a.tar", None], [], {}, {"train": None}, {"train": []}, {"train": [None]}, 5, [5]])
def test_files_that_are_no_paths_are_one_sentence(files):
    with pytest.raises(ConfigError, match=r"^data.files is .*, but has to be a path, a list of them, or"):
        Table(files)


def test_pictures_that_come_late_in_a_parquet_are_found_in_their_folder(tmp_path):
    """None of the first rows has one that is there, so rows all over the table say which folder is meant."""
    count = 2 * FIRST
    for number in range(FIRST, count):
        write_photo(tmp_path / f"images/{number}.png", number)
    table = pa.table({"image": [f"{number}.png" for number in range(count)], "caption": ["a"] * count})
    parquet.write_table(table, tmp_path / "t.parquet")
    opened = open_rows(tmp_path / "t.parquet")
    found = fullest([tmp_path, tmp_path / "images"], opened, {"image": ("image",), "caption": ("caption",)})
    assert found == tmp_path / "images"
