"""Python values as a column of an Arrow table, and back: each comes back as the very value it was, of the very type."""

import json
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fusionkit.files.unicode import BadText

ARROW = {str: pa.large_string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), bytes: pa.large_binary()}
LIST, TUPLE, MIXED, JSON = "list", "tuple", "mixed", "json"  # how what Arrow has no type for stands in a column
TAG = "\0"  # the key of what JSON has no type for, and what numbers among texts begin with


class Absent:
    """The place of a value that is not there, which None may be."""


ABSENT: Any = Absent()


class Column(NamedTuple):
    """Values of one kind; a null is a value that is not there."""

    array: Any  # pyarrow's
    how: str = ""  # nothing, LIST, TUPLE or JSON

    def __len__(self) -> int:
        return len(self.array)

    def values(self, start: int = 0, count: int | None = None) -> list[Any]:
        """The values of some rows, ABSENT where there are none."""
        found = self.array.slice(start, count).to_pylist()
        if self.how == MIXED:
            return [_from_mixed(value) for value in found]
        if self.how == JSON:
            return [ABSENT if value is None else _from_json(json.loads(value)) for value in found]
        if self.how == TUPLE:
            return [ABSENT if value is None else tuple(value) for value in found]
        return [ABSENT if value is None else value for value in found] if self.array.null_count else found

    def take(self, rows: Any) -> "Column":
        """Some rows, by their numbers."""
        return Column(self.array.take(pa.array(rows)), self.how)


def column(values: Sequence[Any]) -> Column:
    """A column of values; those that are ABSENT are nulls.

    Texts, numbers, and lists and tuples of one type of these have a type of Arrow's; whole numbers among texts are texts
    with a mark, and all else is written as JSON, numpy's numbers as Python's. Raises BadText for what JSON cannot hold.
    """
    kinds = set(map(type, values))
    present = [None if value is ABSENT else value for value in values] if Absent in kinds else values
    kinds.discard(Absent)
    if not kinds:
        return Column(pa.nulls(len(values)))
    try:
        if len(kinds) == 1 and (kind := next(iter(kinds))) in ARROW:
            return Column(pa.array(present, ARROW[kind]))
        if kinds == {int, str} and not any(type(value) is str and value.startswith(TAG) for value in present):
            said = [f"{TAG}{value}" if type(value) is int else value for value in present]
            return Column(pa.array(said, ARROW[str]), MIXED)
        if kinds == {list} or kinds == {tuple}:
            parts = list(chain.from_iterable(part for part in present if part is not None))
            inner = set(map(type, parts))
            if len(inner) == 1 and (kind := next(iter(inner))) in ARROW:
                return Column(_lists(present, pa.array(parts, ARROW[kind])), LIST if kinds == {list} else TUPLE)
    except (OverflowError, UnicodeEncodeError, pa.ArrowInvalid):  # beyond 64 bits; half a character
        pass
    said = [ABSENT if value is ABSENT else json.dumps(_to_json(value)) for value in values]
    return Column(pa.array([None if value is ABSENT else value for value in said], ARROW[str]), JSON)


def joined(parts: Sequence[Column | int]) -> Column:
    """Columns one behind the other; a number stands for as many rows that have no such value."""
    there = [part for part in parts if isinstance(part, Column) and not pa.types.is_null(part.array.type)]
    if not there:
        return Column(pa.nulls(sum(part if isinstance(part, int) else len(part) for part in parts)))
    kind, how = there[0].array.type, there[0].how
    if any(part.how != how or part.array.type != kind for part in there):
        rows = ([ABSENT] * part if isinstance(part, int) else part.values() for part in parts)
        return column(list(chain.from_iterable(rows)))
    arrays = [
        pa.nulls(part if isinstance(part, int) else len(part), kind)
        if isinstance(part, int) or pa.types.is_null(part.array.type)
        else part.array
        for part in parts
    ]
    return Column(arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays), how)


def count_distinct(ids: Column) -> int | None:
    """How many different texts whole numbers and texts are; None where there is anything else."""
    if ids.how not in ("", MIXED):
        return None
    texts = pc.utf8_ltrim(ids.array, characters=TAG) if ids.how == MIXED else ids.array
    return int(pc.count_distinct(texts).as_py())


def _from_mixed(value: str | None) -> Any:
    if value is None:
        return ABSENT
    return int(value[1:]) if value[:1] == TAG else value


def _lists(values: Sequence[Any], parts: Any) -> Any:
    ends = list(accumulate((0 if value is None else len(value) for value in values), initial=0))
    absent = np.fromiter((value is None for value in values), dtype=bool, count=len(values))
    mask = pa.array(absent) if absent.any() else None
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), parts, mask=mask)


def _to_json(value: Any) -> Any:
    """A value of what JSON has; tuples, and mappings whose keys are no texts, behind a tag."""
    if isinstance(value, np.ndarray | np.generic):
        return _to_json(value.tolist())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_to_json(part) for part in value]
    if isinstance(value, tuple):
        return {TAG: [_to_json(part) for part in value]}
    if isinstance(value, dict):
        if all(isinstance(key, str) and key != TAG for key in value):
            return {str(key): _to_json(part) for key, part in value.items()}
        return {TAG: {"items": [[_to_json(key), _to_json(part)] for key, part in value.items()]}}
    raise BadText(f"a fact is a {type(value).__name__}, but has to be a text, a number, or a list or mapping of such")


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(part) for part in value]
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: _from_json(part) for key, part in value.items()}
    tagged = value[TAG]
    if isinstance(tagged, list):
        return tuple(_from_json(part) for part in tagged)
    return {_from_json(key): _from_json(part) for key, part in tagged["items"]}


def chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """The starts and lengths of stretches of ``count`` rows."""
    return ((start, min(size, count - start)) for start in range(0, count, size))
