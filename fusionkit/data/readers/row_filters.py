"""Which rows and captions of a table are read: by length, repetition, copies, and what other columns say of them."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from xxhash import xxh3_64_intdigest

from fusionkit.data.readers.row_columns import texts_of
from fusionkit.data.readers.row_pictures import Row
from fusionkit.errors import ConfigError, suggest

KEYS = ("words", "characters", "repeated", "copies", "scores", "values")
Bounds = tuple[float, float]


class Filters:
    """What is left out, and how much of it was.

    ``words``, ``characters``  [least, most] of a caption; null for no bound.
    ``repeated``  the largest share of a caption's words that stand in it before.
    ``copies``    how often a caption is read, whatever its case, spaces and punctuation; 1: the first time it comes.
    ``scores``    by column the least value, or [least, most]; a row without a number there is left out.
    ``values``    by column the values of the rows that are read.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        said = {key: value for key, value in given.items() if value is not None and value != {}}
        if unknown := next((key for key in said if key not in KEYS), None):
            raise ConfigError(f"data.filters names '{unknown}'; {suggest(str(unknown), KEYS)}")
        self.lengths = {key: _bounds(said[key], key) for key in ("words", "characters") if key in said}
        self.scores = {str(key): _bounds(value, f"scores.{key}") for key, value in _section(said, "scores").items()}
        self.values = {str(key): _listed(value) for key, value in _section(said, "values").items()}
        self.repeated, self.copies = said.get("repeated"), said.get("copies")
        if self.repeated is not None and not (_is_number(self.repeated) and 0 <= self.repeated <= 1):
            raise ConfigError(f"data.filters.repeated is {self.repeated!r}, but has to be a share, from 0 to 1")
        if self.copies is not None and (type(self.copies) is not int or self.copies < 1):
            raise ConfigError(f"data.filters.copies is {self.copies!r}, but has to be a whole number from 1 on")
        self.clear()

    @property
    def reads_texts(self) -> bool:
        """Whether captions are kept by what they are."""
        return bool(self.lengths) or self.repeated is not None or self.copies is not None

    @property
    def columns(self) -> list[str]:
        """The columns that rows are kept by."""
        return [*self.scores, *self.values]

    def clear(self) -> None:
        """Count, and know copies, from now on."""
        self.rows, self.captions = Counter[str](), Counter[str]()  # by reason; "" is all that were looked at
        self._met: Counter[int] = Counter()

    def among(self, rows: Iterable[Row], captions: Sequence[str], has_others: bool) -> Iterator[Row]:
        """The rows that are kept, each with those of its captions that are; copies are left out later (``unrepeated``).

        ``captions`` are the columns of captions, and it ``has_others`` where a row is of use without any.
        """
        if not (self.scores or self.values or self.reads_texts):
            yield from rows
            return
        for row in rows:
            self.rows[""] += 1
            cells = row.cells
            reason = next(
                (name for name, bounds in self.scores.items() if not _is_within(cells.get(name), bounds)), None
            )
            reason = reason or next(
                (name for name, kept in self.values.items() if _word(cells.get(name)) not in kept), None
            )
            if reason is not None:
                self.rows[reason] += 1
                continue
            said = {name: texts_of(cells.get(name)) for name in captions}
            self.captions[""] += sum(map(len, said.values()))
            if (kept := self._with(row, said, self._reason, has_others)) is not None:
                yield kept

    def unrepeated(self, row: Row, captions: Sequence[str], has_others: bool) -> Row | None:
        """A row that has a picture, with those of its captions that have not come too often; None where it has none left."""
        if self.copies is None:
            return row
        return self._with(row, {name: texts_of(row.cells.get(name)) for name in captions}, self._copied, has_others)

    def _with(
        self, row: Row, said: Mapping[str, Sequence[str]], reason: Callable[[str], str | None], has_others: bool
    ) -> Row | None:
        """The row with the captions that no reason leaves out; one that had none is told by those who miss them."""
        left: dict[str, list[str]] = {name: [] for name in said}
        for name, texts in said.items():
            for text in texts:
                if (why := reason(text)) is None:
                    left[name].append(text)
                else:
                    self.captions[why] += 1
        is_of_use = has_others or any(left.values()) or not any(said.values())
        return row._replace(cells={**row.cells, **left}) if is_of_use else None

    def _reason(self, text: str) -> str | None:
        """Why a caption is left out by what it is."""
        words = text.split()
        for name, found in (("words", len(words)), ("characters", len(text))):
            if name in self.lengths and not _is_within(found, self.lengths[name]):
                return name
        plain = _plain(text)
        if self.repeated is not None and len(plain) - len(set(plain)) > self.repeated * len(plain):
            return "repeated"
        return None

    def _copied(self, text: str) -> str | None:
        key = xxh3_64_intdigest(" ".join(_plain(text)).encode("utf-8", "replace"))
        self._met[key] += 1
        return "copies" if self.copies is not None and self._met[key] > self.copies else None

    def told(self) -> list[str]:
        """What was left out, in sentences; none where nothing was."""
        sentences = []
        for what, counts in (("rows", self.rows), ("captions", self.captions)):
            reasons = {reason: count for reason, count in counts.items() if reason}
            if reasons:
                listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
                sentences.append(
                    f"data.filters leaves out {sum(reasons.values()):,} of {counts['']:,} {what} ({listed})"
                )
        return sentences


def _plain(text: str) -> list[str]:
    """The words of a text, whatever its case, spaces and punctuation."""
    return re.findall(r"\w+", text.casefold())


def _section(said: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = said.get(key, {})
    if not isinstance(section, Mapping):
        raise ConfigError(f"data.filters.{key} is {section!r}, but has to be a section by column: {{similarity: 0.3}}")
    return {name: value for name, value in section.items() if value is not None}


def _bounds(value: Any, key: str) -> Bounds:
    """[least, most], or the least alone."""
    pair = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, None]
    if len(pair) != 2 or not all(each is None or _is_number(each) for each in pair):
        raise ConfigError(f"data.filters.{key} is {value!r}, but has to be the least value, or [least, most]")
    least, most = pair
    return -math.inf if least is None else float(least), math.inf if most is None else float(most)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_within(value: Any, bounds: Bounds) -> bool:
    try:
        return bounds[0] <= float(value) <= bounds[1]
    except (TypeError, ValueError):
        return False


def _listed(value: Any) -> set[str]:
    return {_word(each) for each in (value if isinstance(value, list | tuple) else [value])}


def _word(value: Any) -> str:
    """A value as it is compared: numbers by their value, 1.0 as 1, which a column with empty cells holds for it."""
    if isinstance(value, float) and value % 1 == 0:
        value = int(value)
    return str(value).strip().casefold()
