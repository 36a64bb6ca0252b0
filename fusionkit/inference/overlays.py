"""Pictures of replies: the given and the true box, and where the text and each of its words look."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionkit.data.images import has_pixels
from fusionkit.data.requests import TEXTS
from fusionkit.inference.answering import Answer
from fusionkit.scoring.records import Record
from fusionkit.scoring.sheet import BLACK, GREEN, RED, Mark, Note, Panel, Picture, Sheet
from fusionkit.visual.answer_text import told
from fusionkit.visual.attention_maps import Look
from fusionkit.visual.contact_sheet import draw_sheet

CELL = 324, 264  # a drawing of 64 pixels is shown four times as large


def draw_reply(reply: Answer, stem: Path, is_middle: bool, true_box: Sequence[float] | None = None) -> list[Path]:
    """Write ``<stem>_<word>.png`` for each word that was asked and, where looks were taken, ``<stem>_<word>.npz``.

    ``is_middle``  the model saw the square in the middle of the image only. Of regions there is no picture to draw on.
    """
    written = []
    for word in reply.request.asks:
        path, look = Path(f"{stem}_{word}"), reply.looks.get(word)
        if look is not None:
            written.append(path.with_name(f"{path.name}.npz"))
            look.write(written[-1])
        if has_pixels(reply.request.image):
            written.append(path.with_name(f"{path.name}.png"))
            legend = _legend(look, word, "bbox" in reply.record and word == "phrase", true_box is not None)
            panels = _panels(reply, word, look, is_middle, true_box)
            draw_sheet(Sheet(legend, panels, CELL), f"{word}: {_heading(reply, word)}", written[-1])
    return written


def _heading(reply: Answer, word: str) -> str:
    return str(reply.record["caption"] if word == "caption" else reply.request.texts[word])


def _legend(look: Look | None, word: str, has_box: bool, has_truth: bool) -> str:
    parts = []
    if look is not None:
        speaks = "for the answer" if word == "question" else "for a match"
        kind = "attention" if look.gradcam is None else f"GradCAM, what speaks {speaks}"
        parts += [
            f"{kind}: of the whole text, then word by word",
            "each map from its least (dark) to its most (bright)",
        ]
    parts += ["true box: green"] * has_truth + ["given box: red, dashed"] * has_box
    return "; ".join(parts)


def _panels(
    reply: Answer, word: str, look: Look | None, is_middle: bool, true_box: Sequence[float] | None
) -> list[Panel]:
    """The image with what was said, then the maps."""
    box = reply.record.get("bbox") if word == "phrase" else None
    marks = [Mark(true_box, GREEN)] if true_box is not None else []
    marks += [Mark(box, RED, True)] if box is not None else []

    def picture(heat: Any = None, notes: tuple[Note, ...] = ()) -> Picture:
        return Picture(
            reply.request.image,
            reply.request.size,
            marks=tuple(marks),
            notes=notes,
            heat=heat,
            is_middle=is_middle,
            upright=reply.request.upright,
        )

    panels = [Panel(reply.request.image.name, (picture(notes=tuple(_notes(reply.record, word))),))]
    if look is not None:
        maps = zip(("all words", *look.words), look.best, strict=True)
        panels += [Panel(name, (picture(heat),)) for name, heat in maps]
    return panels


def _notes(record: Record, word: str) -> list[Note]:
    return [Note(told(record, word), BLACK)] if word in TEXTS else []
