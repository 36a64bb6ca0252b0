"""Captions of all pictures of a folder, kept as files: a text beside each picture and a table of scores, or one table."""

import csv
import io
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fusionkit.data.requests import Request, kind_of, pictures_of
from fusionkit.errors import ConfigError, DataError
from fusionkit.files.atomic import write_text
from fusionkit.files.spreadsheets import as_cell
from fusionkit.inference.answering import Predictor
from fusionkit.inference.progress import Bar, show_progress
from fusionkit.scoring.records import Record, read_records, write_records

TABLE = "alt_text.jsonl"  # the scores of the texts that lie beside pictures
COLUMNS = ("image", "caption", "caption_score")
SECONDS = 30.0  # between two times that files are written


class AltTextFiles:
    """Which pictures of a folder have a caption already, and where those of the others go.

    ``folder``      its pictures are captioned, also those of the folders in it; ``reads`` is the image encoder's.
    ``columns``     of the table, beside COLUMNS; its ``image`` is the path in the folder.
    ``output_dir``  the texts and their table lie here, as the pictures do in theirs; None: beside these.
    ``output``      one table, .csv or .jsonl, in place of all that.
    ``overwrite``   make all captions anew; else a text that is there, whoever wrote it, stays, and so does a row of the table.
                    Until a picture has its new caption, it keeps the old one.

    No name leads out of the folder that is written to. Raises ConfigError for an output of another kind, DataError where a
    folder or a table cannot be taken.
    """

    def __init__(
        self,
        folder: Path,
        reads: str,
        columns: Iterable[str],
        output_dir: Path | None = None,
        output: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        if output is not None and output_dir is not None:
            raise ConfigError("output is one table in place of the texts that output_dir is for; give one of them")
        if output is not None and output.suffix not in (".csv", ".jsonl"):
            raise ConfigError(f"output={output} is no table; name a .csv or .jsonl file")
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; give one that holds pictures")
        self.pictures = {path.relative_to(folder).as_posix(): path for path in pictures_of(folder, reads, is_deep=True)}
        if not self.pictures:
            raise DataError(f"{folder} holds no {kind_of(reads)}; give another folder")
        self.columns, self.overwrite = (*COLUMNS, *columns), overwrite
        self.home = None if output is not None else output_dir or folder
        self.table = output if output is not None else (output_dir or folder) / TABLE
        if self.home is not None:
            self._require_own_files(self.home)
        self._require_own_cells()
        self._require_files()
        kept = self._read() if self.table.is_file() else {}
        self.rows: dict[str, Record] = kept  # by the image as the table has it
        self._done = set() if overwrite else set(kept)  # of these, those that are not to be made anew
        self._unwritten = [name for name in self.pictures if self._cell(name) in self._done]  # of the table, as texts
        self._written = time.monotonic()

    @property
    def todo(self) -> list[str]:
        """The pictures that have no caption yet."""
        return [name for name in self.pictures if self._cell(name) not in self._done and not self._has_text(name)]

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Keep what was said of pictures, on the disk at the latest some seconds later or with ``write``."""
        for record in records:
            cells = {column: self._cell(record.get(column)) for column in self.columns}
            self.rows[cells["image"]] = cells
            self._done.add(cells["image"])
            self._unwritten.append(record["image"])
        if time.monotonic() - self._written >= SECONDS:
            self.write()

    def write(self) -> None:
        """Write the table, then the texts: of a row whose text was not written any more, the next time writes it."""
        if self.rows:
            self._write_table()
        for name in self._unwritten if self.home is not None else ():
            if self.overwrite or not self._has_text(name):
                write_text(self._text_file(name), f"{self.rows[name]['caption']}\n")
        self._unwritten, self._written = [], time.monotonic()

    def _has_text(self, name: str) -> bool:
        """Whether something stands where the text of a picture would, which is not to be replaced."""
        return not self.overwrite and self.home is not None and os.path.lexists(self._text_file(name))

    def _text_file(self, name: str) -> Path:
        assert self.home is not None
        return (self.home / name).with_suffix(".txt")

    def _require_own_files(self, home: Path) -> None:
        """DataError where two pictures would have one text, or a link leads what is written out of the folder."""
        texts: dict[Path, str] = {}
        for name in self.pictures:
            path = self._text_file(name)
            if (other := texts.setdefault(path, name)) != name:
                raise DataError(
                    f"{other} and {name} would both have their text in {path}; rename one, or write one table: output=alt.csv"
                )
        for path in (*texts, self.table):
            is_replaced = path.is_symlink() and (self.overwrite or path == self.table)
            if is_replaced or not path.parent.resolve().is_relative_to(home.resolve()):
                raise DataError(
                    f"{path} is or lies behind a link, and what is written there would follow it; put what it leads to in its "
                    "place, or write one table: output=alt.csv"
                )

    def _require_own_cells(self) -> None:
        """DataError where two pictures would have one row of the table."""
        cells: dict[str, str] = {}
        for name in self.pictures:
            if (other := cells.setdefault(self._cell(name), name)) != name:
                raise DataError(
                    f"{other!a} and {name!a} would both stand as {self._cell(name)} in {self.table}; rename one, or write one "
                    "that tells them apart: output=alt.jsonl"
                )

    def _require_files(self) -> None:
        """DataError where a folder or another thing that is no file stands where a table or a text is to be written."""
        texts = [self._text_file(name) for name in self.pictures] if self.home is not None and self.overwrite else []
        for path in (self.table, *texts):
            if path.exists() and not path.is_file():
                raise DataError(f"{path} is there and is no file; move it, or choose another output")

    def _cell(self, value: Any) -> Any:
        """A value as the table has it."""
        if self.table.suffix != ".csv":
            return value
        if isinstance(value, str):  # bytes of a file's name that are no UTF-8 as they will be read
            return as_cell(value.encode("utf-8", "backslashreplace").decode())
        return "" if value is None else f"{value:.4f}"

    def _read(self) -> dict[str, Record]:
        try:
            rows = read_records(self.table) if self.table.suffix == ".jsonl" else _read_csv(self.table)
        except DataError:
            if self.overwrite:
                return {}
            raise
        is_captions = all(isinstance(row.get(key), str) for row in rows for key in ("image", "caption"))
        if self.overwrite:  # captions of another model stay until there are new ones; any other table is replaced
            absent = self._cell(None)
            kept = rows if is_captions and all(set(COLUMNS) <= set(row) for row in rows) else []
            return {row["image"]: {column: row.get(column, absent) for column in self.columns} for row in kept}
        if not is_captions or any(set(row) != set(self.columns) for row in rows):
            raise DataError(
                f"{self.table} has rows of other columns than {', '.join(self.columns)}, by another model or about something "
                "else; choose another output, or overwrite=true replaces it"
            )
        return {row["image"]: row for row in rows}

    def _write_table(self) -> None:
        if self.table.suffix == ".jsonl":
            return write_records(self.table, list(self.rows.values()))
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows.values())
        write_text(self.table, out.getvalue())


def _read_csv(path: Path) -> list[Record]:
    """The rows of a table, whose columns the caller checks; one that is none has a row without columns."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            return list(csv.DictReader(file, restkey="?"))
    except csv.Error:
        return [{}]


def matchers(predictor: Predictor) -> dict[str, str]:
    """The columns that tell how well a caption fits its picture, each with the task that says it, where there is one."""
    able = [(name, task) for name, task in predictor.tasks.items() if task.replies_to == "text"]
    found = {
        "match": [name for name, task in able if task.matches],
        "cosine": [name for name, task in able if task.ranks],
    }
    return {column: names[-1] for column, names in found.items() if names}


def write_alt_texts(predictor: Predictor, files: AltTextFiles) -> list[Record]:
    """Caption the pictures that have no caption yet; gives what was said, or the ``error`` of one that could not be read.

    What was said until an error or a Ctrl-C is kept.
    """
    todo, said = files.todo, list[Record]()
    with show_progress(predictor.options.quiet or len(todo) <= predictor.batch_size) as progress:
        bar = Bar(progress, "captioning")
        bar.begin(len(todo), 0)
        try:
            for start in range(0, len(todo), predictor.batch_size):
                chosen = todo[start : start + predictor.batch_size]
                records = describe(predictor, {name: files.pictures[name] for name in chosen})
                files.add(record for record in records if "error" not in record)
                said += records
                bar.advance(len(chosen))
        finally:
            files.write()
    return said


def describe(predictor: Predictor, pictures: Mapping[str, Path]) -> list[Record]:
    """What is said of pictures by name: {"image", "caption", "caption_score"}, and how well it fits; or {"image", "error"}."""
    replies = predictor.answer([Request(path, {}, wants_caption=True) for path in pictures.values()])
    said: list[Record] = [
        {"image": name} | _caption(reply.record) for name, reply in zip(pictures, replies, strict=True)
    ]
    columns = matchers(predictor)
    asked = [record for record in said if record.get("caption")] if columns else []
    texts = [Request(pictures[record["image"]], {"text": record["caption"]}) for record in asked]
    for record, reply in zip(asked, predictor.answer(texts) if texts else [], strict=True):
        record.update({column: reply.record.get(column) for column in columns})
    return said


def _caption(reply: Record) -> Record:
    if "error" in reply:
        return {"error": reply["error"]}
    return {"caption": " ".join(reply["caption"].split()), "caption_score": reply.get("caption_score")}
