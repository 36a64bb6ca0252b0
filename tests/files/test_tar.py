"""Members of tar archives are where Python's tarfile finds them, of every format, and an archive that is cut says so."""

import io
import tarfile
from pathlib import Path

import pytest

from fusionkit.files.tar import CutShort, Member, members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = ["a.jpg", f"b/{'c' * 90}/{'d' * 40}.txt", "é/ü.txt", "../out.txt", "/etc/x.txt"]


def write(path: Path, kind: int, names: list[str]) -> list[Member]:
    """An archive of files, links, a folder and a device; gives the files as tarfile finds them."""
    with tarfile.open(path, "w", format=kind) as archive:
        archive.addfile(_about("folder", tarfile.DIRTYPE))
        for number, name in enumerate(names):
            about = _about(name, tarfile.REGTYPE)
            about.size = 512 * number + (number % 3)
            archive.addfile(about, io.BytesIO(bytes([number]) * about.size))
            archive.addfile(_about(f"link{number}.jpg", tarfile.SYMTYPE if number % 2 else tarfile.LNKTYPE))
        archive.addfile(_about("device", tarfile.CHRTYPE))
    with tarfile.open(path) as archive:
        return [Member(each.name, each.offset_data, each.size) for each in archive if each.isfile()]


def _about(name: str, kind: bytes) -> tarfile.TarInfo:
    about = tarfile.TarInfo(name)
    about.type, about.linkname = kind, "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return about


def gather(path: Path, there: list[Member]) -> None:
    with path.open("rb") as file:
        for each in members(file):
            there.append(each)


def read(path: Path) -> list[Member]:
    with path.open("rb") as file:
        return list(members(file))


@pytest.mark.parametrize("kind", FORMATS)
def test_members_are_where_tarfile_finds_them(kind, tmp_path):
    names = NAMES if kind == "ustar" else [*NAMES, "x" * 300 + ".txt"]
    found = write(tmp_path / "a.tar", FORMATS[kind], names)
    assert [each.name for each in found] == names
    assert read(tmp_path / "a.tar") == found


def test_a_size_that_digits_cannot_tell_is_read(tmp_path):
    found = write(tmp_path / "a.tar", tarfile.GNU_FORMAT, ["a.txt", "b.txt"])
    content = bytearray((tmp_path / "a.tar").read_bytes())
    header = found[1].start - 512
    content[header + 124 : header + 136] = b"\x80" + found[1].size.to_bytes(11, "big")
    _sign(content, header)
    (tmp_path / "a.tar").write_bytes(content)
    assert read(tmp_path / "a.tar") == found


def _sign(content: bytearray, header: int) -> None:
    content[header + 148 : header + 156] = b" " * 8
    content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])


@pytest.mark.parametrize("kind", FORMATS)
def test_an_archive_that_is_cut_gives_what_is_whole_and_says_so(kind, tmp_path):
    found = write(tmp_path / "a.tar", FORMATS[kind], NAMES)
    content, last = (tmp_path / "a.tar").read_bytes(), found[-1].start + found[-1].size
    for end in range(0, last + 512, 300):
        (tmp_path / "cut.tar").write_bytes(content[:end])
        there: list[Member] = []
        with pytest.raises(CutShort, match="byte"):
            gather(tmp_path / "cut.tar", there)
        assert there == [each for each in found if each.start + each.size <= end]


@pytest.mark.parametrize(
    ("place", "told"), [(0, "header at byte .* is damaged"), (124, "is damaged"), (148, "is damaged")]
)
def test_a_damaged_header_ends_the_archive(place, told, tmp_path):
    found = write(tmp_path / "a.tar", tarfile.GNU_FORMAT, ["a.txt", "b.txt", "c.txt"])
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[found[1].start - 512 + place] ^= 0x41
    (tmp_path / "a.tar").write_bytes(content)
    there = []
    with pytest.raises(CutShort, match=told):
        gather(tmp_path / "a.tar", there)
    assert there == found[:1]


