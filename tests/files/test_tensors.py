"""Tensors come back as they were written, or a sentence does."""

import errno
import io
import zipfile
from pathlib import Path

import pytest
import torch

from fusionkit.errors import DataError
from fusionkit.files.tensors import is_whole, read_tensors, save_tensors

CONTENT = {"state": {"weight": torch.arange(12.0).view(3, 4), "count": torch.tensor(7)}, "names": ["a", "b"], "step": 4}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_tensors(CONTENT, tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def same(found) -> bool:
    state = found["state"]
    return state["weight"].equal(CONTENT["state"]["weight"]) and state["count"] == 7 and found["step"] == 4


def test_they_are_read_back_by_us_and_by_others(path):
    for mmap in (False, True):
        assert same(read_tensors(path, mmap))
        assert same(torch.load(path, weights_only=True, mmap=mmap))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"fusionkit xxh3_128 ")
    assert is_whole(path)


def test_no_bit_may_differ(path):
    whole = path.read_bytes()
    places = {*range(0, len(whole), 41), *range(8), *range(len(whole) - 80, len(whole))}
    for at in sorted(places):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        assert not is_whole(path), at
        with pytest.raises(DataError, match=r"x\.ckpt cannot be read: it is truncated, damaged or no such file"):
            read_tensors(path)
    path.write_bytes(whole)
    assert is_whole(path)


def test_no_byte_may_be_missing_or_added(path):
    whole = path.read_bytes()
    for size in {*range(0, len(whole), 97), *range(len(whole) - 120, len(whole))}:
        path.write_bytes(whole[:size])
        assert not is_whole(path), size
    for more in (b"\0", b"x" * 100, whole[-53:]):
        path.write_bytes(whole + more)
        assert not is_whole(path)


def test_the_sentence_says_what_is_wrong(path, tmp_path):
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    with pytest.raises(DataError, match="its bytes are not those that were written"):
        read_tensors(path)
    path.write_bytes(whole[:-10])
    with pytest.raises(DataError, match="its end is missing"):
        read_tensors(path)
    with pytest.raises(DataError, match=r"nowhere\.ckpt does not exist"):
        read_tensors(tmp_path / "nowhere.ckpt")


def test_files_of_the_time_before_hashes_are_read(tmp_path):
    torch.save(CONTENT, tmp_path / "old.ckpt")
    assert same(read_tensors(tmp_path / "old.ckpt"))
    torch.save(CONTENT, tmp_path / "older.ckpt", _use_new_zipfile_serialization=False)
    assert same(read_tensors(tmp_path / "older.ckpt"))


def test_a_file_of_many_chunks_is_checked_to_its_end(path, monkeypatch):
    monkeypatch.setattr("fusionkit.files.tensors.CHUNK", 64)
    assert same(read_tensors(path))
    whole = path.read_bytes()
    path.write_bytes(whole[:-60] + bytes([whole[-60] ^ 1]) + whole[-59:])
    assert not is_whole(path)


def test_code_is_not_run(tmp_path):
    save_tensors({"state": io.BytesIO}, tmp_path / "x.ckpt")
    with pytest.raises(DataError, match="cannot be read"):
        read_tensors(tmp_path / "x.ckpt")


@pytest.mark.parametrize("room", [0, 100, 1500])
def test_a_full_disk_leaves_the_old_file(path, room, monkeypatch):
    """The disk refuses at one of the many writes of a file."""
    written = 0

    def write(self, data):
        nonlocal written
        written += len(data)
        if written > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)

    monkeypatch.setattr("fusionkit.files.tensors._Hashed._put", write)
    with pytest.raises(DataError, match=r"\(No space left on device\), and the one before is whole; try again"):
        save_tensors({"other": torch.zeros(999)}, path, advice="try again")
    assert same(read_tensors(path))
    assert [file.name for file in path.parent.iterdir()] == ["x.ckpt"]


def test_what_is_no_fault_of_the_disk_keeps_its_trace(path):
    class Odd:
        def __reduce__(self):
            raise RuntimeError("cannot be saved")

    with pytest.raises(RuntimeError, match="cannot be saved"):
        save_tensors({"odd": Odd()}, path)
    assert same(read_tensors(path))


def test_the_one_before_is_kept(path):
    save_tensors({**CONTENT, "step": 5}, path, previous=path.with_name("y.ckpt"))
    assert [read_tensors(path.with_name(name))["step"] for name in ("x.ckpt", "y.ckpt")] == [5, 4]
