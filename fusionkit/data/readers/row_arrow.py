"""Parquet and arrow tables as rows; the pictures in them stay where they are (``Stored``) until they are asked for."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute as compute
import pyarrow.types as types

from fusionkit.data.readers.rows import BATCH, RowFile, Stored
from fusionkit.data.stores import arrow_table, cell, parquet_file, reading

OUTSIDE = "\0"  # before the name of a picture that is a file of its own


@dataclass(frozen=True)
class Parquet(RowFile):
    """A parquet file, read in batches; pictures in it are read when they are asked for."""

    def rows(self, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        file = parquet_file(self.path)
        wanted = list(self.columns if columns is None else columns)
        batches = file.iter_batches(BATCH, columns=_leaves(file.schema_arrow, wanted))
        outside = {name for name in wanted if _has_no_bytes(file.metadata, name)}
        with reading(self.path):  # a page may be damaged where the file's end is whole
            for row in _arrow_rows(self.path, file.schema_arrow, batches, wanted):
                yield {
                    name: value.name if name in outside and isinstance(value, Stored) else value
                    for name, value in row.items()
                }


@dataclass(frozen=True)
class Arrow(RowFile):
    """An arrow file, mapped into memory."""

    def rows(self, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        table = arrow_table(self.path)
        wanted = list(self.columns if columns is None else columns)
        kept = [name for name in wanted if not _is_binary(table.schema.field(name).type)]
        flat = [_without_bytes(table.column(name)) for name in kept]
        batches = table.from_arrays(flat, names=kept).to_batches(BATCH) if kept else [table.select([])]
        with reading(self.path):
            yield from _arrow_rows(self.path, table.schema, batches, wanted, table.num_rows)


def open_parquet(path: Path) -> RowFile:
    """A parquet file. Raises DataError."""
    file = parquet_file(path)
    return Parquet(path, tuple(file.schema_arrow.names), classes_of(file.schema_arrow.metadata))


def open_arrow(path: Path) -> RowFile:
    """An arrow file. Raises DataError."""
    table = arrow_table(path)
    return Arrow(path, tuple(table.column_names), classes_of(table.schema.metadata))


def classes_of(metadata: Any) -> dict[str, tuple[str, ...]]:
    """The names of classes by column, as Hugging Face's libraries keep them beside a table's schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return named_classes(features)
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def named_classes(features: Any) -> dict[str, tuple[str, ...]]:
    """The names of classes by column, of a data set's ``features``."""
    return {
        name: tuple(map(str, kind["names"]))
        for name, kind in features.items()
        if isinstance(kind, dict) and isinstance(kind.get("names"), list)
    }


def _is_binary(kind: Any) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _holds_pictures(kind: Any) -> bool:
    """Whether a column has bytes: alone, beside the name of their file, or in lists of either."""
    if types.is_list(kind) or types.is_large_list(kind):
        return _holds_pictures(kind.value_type)
    if types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return _is_binary(kind)


def _leaves(schema: Any, columns: Iterable[str]) -> list[str]:
    """What is read of the columns: of pictures beside the names of their files these alone."""
    found = []
    for name in columns:
        kind = schema.field(name).type
        if types.is_struct(kind) and _holds_pictures(kind):
            found += [f"{name}.path"] if kind.get_field_index("path") >= 0 else []
        elif not _is_binary(kind):
            found.append(name)
    return found


def _has_no_bytes(about: Any, column: str) -> bool:
    """Whether the pictures of a parquet file's column are files of their own, which it names alone."""
    chunks = [
        about.row_group(group).column(place)
        for group in range(about.num_row_groups)
        for place in range(about.num_columns)
        if about.row_group(group).column(place).path_in_schema == f"{column}.bytes"
    ]
    counts = [(chunk.statistics.null_count, chunk.num_values) for chunk in chunks if chunk.statistics is not None]
    return bool(counts) and all(nulls == values for nulls, values in counts)


def _without_bytes(column: Any) -> Any:
    """Of pictures the names of their files, behind ``OUTSIDE`` where the bytes are not in the table."""
    if not types.is_struct(column.type) or column.type.get_field_index("bytes") < 0:
        return column
    if column.type.get_field_index("path") < 0:
        return pyarrow.nulls(len(column))
    path = compute.struct_field(column, "path")
    is_inside = compute.is_valid(compute.struct_field(column, "bytes"))
    return compute.if_else(is_inside, path, compute.binary_join_element_wise(OUTSIDE, path, ""))


def _arrow_rows(
    path: Path, schema: Any, batches: Iterable[Any], columns: list[str], total: int | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of batches, in which pictures are ``Stored``; of a table of nothing else only their numbers are known."""
    pictures = {name: schema.field(name).type for name in columns if _holds_pictures(schema.field(name).type)}
    number = count()
    for batch in batches:
        rows = batch.to_pylist() if batch.num_columns else [{} for _ in range(total or batch.num_rows)]
        for row in rows:
            place = next(number)
            yield {name: row.get(name) for name in columns} | {
                name: _stored(path, name, place, row.get(name), kind) for name, kind in pictures.items()
            }


def _stored(path: Path, column: str, row: int, told: Any, kind: Any) -> Any:
    if isinstance(told, list):
        return [Stored(cell(path, column, row, place), _name(each)) for place, each in enumerate(told)]
    if types.is_list(kind) or types.is_large_list(kind):
        return None
    name = _name(told)
    return name.removeprefix(OUTSIDE) if name and name.startswith(OUTSIDE) else Stored(cell(path, column, row), name)


def _name(told: Any) -> str | None:
    told = told.get("path") if isinstance(told, dict) else told
    return told if isinstance(told, str) and told else None
