"""Files of plain values: JSON, whole or one value a line; and what a file is that is of another kind, by its first bytes."""

import codecs
import gc
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from fusionkit.errors import DataError
from fusionkit.files.depends import note

PICKLE, CHECKPOINT, TAR = "a pickle", "a file of torch.save", "a tar archive"
JSON, LINES, YAML = "one JSON document", "one JSON value a line", "yaml"
HEAD = 65536  # bytes that tell a file's kind
AGAIN = "download it again"
UNPACK = "unpack it first"
KINDS: tuple[tuple[bytes, str, str], ...] = (  # by how a file begins: what it is, and what to do
    (b"\x1f\x8b", "compressed by gzip", f"{UNPACK}, as with gunzip"),
    (b"BZh", "compressed by bzip2", f"{UNPACK}, as with bunzip2"),
    (b"\xfd7zXZ", "compressed by xz", f"{UNPACK}, as with unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", f"{UNPACK}, as with unzstd"),
    (b"7z\xbc\xaf", "a 7z archive", UNPACK),
    (b"Rar!", "a rar archive", UNPACK),
    (b"PAR1", "a parquet table", "write its rows as such a file, as with pandas"),
    (b"ARROW1", "an arrow table", "write its rows as such a file, as with pandas"),
    (b"\x89HDF", "an HDF5 file", "write its values as such a file, as with h5py"),
    (b"SQLite format 3", "an SQLite database", "write its rows as such a file"),
    (b"\x93NUMPY", "a numpy array", "write its values as such a file"),
    (b"version https://git-lfs", "the pointer of Git LFS to a file, and not the file", "fetch it with: git lfs pull"),
    (b"%PDF", "a PDF", "name the file that was meant"),
    (b"\x89PNG", "a picture", "name the file that was meant"),
    (b"\xff\xd8\xff", "a picture", "name the file that was meant"),
    (b"GIF8", "a picture", "name the file that was meant"),
    (codecs.BOM_UTF16_LE, "text in UTF-16", "save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "text in UTF-16", "save it as UTF-8"),
)
MEMBERS = (  # of a zip file, by the end of a name in it
    ("xl/workbook.xml", "an Excel workbook", "write its rows as such a file"),
    ("data.pkl", "a file of torch.save", "name the file that was meant"),
    (".npy", "an npz file of arrays", "name the file that was meant"),
    ("", "a zip archive", f"{UNPACK}, as with unzip"),
)


def other_kind(path: Path, wanted: str, again: str = AGAIN) -> str | None:
    """The sentence for a file that is no ``wanted`` but of another kind, None where its bytes do not tell; never raises."""
    try:
        if path.is_dir():
            return f"{path} is a folder, where {wanted} is read; name a file in it"
        if not path.exists():
            return f"{path} does not exist; give the place of {wanted}"
        with path.open("rb") as file:
            kind, advice = _kind_of(path, file.read(HEAD), wanted, again)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):  # also of a damaged archive
        return None
    return f"{path} is {kind}, where {wanted} is read; {advice}" if kind else None


def _kind_of(path: Path, head: bytes, wanted: str, again: str) -> tuple[str | None, str]:
    if not head.strip():
        return "empty", again
    for start, kind, advice in KINDS:
        if head.startswith(start):
            return kind, advice
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if wanted == CHECKPOINT and any(name.endswith("data.pkl") for name in names):
            return None, ""
        return next(
            (kind, advice) for end, kind, advice in MEMBERS if any(name.endswith(end) for name in names or [""])
        )
    if head[257:262] == b"ustar":
        if wanted == TAR:
            return None, ""
        return "a tar archive", f"{UNPACK}, as with tar -xf"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" and wanted not in (PICKLE, CHECKPOINT):
        return "a pickle of Python", "write its values as such a file"
    return _kind_of_text(path, head.removeprefix(codecs.BOM_UTF8).lstrip(), wanted)


def _kind_of_text(path: Path, head: bytes, wanted: str) -> tuple[str | None, str]:
    start = head.lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page, perhaps one that asks to log in", "download the file itself"
    if start.startswith(b"<?xml"):
        return "XML", "name the file that was meant"
    lines = head.splitlines()
    if lines[0].startswith((b"{", b"[")):
        if wanted == JSON and len(lines) > 1 and _is_json(lines[0]):
            return (
                "JSON of one value a line (jsonl)",
                "write the values as one document, or name it .jsonl where that is read",
            )
        if wanted not in (JSON, LINES, YAML):
            return "JSON", "name the file that was meant"
        return None, ""
    if b"\0" in head or wanted not in (JSON, LINES, PICKLE):
        return None, ""
    comma = next((each for each in (b"\t", b",", b";") if lines[0].count(each)), None)
    if path.suffix in (".csv", ".tsv") or (comma and len(lines) > 1 and lines[0].count(comma) == lines[1].count(comma)):
        return "a table of columns (csv or tsv)", "write its rows as such a file"
    if path.suffix == ".txt":
        return "plain text", "write its values as such a file"
    return None, ""


def parse(text: bytes | str) -> Any:
    """The value of a JSON text; ValueError where it is none. NaN and infinity, which Python reads and JSON lacks, are none."""
    return json.loads(text, parse_constant=_no_number)


class NoNumber(ValueError):
    """NaN or infinity in a JSON text."""


def _no_number(name: str) -> NoReturn:
    raise NoNumber(f"{name} is no number of JSON")


def _is_json(line: bytes) -> bool:
    try:
        parse(line)
    except (ValueError, RecursionError):
        return False
    return True


def read_json(path: Path, advice: str = AGAIN, *, has_nan: bool = False) -> Any:
    """The content of a JSON file; DataError, which ends with the advice, where there is none, it is cut short or no JSON.

    With ``has_nan`` as Python writes it, with NaN and infinity.
    """
    note(path)
    try:
        with collector_paused():
            content = path.read_bytes()
            return json.loads(content) if has_nan else parse(content)
    except NoNumber as error:
        raise DataError(f"{path} is not JSON ({error}); write null in its place, or leave it out") from error
    except (OSError, ValueError, RecursionError) as error:
        told = other_kind(path, JSON, advice) or f"{path} is not complete JSON ({reason_of(error)}); {advice}"
        raise DataError(told) from error


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file with one JSON value a line; DataError where a line is none, or there is no line at all."""
    rows = []
    note(path)
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise DataError(other_kind(path, LINES) or f"{path} cannot be read ({error.strerror})") from error
    with collector_paused():
        for number, line in enumerate(content.split(b"\n"), start=1):  # as text it could be cut at U+2028
            try:
                rows += [parse(line)] if line.strip() else []
            except (ValueError, RecursionError) as error:
                told = other_kind(path, LINES) if number == 1 else None
                raise DataError(told or f"line {number} of {path} is no JSON ({reason_of(error)}); {AGAIN}") from error
    if not rows:
        raise DataError(f"{path} is empty; {AGAIN}")
    return rows


def reason_of(error: Exception) -> str:
    """The first line of what a library says."""
    if type(error) is KeyError:  # which says the key alone
        return f"{error} is missing"
    return (
        "nested too deeply"
        if isinstance(error, RecursionError)
        else (str(error) or type(error).__name__).splitlines()[0]
    )


@contextmanager
def collector_paused() -> Iterator[None]:
    """Millions of new objects that all stay: the cyclic collector would walk them again and again for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