@pytest.mark.parametrize("size", [b"zzzzzzzzzzz\0", b"-0000000001\0"])
def test_a_size_that_is_none_ends_the_archive(size, tmp_path):
    found = write(tmp_path / "a.tar", tarfile.GNU_FORMAT, ["a.txt"])
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[found[0].start - 512 + 124 : found[0].start - 512 + 136] = size
    _sign(content, found[0].start - 512)
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(CutShort, match="names no size"):
        read(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "record", [b"0 path=x\n", b"99999 path=x\n", b"xx path=x\n", b"5", b"9999999999999999999 a=b\n"]
)
def test_a_damaged_record_of_pax_is_left_out(record, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        about = _about("record", b"x")
        about.size = len(record)
        archive.addfile(about, io.BytesIO(record))
        archive.addfile(_about("a.txt", tarfile.REGTYPE))
    assert [each.name for each in read(tmp_path / "a.tar")] == ["a.txt"]


def test_archives_behind_one_another_are_read_as_one(tmp_path):
    found = [write(tmp_path / f"{n}.tar", tarfile.GNU_FORMAT, [f"{n}.txt", "x.jpg"]) for n in range(2)]
    contents = [(tmp_path / f"{n}.tar").read_bytes() for n in range(2)]
    (tmp_path / "both.tar").write_bytes(b"".join(contents))
    behind = [each._replace(start=each.start + len(contents[0])) for each in found[1]]
    assert read(tmp_path / "both.tar") == [*found[0], *behind]
    last = found[0][-1]
    end = -(-(last.start + last.size) // 512) * 512 + 1024  # behind the header of the device, and one block of zeros
    (tmp_path / "both.tar").write_bytes(contents[0][: end + 512] + contents[1])
    assert len(read(tmp_path / "both.tar")) == 4


def test_zeros_and_other_bytes_where_members_should_be_are_told(tmp_path):
    write(tmp_path / "a.tar", tarfile.GNU_FORMAT, ["a.txt"])
    content = (tmp_path / "a.tar").read_bytes()
    for more, told in ((bytes(11_000), "has zeros, more than end a tar"), (b"x" * 512, "header at byte .* is damaged")):
        (tmp_path / "a.tar").write_bytes(content + more)
        there: list[Member] = []
        with pytest.raises(CutShort, match=told):
            gather(tmp_path / "a.tar", there)
        assert [each.name for each in there] == ["a.txt"]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_hard_link_is_the_file_that_it_names(kind, tmp_path):
    names = ["a.txt", *(["x" * 300 + ".txt"] if kind != "ustar" else [])]
    with tarfile.open(tmp_path / "a.tar", "w", format=FORMATS[kind]) as archive:
        for number, name in enumerate(names):
            about = _about(name, tarfile.REGTYPE)
            about.size = 3
            archive.addfile(about, io.BytesIO(b"abc"))
            link = _about(f"link{number}.txt", tarfile.LNKTYPE)
            link.linkname = name
            archive.addfile(link)
    found = read(tmp_path / "a.tar")
    assert [each.name for each in found] == [each for n, name in enumerate(names) for each in (name, f"link{n}.txt")]
    assert found[0][1:] == found[1][1:]
    assert found[-2][1:] == found[-1][1:]


def test_a_sparse_file_is_told_apart_and_what_is_behind_it_is_read(tmp_path):
    found = write(tmp_path / "a.tar", tarfile.GNU_FORMAT, ["a.txt", "b.txt", "c.txt"])
    content = bytearray((tmp_path / "a.tar").read_bytes())
    header = found[1].start - 512
    content[header + 156 : header + 157], content[header + 482] = b"S", 1
    _sign(content, header)
    further = bytes([1] * 504 + [1] + [0] * 7) + bytes(512)  # two more blocks of places
    (tmp_path / "a.tar").write_bytes(content[: header + 512] + further + content[header + 512 :])
    there = read(tmp_path / "a.tar")
    assert [(each.name, each.is_sparse) for each in there] == [("a.txt", False), ("b.txt", True), ("c.txt", False)]
    assert there[2].start == found[2].start + 1024
    with tarfile.open(tmp_path / "pax.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        about = _about("GNUSparseFile.0/b.txt", tarfile.REGTYPE)
        about.pax_headers = {"GNU.sparse.major": "1"}
        archive.addfile(about)
    assert [each.is_sparse for each in read(tmp_path / "pax.tar")] == [True]
