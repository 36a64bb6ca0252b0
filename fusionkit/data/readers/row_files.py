"""Tables as rows, whatever file they stand in: csv, tsv, json, json lines, parquet, arrow. One row is a dict by column."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from fusionkit.data.readers.row_arrow import open_arrow, open_parquet
from fusionkit.data.readers.rows import BATCH, RowFile
from fusionkit.errors import DataError
from fusionkit.files.depends import FILE, STORE, note
from fusionkit.files.plain import LINES, other_kind, parse, read_json, reason_of

TEXTS = (".csv", ".tsv", ".txt", ".token")
ENDINGS = (*TEXTS, ".jsonl", ".ndjson", ".json", ".parquet", ".arrow")
SEPARATORS = "\t,;|"
NUMBERED = "id"  # the column of the keys, where a json object holds a row under each
LISTS = ("annotations", "data", "questions", "rows", "images", "examples")  # where json keeps its rows, likeliest first
LONGEST_CELL = 10_000_000  # characters


def open_rows(path: Path) -> RowFile:
    """The table of a file, by its ending. DataError where it is of no kind that is read, empty, or not what it says."""
    if not path.exists():
        raise DataError(f"{path} does not exist; give a file, a folder or a pattern as files=PATH")
    ending = path.suffix.lower()
    note(path, STORE if ending in (".parquet", ".arrow") else FILE)  # which may hold all pictures
    if ending in TEXTS:
        return _open_delimited(path)
    if ending in (".jsonl", ".ndjson"):
        return _open_lines(path)
    if ending == ".json":
        return _open_json(path)
    if ending == ".parquet":
        return open_parquet(path)
    if ending == ".arrow":
        return open_arrow(path)
    raise DataError(f"{path} ends in '{ending}', which is no table; known: {', '.join(ENDINGS)}, or a folder")


@dataclass(frozen=True)
class Delimited(RowFile):
    """A csv or tsv file; every value is a text as it is written, so that 007 stays 007."""

    separator: str = ","
    has_header: bool = True

    @property
    def first(self) -> int:
        return 1 + self.has_header

    def rows(self, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        lines = islice(_delimited(self.path, self.separator), int(self.has_header), None)
        for number, cells in enumerate((cells for cells in lines if any(map(str.strip, cells))), self.first):
            if len(cells) > len(self.columns):
                raise DataError(
                    f"row {number} of {self.path} has {len(cells)} cells, but there are {len(self.columns)} columns; put "
                    f"cells that hold a {'tab' if self.separator == chr(9) else self.separator!r} in double quotes"
                )
            yield {name: cell.strip() or None for name, cell in zip(self.columns, cells, strict=False)}


def _delimited(path: Path, separator: str) -> Iterator[list[str]]:
    csv.field_size_limit(LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # 3: no quotes, 0: the usual ones
            yield from csv.reader(
                file, delimiter=separator, quoting=3 if path.suffix == ".token" else 0, skipinitialspace=True
            )
    except (UnicodeDecodeError, csv.Error) as error:
        told = other_kind(path, "a table of columns") or f"{path} is no csv or tsv in UTF-8 ({reason_of(error)})"
        raise DataError(f"{told}; save it as UTF-8") from error


def _open_delimited(path: Path) -> Delimited:
    if told := other_kind(path, "a table of columns"):
        raise DataError(told)
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no csv or tsv in UTF-8 ({reason_of(error)}); save it as UTF-8") from error
    separator = max(SEPARATORS, key=first.count)
    if path.suffix == ".tsv" or "#" in first.partition("\t")[0]:
        separator = "\t"
    if separator not in first:
        raise DataError(f"{path} has one column only ({first.strip()[:60]!r}); separate columns by commas or tabs")
    names = next(_delimited(path, separator))
    is_token = len(names) == 2 and "#" in names[0]  # Flickr30k's results.token: image.jpg#0, tab, caption
    columns = ("image", "caption") if is_token else _unique(path, names)
    return Delimited(path, columns, {}, separator, not is_token)


def _unique(path: Path, names: Iterable[str]) -> tuple[str, ...]:
    """The names of the columns; one without a name, as pandas writes its index, is called by its number."""
    columns = tuple(name.strip() or f"column{number}" for number, name in enumerate(names))
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise DataError(f"{path} has two columns '{twice}'; rename one of them")
    return columns


@dataclass(frozen=True)
class Lines(RowFile):
    """A file with one JSON object a line."""

    def rows(self, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            for row, (number, line) in enumerate(lines, self.first):
                yield _object(_parsed(line.removeprefix(b"\xef\xbb\xbf"), number, self.path), row, self.path)


def _parsed(line: bytes, number: int, path: Path) -> Any:
    try:
        return parse(line)
    except (ValueError, RecursionError) as error:
        told = other_kind(path, LINES) if number == 1 else None
        raise DataError(told or f"line {number} of {path} is no JSON ({reason_of(error)}); correct it") from error


def _object(row: Any, number: int, path: Path) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(
            f'row {number} of {path} is {json.dumps(row)[:60]}, but has to be an object of columns {{"..": ..}}'
        )
    return row


def _open_lines(path: Path) -> Lines:
    return Lines(path, _columns(path, islice(Lines(path, ()).rows(), BATCH)))


def _columns(path: Path, rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        raise DataError(
            other_kind(path, LINES) or f"{path} holds no rows; give a table with one row an image or a text"
        )
    return columns


@dataclass(frozen=True)
class Listed(RowFile):
    """The rows of a json file, which is read as a whole."""

    listed: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    def rows(self, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        yield from self.listed


def _open_json(path: Path) -> Listed:
    content = read_json(path, "name a file of one object a line .jsonl")
    rows = _rows_of(content, path)
    return Listed(path, _columns(path, islice(rows, BATCH)), {}, tuple(rows))


def _rows_of(content: Any, path: Path) -> list[dict[str, Any]]:
    """A list of objects or of lists, an object of objects, or an object that holds either under one of ``LISTS``."""
    if isinstance(content, dict):
        name = next((name for name in LISTS if isinstance(content.get(name), list | dict) and content[name]), None)
        if name is not None:
            return _with_images(_rows_of(content[name], path), content.get("images") if name != "images" else None)
        if content and all(isinstance(row, dict) for row in content.values()):
            return [{NUMBERED: key, **row} for key, row in content.items()]
        raise DataError(
            f"{path} has no list of rows (it has the keys {', '.join(map(str, content))[:100] or 'of nothing'}); known: a list "
            f"of objects, or one under {', '.join(LISTS)}"
        )
    if isinstance(content, list) and content and all(isinstance(row, list) for row in content):
        return [{f"column{place}": value for place, value in enumerate(row)} for row in content]
    if not isinstance(content, list):
        raise DataError(f"{path} holds {json.dumps(content)[:60]}, but a table is a list of objects")
    return [_object(row, number, path) for number, row in enumerate(content, start=1)]


def _with_images(rows: list[dict[str, Any]], images: Any) -> list[dict[str, Any]]:
    """COCO's layout, and OpenViVQA's: what stands in ``images`` of each row's ``image_id``."""
    if isinstance(images, dict):
        names = {str(key): {"file_name": name} for key, name in images.items() if isinstance(name, str)}
    else:
        listed = [row for row in images or () if isinstance(row, dict) and "id" in row]
        kept = ("file_name", "width", "height", "split")
        names = {str(row["id"]): {key: row[key] for key in kept if key in row} for row in listed}
    return [{**names.get(str(row.get("image_id")), {}), **row} for row in rows] if names else rows
