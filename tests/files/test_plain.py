"""A file of another kind is called what it is, with what to do; JSON in any layout is read or told in one sentence."""

import bz2
import codecs
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf.errors import ConfigKeyError

from fusionkit.config import first_cause
from fusionkit.encoders.probe import first_line
from fusionkit.errors import DataError
from fusionkit.files.plain import (
    CHECKPOINT,
    JSON,
    LINES,
    PICKLE,
    YAML,
    other_kind,
    read_json,
    read_json_lines,
    reason_of,
)
from fusionkit.scoring.records import read_records


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.json"))
    return content.getvalue()


def saved() -> bytes:
    content = io.BytesIO()
    torch.save({"a": torch.ones(1)}, content)
    return content.getvalue()


def arrays() -> bytes:
    content = io.BytesIO()
    np.savez(content, a=np.ones(1))
    return content.getvalue()


KINDS = [
    (gzip.compress(b"{}", mtime=0), "compressed by gzip", "gunzip"),
    (bz2.compress(b"{}"), "compressed by bzip2", "bunzip2"),
    (lzma.compress(b"{}"), "compressed by xz", "unxz"),
    (zipped("a.json"), "a zip archive", "unzip"),
    (zipped("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook", "write its rows"),
    (arrays(), "an npz file of arrays", "name the file"),
    (tarred(), "a tar archive", "tar -xf"),
    (b"PAR1" + bytes(40), "a parquet table", "pandas"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "the pointer of Git LFS", "git lfs pull"),
    (b"\n <!DOCTYPE html><html></html>", "a web page", "download the file itself"),
    (b"<?xml version='1.0'?>", "XML", "name the file"),
    ('{"a": 1}'.encode("utf-16"), "text in UTF-16", "save it as UTF-8"),
    (b"", "empty", "download it again"),
    (b" \n\n", "empty", "download it again"),
]


@pytest.mark.parametrize(("content", "kind", "advice"), KINDS)
@pytest.mark.parametrize("wanted", [JSON, LINES, PICKLE, CHECKPOINT, YAML])
def test_a_file_is_called_what_it_is(content: bytes, kind: str, advice: str, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    told = other_kind(path, wanted)
    assert told is not None
    assert told.startswith(f"{path} is {kind}")
    assert f", where {wanted} is read; " in told
    assert advice in told


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("c.csv", b"image,caption\n1,a\n", "a table of columns (csv or tsv)"),
        ("c.csv", b"caption\na\n", "a table of columns (csv or tsv)"),
        ("c.dat", b"image\tcaption\n1\ta\n", "a table of columns (csv or tsv)"),
        ("c.dat", b"image;caption\n1;a\n", "a table of columns (csv or tsv)"),
        ("c.txt", b"a red square\n", "plain text"),
        ("c.jsonl", b'{"a": 1}\n{"a": 2}\n', "JSON of one value a line (jsonl)"),
        ("c.jsonl", codecs.BOM_UTF8 + b'{"a": 1}\n{"a": 2}\n', "JSON of one value a line (jsonl)"),
        ("c.jsonl", b'{"a": 1}\n{"a": 2\n', "JSON of one value a line (jsonl)"),
        ("c.json", pickle.dumps([1]), "a pickle of Python"),
        ("c.json", saved(), "a file of torch.save"),
    ],
)
def test_what_is_read_as_one_document(name: str, content: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path} is {kind}, where one JSON document is read; ")
    assert "download it again" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b'{"a": 1', JSON),
        (b'{"a": 1}\n', JSON),
        (b'{\n"a": 1,\n', JSON),
        (b"[\n1\n,", JSON),
        (b'{"a": 1}\n{"a": 2\n', LINES),
        (b"a red square, of no columns\nand another", JSON),
        (b"image: 1, 2\nname: 3, 4\n", YAML),
        (b"{a: 1}", YAML),
        (pickle.dumps([1]), PICKLE),
        (pickle.dumps([1]), CHECKPOINT),
        (saved(), CHECKPOINT),
        (b"PK damaged", JSON),
        (b"\x80\x06 is no protocol", JSON),
    ],
)
def test_nothing_is_said_of_a_file_of_the_right_kind_or_of_none(content: bytes, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(content)
    assert other_kind(tmp_path / "c.json", wanted) is None


def test_other_places_are_told(tmp_path: Path) -> None:
    assert other_kind(tmp_path, JSON) == f"{tmp_path} is a folder, where one JSON document is read; name a file in it"
    assert str(other_kind(tmp_path / "x", JSON)) == f"{tmp_path}/x does not exist; give the place of one JSON document"
    (tmp_path / "c.pkl").write_bytes(b'{"a": 1}')
    assert (
        other_kind(tmp_path / "c.pkl", PICKLE)
        == f"{tmp_path}/c.pkl is JSON, where a pickle is read; name the file that was meant"
    )
    with pytest.raises(DataError, match="x does not exist"):
        read_json_lines(tmp_path / "x")


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_byte_order_mark_is_no_matter(mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(mark + '{"a": "é\u2028"}\n\n{"a": 2}'.encode())
    assert read_json_lines(tmp_path / "c") == [{"a": "é\u2028"}, {"a": 2}]
    (tmp_path / "c").write_bytes(mark + b"[1]")
    assert read_json(tmp_path / "c") == [1]


def test_the_line_and_the_depth_are_told(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b'{"a": 1}\na,b\n')
    with pytest.raises(DataError, match=r"^line 2 of .*c is no JSON \(Expecting value"):
        read_json_lines(tmp_path / "c")
    (tmp_path / "c").write_bytes(b"a,b\n1,2\n")
    with pytest.raises(DataError, match=r"c is a table of columns .*, where one JSON value a line is read"):
        read_json_lines(tmp_path / "c")
    (tmp_path / "c").write_bytes(b"[" * 100_000 + b"]" * 100_000)
    for read in (read_json, read_json_lines):
        with pytest.raises(DataError, match=r"nested too deeply"):
            read(tmp_path / "c")
    (tmp_path / "c").write_bytes(b'{"a": 1')
    with pytest.raises(DataError, match=r"c is not complete JSON \(Expecting ',' delimiter: .*\); ask again$"):
        read_json(tmp_path / "c", "ask again")


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_lacks_are_told_with_their_place(name: str, tmp_path: Path) -> None:
    (tmp_path / "c").write_text(f'{{"id": [{name}]}}')
    with pytest.raises(
        DataError, match=rf"c is not JSON \({name} is no number of JSON\); write null in its place, or leave it out$"
    ):
        read_json(tmp_path / "c", "ask again")
    assert str(read_json(tmp_path / "c", has_nan=True)["id"][0]) == str(float(name))
    (tmp_path / "c").write_text(f'{{"id": 1}}\n{{"id": {name}}}\n')
    for read in (read_json_lines, read_records):
        with pytest.raises(DataError, match=rf"c.*\({name} is no number of JSON\)") as caught:
            read(tmp_path / "c")
        assert "line 2" in str(caught.value)


def test_the_key_that_a_library_misses_is_told_and_a_sentence_about_a_key_stays():
    assert reason_of(KeyError("size")) == "'size' is missing"
    assert first_cause(KeyError("size")) == first_line(KeyError("size")) == "'size' is not known"
    error = ConfigKeyError("Missing key a\n    full_key: a")
    assert reason_of(error) == first_cause(error) == "Missing key a"
