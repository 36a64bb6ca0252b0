"""What a reply says, in words: in a table of the terminal, and in notes below a picture."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusionkit.data.requests import ASKED, TEXTS
from fusionkit.errors import clean
from fusionkit.scoring.examples import shown_value


def replies_table(records: Iterable[Mapping[str, Any]]) -> Table:
    """What was asked about one's own images, and the replies."""
    records = list(records)
    scored = [
        answers for each in records if (answers := [one for one in each.get("answers", ()) if "probability" in one])
    ]
    alone = None if all(map(_are_shares, scored)) else "the score of an answer, from 0 to 1, is of that answer alone"
    table = Table(header_style="bold", caption=alone, caption_justify="left")
    for title in ("image", "asked", "reply"):
        table.add_column(title, overflow="fold")
    for record in records:
        images = record["image"] if isinstance(record["image"], str) else "\n".join(record["image"])
        for number, (asked, reply) in enumerate(_rows(record)):
            table.add_row(*(Text(clean(cell)) for cell in ("" if number else images, asked, reply)))
    return table


def _rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was asked, and the reply to it."""
    if "error" in record:
        asked = [f"{word}: {record[word]}" for word in TEXTS if word in record]
        return [("   ".join(asked), f"error: {record['error']}")]
    rows = [(f"{word}: {record[word]}", told(record, word)) for word in TEXTS if word in record]
    return rows + ([("caption", record["caption"])] if "caption" in record else [])


def told(record: Mapping[str, Any], word: str) -> str:
    """The reply to a word of TEXTS: in the words of what is known of such replies, else all that was said, by name."""
    return _TELLING[word](record) or "   ".join(f"{name} {shown_value(value, '')}" for name, value in _said(record))


def _said(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What follows the image and the texts in a record (``inference.answering``): the replies."""
    names = list(record)
    replied = names[names.index("image") + 1 :] if "image" in record else names
    known = {"answer", "answers", "bbox", "match", "cosine", "labels", "files", *ASKED}
    return [(name, record[name]) for name in replied if name not in known]


def print_replies(records: Iterable[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print the table."""
    (console or Console()).print(replies_table(records))


def _tell_answer(record: Mapping[str, Any]) -> str:
    """Answers with percentages where these are shares of a whole; else with a score of 0 to 1 of each answer alone."""
    answers = record.get("answers", [{"answer": record["answer"]}] if "answer" in record else [])
    tell_one = _percent if _are_shares(answers) else _score
    return "   ".join(" ".join([each["answer"], *tell_one(each.get("probability"))]) for each in answers)


def _are_shares(answers: Iterable[Mapping[str, Any]]) -> bool:
    total: float = sum(each.get("probability") or 0.0 for each in answers)
    return abs(total - 1) < 0.005


def _score(probability: float | None) -> list[str]:
    return [] if probability is None else [f"{probability:.2f}"]


def _tell_box(record: Mapping[str, Any]) -> str:
    return "box {:.0f} {:.0f} {:.0f} {:.0f} (x y width height)".format(*record["bbox"]) if "bbox" in record else ""


def _tell_match(record: Mapping[str, Any]) -> str:
    told = [f"match {record['match']:.1%}"] if "match" in record else []
    told += [f"cosine {record['cosine']:.3f}"] if "cosine" in record else []
    told += [" ".join([name, *_percent(share)]) for name, share in record.get("labels", {}).items()]
    return "   ".join(told)


def _percent(probability: float | None) -> list[str]:
    """As a word, or no word where there is none."""
    return [] if probability is None else [f"{probability:.1%}"]


_TELLING = {"question": _tell_answer, "phrase": _tell_box, "text": _tell_match}
