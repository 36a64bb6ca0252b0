"""A file of logits knows what was written to it, and nothing else."""

import errno

import pytest
import torch

from fusionkit.errors import DataError
from fusionkit.inference.logits_file import LogitsFile

PAIRS = 40
LOGITS = torch.randn(PAIRS, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def path(tmp_path):
    file = LogitsFile(tmp_path / "logits", PAIRS)
    for start in (0, 10, 30):
        file.write(start, LOGITS[start : start + 10])
    return tmp_path / "logits"


def known(path, pairs=PAIRS) -> list[int]:
    """The rows that are known; each is what was written."""
    logits = LogitsFile(path, pairs).read()
    assert logits.shape == (pairs, 2)
    rows = (~logits.isnan().any(dim=1)).nonzero().flatten().tolist()
    assert logits[rows].equal(LOGITS[rows])
    assert logits.isnan().all(dim=1).sum() == pairs - len(rows)
    return rows


def test_what_was_written_is_known(path):
    assert known(path) == [*range(20), *range(30, 40)]
    assert not known(path.with_name("new"))


def test_rows_of_zeros_are_known_where_they_were_written(tmp_path):
    file = LogitsFile(tmp_path / "logits", 3)
    assert file.read().isnan().all()
    file.write(1, torch.zeros(2, 2))
    assert file.read().isnan().any(dim=1).tolist() == [True, False, False]


def test_no_bit_may_differ(path):
    whole = path.read_bytes()
    for row in (0, 13, 39):
        for bit in range(96):
            at = 12 * row + bit // 8
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit % 8)]) + whole[at + 1 :])
            assert row not in known(path)
            assert len(known(path)) == 29


def test_a_row_in_the_place_of_another_is_not_known(path):
    whole = path.read_bytes()
    path.write_bytes(whole[12:24] + whole[:12] + whole[24:])
    assert known(path)[0] == 2


def test_numbers_in_each_others_place_are_not_known(path):
    whole = path.read_bytes()
    path.write_bytes(whole[4:8] + whole[:4] + whole[8:])
    assert known(path)[0] == 1


@pytest.mark.parametrize("size", [0, 1, 80, 12 * PAIRS - 1, 12 * PAIRS + 12])
def test_a_file_of_another_size_is_made_anew(path, size):
    path.write_bytes((path.read_bytes() + bytes(12))[:size])
    assert not known(path)
    assert path.stat().st_size == 12 * PAIRS


def test_what_the_disk_does_not_take_is_told(path, monkeypatch):
    file = LogitsFile(path, PAIRS)

    def fail(self, *mode):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("pathlib.Path.open", fail)
    with pytest.raises(DataError, match=r"logits cannot be written \(Input/output error\)"):
        file.write(0, LOGITS[:1])


def test_the_check_of_a_row_is_what_it_has_always_been(tmp_path):
    """A file that another version wrote goes on: three words a row, the third of which knows its place."""
    file = LogitsFile(tmp_path / "logits", 3)
    file.write(1, torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    one, two, place = 0x3F800000, 0xC0000000, 1
    check = (one * 0x9E3779B1 + two * 0x85EBCA77 + place * 0xC2B2AE3D) % 2**32 | 1
    row = b"".join(word.to_bytes(4, "little") for word in (one, two, check))
    assert (tmp_path / "logits").read_bytes() == bytes(12) + row + bytes(12)
    assert file.read()[1].tolist() == [1, -2]


def test_only_the_first_process_makes_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("fusionkit.inference.logits_file.rank", lambda: 1)
    LogitsFile(tmp_path / "logits", 3)
    assert not (tmp_path / "logits").exists()
