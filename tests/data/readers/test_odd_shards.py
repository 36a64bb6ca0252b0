"""Web shards as they are found: no text comes to another picture, and what is left out is told."""

import io
import os
import tarfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fusionkit.data.images import decode
from fusionkit.data.joint import read_tables
from fusionkit.data.readers.shard_index import index_of
from fusionkit.data.readers.table import Table
from fusionkit.data.stores import ChangedError, stored_bytes
from fusionkit.data.tables.samples import Samples
from fusionkit.errors import DataError
from fusionkit.files.depends import STORE, Files, is_same
from tests.data.worlds import pair, write_shard

NONE = {"val": 0, "test": 0}  # no split is drawn


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FUSIONKIT_CACHE", str(tmp_path / "cache"))


def picture(number: int) -> bytes:
    return pair("x", number)["x.jpg"]


def two(key: str, number: int, text: str) -> dict[str, bytes]:
    return {f"{key}.jpg": picture(number), f"{key}.txt": text.encode()}


def write(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> Path:
    """A shard of members, of which a name may come twice, or be no UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind, errors="surrogateescape") as archive:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    os.utime(path, (1e9, 1e9))
    return path


def read(path: Path, split: str = "train", **options: Any) -> tuple[dict[str, int], set[str]]:
    """The number of the picture of each caption, as a run reads them, and what is told."""
    numbers = {picture(number): number for number in range(30)}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        table = Table(str(path), **{"split_by": NONE, "missing": "skip", **options})
        samples = list(Samples(read_tables(table, split)))
    shown = {text.text: numbers[stored_bytes(each.image)] for each in samples for text in each.texts["captions"]}
    return shown, {str(each.message).replace(f"{path.parent}/", "") for each in found}


def some(table: Table, split: str) -> list[Any]:
    """The parts of a split, which may be none."""
    with suppress(DataError):
        return list(table.opened.parts(split))
    return []


def test_a_key_of_twelve_digits_is_no_number_of_coco(tmp_path):
    for shard in (0, 1):
        samples = [two(f"{n:012d}", 10 * shard + n, f"{shard} {n}") for n in range(3)]
        write_shard(tmp_path / f"web/{shard}.tar", *samples)
    assert read(tmp_path / "web")[0] == {f"{shard} {n}": 10 * shard + n for shard in (0, 1) for n in range(3)}


def test_names_that_are_no_utf8_stay_apart(tmp_path):
    names = [word.decode("utf-8", "surrogateescape") for word in (b"caf\xe9", b"caf\xe8")]
    members = [each for n, name in enumerate(names) for each in two(name, n, f"text {n}").items()]
    assert read(write(tmp_path / "0.tar", members))[0] == {"text 0": 0, "text 1": 1}


def test_a_key_that_comes_twice_is_left_out_and_told(tmp_path):
    twice = [*two("a", 1, "one").items(), *two("a", 2, "two").items()]
    shown, told = read(write(tmp_path / "0.tar", [*twice, *two("b", 3, "three").items()]))
    assert shown == {"three": 3}
    assert any("0.tar: 1 samples have a file twice, such as a.jpg, and are left out" in each for each in told)


def test_an_image_id_that_comes_again_is_of_each_picture(tmp_path):
    samples = [pair(key, number, key, image_id=0) for key, number in (("a", 1), ("b", 2), ("c", 2))]
    assert read(write_shard(tmp_path / "0.tar", *samples))[0] == {"a": 1, "b": 2, "c": 2}
    odd = write_shard(tmp_path / "odd.tar", pair("a", 1, image_id=[1]), pair("b", 2, image_id=[1]))
    with pytest.raises(DataError, match=r"row 1 of .*odd.tar has \[1\] as 'image_id', which is neither a number nor a"):
        read(odd)


def test_another_shard_of_equal_size_and_time_is_read_anew(tmp_path):
    shard = write_shard(tmp_path / "0.tar", two("a", 1, "one"))
    assert read(shard)[0] == {"one": 1}
    files = Files()
    files.note(shard, STORE)
    assert files.finish()
    (seen,) = files.seen.values()
    assert is_same(str(shard), seen)
    size = shard.stat().st_size
    write_shard(shard, two("a", 2, "two"))
    assert shard.stat().st_size == size
    assert read(shard)[0] == {"two": 2}
    assert not is_same(str(shard), seen)


def test_a_shard_that_is_written_anew_under_a_run_is_one_sentence(tmp_path):
    shard = write_shard(tmp_path / "0.tar", two("a", 1, "one"))
    (sample,) = Table(str(shard), split_by=NONE).read("train")
    os.utime(shard, (2e9, 2e9))
    for look in (stored_bytes, lambda path: decode(path, 1)):
        with pytest.raises(ChangedError, match=r"the shard .*0.tar was changed while it was read; start again"):
            look(sample.image)


def test_leftovers_of_copying_are_no_shards(tmp_path):
    shard = write_shard(tmp_path / "web/0.tar", two("a", 1, "one"))
    (tmp_path / "web/old").mkdir()
    for name in ("0.tar.bak", "0.tar.idx", ".0.tar", ".0.tar.Xy12Ab", "old/1.tar"):
        (tmp_path / "web" / name).write_bytes(shard.read_bytes())
    assert read(tmp_path / "web") == ({"one": 1}, set())


def test_what_one_shard_lacks_is_counted(tmp_path):
    write_shard(tmp_path / "web/0.tar", two("a", 1, "one"))
    write(tmp_path / "web/1.tar", [("b.jpg", picture(2)), ("b.json", b'{"caption": "two"}')])
    shown, told = read(tmp_path / "web")
    assert shown == {"two": 2}
    assert any("1 pictures have no text in the columns that are read (caption), and are left out" in x for x in told)


def test_numbers_that_json_lacks_lose_no_sample(tmp_path):
    members = [("a.jpg", picture(1)), ("a.json", b'{"caption": "one", "s": NaN}'), *two("b", 2, "two").items()]
    members += [("c.jpg", picture(3)), ("c.json", b'{"caption": "three", "s": 0.5}')]
    shard = write(tmp_path / "0.tar", members)
    assert read(shard)[0] == {"one": 1, "three": 3}
    assert read(shard, filters={"scores": {"s": 0.1}})[0] == {"three": 3}


def test_files_that_are_apart_are_told(tmp_path):
    apart = [(f"{n}.jpg", picture(n)) for n in range(3)] + [(f"{n}.txt", b"text") for n in range(3)]
    with pytest.raises(
        DataError, match=r"3 samples, such as 0, have pictures and texts that do not stand side by side"
    ):
        read(write(tmp_path / "0.tar", apart))
    shown, told = read(write(tmp_path / "1.tar", [*apart, *two("a", 5, "five").items()]))
    assert shown == {"five": 5}
    assert any("do not stand side by side" in each for each in told)


def test_a_shard_behind_itself_is_read_once_and_told(tmp_path):
    shard = write(tmp_path / "0.tar", [each for n in range(8) for each in two(f"{n}", n, f"text {n}").items()])
    shard.write_bytes(shard.read_bytes() * 2)
    os.utime(shard, (1e9, 1e9))
    told = "0.tar: 8 samples, such as 0, come again, and are left out but the first of each; give each sample a key of"
    shown, faults = read(shard)
    assert shown == {f"text {n}": n for n in range(8)}
    assert any(told in fault for fault in faults)
    assert len(index_of(shard)[0]) == 8


def test_infinity_is_no_caption(tmp_path):
    members = [("a.jpg", picture(1)), ("a.json", b'{"caption": Infinity}'), *pair("b", 2, "two").items()]
    shown, told = read(write(tmp_path / "0.tar", members))
    assert shown == {"two": 2}
    assert any("1 pictures have no text" in each for each in told)


def test_names_of_several_dots_are_told(tmp_path):
    dotted = [each for n in (1, 2) for each in two(f"img.{n}", n, f"text {n}").items()]
    shown, told = read(write(tmp_path / "0.tar", [*two("x", 5, "five").items(), *dotted]))
    assert shown == {"five": 5}
    assert any(
        "1 samples have names such as img.1.jpg, of which the key ends at the first dot" in each for each in told
    )


def test_a_download_that_failed_is_counted(tmp_path):
    failed = ("b.json", b'{"caption": "b", "image": "http://a/b.jpg"}')
    outside = ("c.json", b'{"caption": "c", "image": "/etc/hostname"}')
    first = ("a.json", b'{"caption": "a", "image": "http://a/a.jpg"}')
    shard = write(tmp_path / "0.tar", [("a.jpg", picture(1)), first, failed, outside])
    assert read(shard)[0] == {"a": 1}
    table = Table(str(shard), split_by=NONE, missing="skip")
    table.read("train")
    assert table.opened.skipped == {"train": 2}


def test_a_picture_is_drawn_by_the_column_that_is_read(tmp_path):
    members = [
        (f"{n}.{kind}", content)
        for n in range(20)
        for kind, content in (("a_mask.png", picture(n)), ("jpg", picture(7)), ("txt", b"%d" % n))
    ]
    shard = write(tmp_path / "0.tar", members)
    table = Table(str(shard), split_by={"val": 0.3, "test": 0.3})
    found = [len(samples) for split in ("train", "val", "test") for _, samples in some(table, split)]
    assert found == [20]


@pytest.mark.parametrize("last", [[("c.jpg", b"1"), ("c.json", b"{cut")], [("c.txt", b"1"), ("c.txt", b"2")]])
def test_of_a_cut_shard_the_sample_before_an_odd_one_stays(last, tmp_path):
    good = [*two("a", 1, "one").items(), *two("b", 2, "two").items()]
    shard = write(tmp_path / "0.tar", [*good, *last, ("c.x", bytes(5000))])
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(b"c.x") + 2000])
    os.utime(shard, (1e9, 1e9))
    shown, told = read(shard)
    assert shown == {"one": 1, "two": 2}
    assert any("its first 2 samples are read" in each for each in told)


def test_a_tail_of_zeros_is_told(tmp_path):
    shard = write_shard(tmp_path / "0.tar", *(two(f"{n:02d}", n, f"text {n}") for n in range(20)))
    content = shard.read_bytes()
    shard.write_bytes(content[:9000] + bytes(len(content) - 9000))
    os.utime(shard, (1e9, 1e9))
    table, faults = index_of(shard)
    assert 0 < len(table) < 9
    assert len(faults) == 1
    assert "has zeros, more than end a tar" in faults[0]
