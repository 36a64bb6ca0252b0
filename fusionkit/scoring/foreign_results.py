"""Result files of other evaluators as they are: LAVIS, BLIP, ALBEF and lmms-eval, recognised by what their records look like.

BLIP, ALBEF and most of LAVIS write the benchmarks' own records, of which only the ids may be spelt in another way.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusionkit.data.identity import coco_number
from fusionkit.scoring.records import Record

LMMS, LAVIS, DOCVQA = "lmms-eval's samples", "LAVIS's records", "records of DocVQA's server"
LOGS = "logs"  # under which older versions of lmms-eval keep the samples, in one json
ASKED = {"question_id": "answer", "image_id": "caption"}  # by what a sample is about, what is said of it
PREFIXED = re.compile(r"(?:coco|vg|flickr|flickr30k)_(\d+)", re.IGNORECASE)  # LAVIS's ids of images


def listed(content: Any) -> Any:
    """The records of a json file: its list, the samples in a log of lmms-eval, or answers by question, as MMMU has them."""
    if isinstance(content, dict) and isinstance(content.get(LOGS), list):
        return content[LOGS]
    if isinstance(content, dict) and content and all(isinstance(answer, str) for answer in content.values()):
        return [{"question_id": key, "answer": answer} for key, answer in content.items()]
    return content


def recognised(records: Sequence[Any]) -> tuple[list[Any], str | None]:
    """The records as benchmarks want them, and whose they were, where they are another evaluator's."""
    first = records[0] if records else None
    if not isinstance(first, dict):
        return list(records), None
    if "doc_id" in first and ("filtered_resps" in first or "resps" in first):
        return [_of_lmms(record) for record in records], LMMS
    if "pred_ans" in first and "question_id" in first:
        return [_renamed(record, {"pred_ans": "answer"}) for record in records], LAVIS
    if "questionId" in first and "answer" in first:
        return [_renamed(record, {"questionId": "question_id"}) for record in records], DOCVQA
    if PREFIXED.fullmatch(str(first.get("image_id"))):
        return list(records), LAVIS
    return list(records), None


def _renamed(record: Any, names: Mapping[str, str]) -> Any:
    return {names.get(key, key): value for key, value in record.items()} if isinstance(record, dict) else record


def _of_lmms(record: Any) -> Any:
    """A sample of lmms-eval: its id stands in the document, or in what a metric was computed of, beside the reply.

    One without an id stays as it is, and is refused as such.
    """
    if not isinstance(record, dict):
        return record
    said = record.get("filtered_resps", record.get("resps"))
    while isinstance(said, list) and said:
        said = said[0]
    inner = [value for value in (record.get("doc"), *record.values()) if isinstance(value, dict)]
    for about, value in ASKED.items():
        found = next((each for each in inner if about in each), None)
        if found is not None:
            given = found.get(value, found.get("pred", said)) if found is not record.get("doc") else said
            return {about: found[about], value: given if isinstance(given, str) else said}
    return record


def with_ids(records: Sequence[Any], key: str, wanted: Iterable[Any]) -> list[Record]:
    """The records with their ids as the annotations have them: "42", "coco_42" and COCO's names of files are 42."""
    known = {str(each): each for each in wanted}
    return [
        {**record, key: known.get(_spelt(record[key], known), record[key])}
        if isinstance(record, dict) and key in record
        else record
        for record in records
    ]


def _spelt(value: Any, known: Mapping[str, Any]) -> str:
    text = str(value)
    number = coco_number(text)
    prefixed = PREFIXED.fullmatch(text)
    others = (str(number), prefixed.group(1).lstrip("0") or "0" if prefixed else text, text.lstrip("0"))
    return text if text in known else next((other for other in others if other in known), text)
