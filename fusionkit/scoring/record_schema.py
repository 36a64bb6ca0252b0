"""What the records of a scorer look like, and the sentence for a file of predictions that does not."""

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionkit.data.sample import Sample
from fusionkit.errors import DataError
from fusionkit.files.plain import read_json
from fusionkit.files.unicode import LongText, readable
from fusionkit.scoring.foreign_results import listed
from fusionkit.scoring.records import Record, read_records

Check = Callable[[Any], bool]
LARGE = 1e100  # whose products are still finite
WORDS = {
    int: "a whole number",
    str: "a text",
    float: "a number",
    list: "a list",
    dict: "an object",
    bool: "a truth value",
}


@dataclass(frozen=True)
class RecordSchema:
    """One record: ``key`` names what it is about, ``value`` holds what is said of it.

    ``kind``     of the texts that are asked about; with ``of_images`` each image that has such texts is asked about.
    ``expected`` what ``is_valid`` accepts, in words.
    ``of_pairs`` the value says how well a text suits its own image, for which a task that matches or ranks is asked.
    ``lists``    where the value is a list of ids, the key of the schema that asks about these; ``scores`` may stand beside it.
    ``fitted``   no task is asked, but a classifier of the image encoder's states, fitted to the benchmark's training split.
    """

    kind: str
    key: str
    value: str
    expected: str
    is_valid: Check
    of_images: bool = False
    lists: str | None = None
    of_pairs: bool = False
    fitted: bool = False

    def wanted(self, samples: Iterable[Sample]) -> list[Any]:
        """The ids that need a record, in order."""
        if self.of_images:
            return [sample.image_id for sample in samples if sample.texts.get(self.kind)]
        return [text.id for sample in samples for text in sample.texts.get(self.kind, ())]


def is_text(value: Any) -> bool:
    """A string."""
    return isinstance(value, str)


def is_box(value: Any) -> bool:
    """Four finite numbers."""
    return isinstance(value, list | tuple) and len(value) == 4 and all(is_number(number) for number in value)


def is_anything(value: Any) -> bool:
    """Whatever it is."""
    return True


def is_list(value: Any) -> bool:
    """A list of ids."""
    return isinstance(value, list) and all(type(item) in (int, str) for item in value)


def one_of(*labels: str) -> Check:
    """One of these strings."""
    return lambda value: isinstance(value, str) and value in labels


def is_number(value: Any) -> bool:
    """A number that can be reckoned with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGE < value < LARGE


def read_predictions(path: Path) -> list[Record]:
    """Records of a JSON list, as benchmarks want them, or one a line, as ``fusionkit predict`` writes them."""
    if not path.is_file():
        raise DataError(f"the predictions {path} do not exist; write them with: fusionkit predict checkpoint=PATH")
    is_lines = path.suffix == ".jsonl"
    records: Any = read_records(path) if is_lines else read_json(path, "name a file of one record a line .jsonl")
    records = listed(records)
    if not isinstance(records, list):
        raise DataError(f"{path} holds {_words(records)}, but has to be a list of records")
    try:
        return [_readable(record) for record in records]
    except LongText as error:
        raise DataError(f"{path}: {error}") from error


def _readable(record: Any) -> Any:
    """A record whose texts are as annotations are read; ids stay as they are."""
    if not isinstance(record, dict):
        return record
    return {
        key: readable(value) if isinstance(value, str) and not key.endswith("_id") else value
        for key, value in record.items()
    }


def check_predictions(
    records: Sequence[Any],
    schema: Sequence[RecordSchema],
    wanted: Mapping[str, Iterable[Any]],
    path: Path,
    missing_hint: str | None = None,
) -> None:
    """Raise DataError, with the first record that is wrong, unless each wanted id has one record as its schema says.

    ``wanted`` has the ids by the key of their schema. What is missing is told with ``missing_hint``; without one it may be.
    """
    asked = {form.key: dict.fromkeys(wanted[form.key]) for form in schema}
    seen: dict[str, set[Any]] = {form.key: set() for form in schema}
    for number, record in enumerate(records):
        form = _schema_of(record, schema, f"{path} record {number}")
        given = record[form.key]
        _check_id(given, form, asked[form.key], records, path)
        if given in seen[form.key]:
            raise DataError(f"{path} has two records for {form.key} {given!r}; keep one record for each")
        seen[form.key].add(given)
        if form.value not in record:
            raise DataError(
                f"{path}: the record for {form.key} {given!r} has no '{form.value}'; expected {_example(form)}"
            )
        if not form.is_valid(record[form.value]):
            raise DataError(
                f"{path}: the {form.value} for {form.key} {given!r} is {_shown(record[form.value])}, "
                f"but has to be {form.expected}"
            )
        if form.lists:
            _check_list(record, form, asked[form.lists], path)
    for form in schema:
        missing = [key for key in asked[form.key] if key not in seen[form.key]]
        if missing and missing_hint:
            raise DataError(
                f"{path} has no record for {len(missing):,} of {len(asked[form.key]):,} {form.key}s, first {missing[0]!r}; "
                f"{missing_hint}"
            )


def _schema_of(record: Any, schema: Sequence[RecordSchema], place: str) -> RecordSchema:
    if not isinstance(record, dict):
        raise DataError(f"{place} is {_words(record)}, but has to be an object such as {_example(schema[0])}")
    for form in schema:
        if form.key in record:
            return form
    raise DataError(
        f"{place} has no '{schema[0].key}' (it has {', '.join(record) or 'no keys'}): expected {_example(schema[0])}"
    )


def _check_id(given: Any, form: RecordSchema, wanted: dict[Any, None], records: Sequence[Any], path: Path) -> None:
    kind = type(next(iter(wanted), ""))
    if type(given) is not kind:
        raise DataError(f"{path}: the {form.key} {_shown(given)} has to be {WORDS[kind]}")
    if given not in wanted:
        ids = [record[form.key] for record in records if isinstance(record, dict) and form.key in record]
        known = sum(type(item) is kind and item in wanted for item in ids)
        raise DataError(
            f"{path} has a record for {form.key} {given!r}, which the annotations do not ask about ({known:,} of "
            f"{len(records):,} records are about theirs); score it against the split that it was made from"
        )


def _check_list(record: Record, form: RecordSchema, known: Container[Any], path: Path) -> None:
    items, place = record[form.value], f"{path}: the {form.value} for {form.key} {record[form.key]!r}"
    unknown = [item for item in items if item not in known]
    if unknown:
        raise DataError(f"{place} name {_shown(unknown[0])}, which is no {form.lists} of the annotations")
    if len(set(items)) < len(items):
        raise DataError(f"{place} name an id twice; keep its first place")
    scores = record.get("scores", [0] * len(items))
    if not (isinstance(scores, list) and len(scores) == len(items) and all(map(is_number, scores))):
        raise DataError(
            f"{place} have other scores than a list of {len(items)} finite numbers; correct or leave them out"
        )


def _example(form: RecordSchema) -> str:
    return f'{{"{form.key}": ..., "{form.value}": {form.expected}}}'


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({_words(value)})"


def _words(value: Any) -> str:
    return WORDS.get(type(value), "null")
