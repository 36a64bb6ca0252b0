"""Which column of a table is what: as the configuration says, else by its name, and in lists without names by what is in it."""

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fusionkit.errors import ConfigError, DataError, suggest

NAMES: Mapping[str, tuple[str, ...]] = {  # what is read: the names of columns that mean it, likeliest first
    "image": (
        *("image", "images", "img", "image_path", "img_path", "image_file", "img_file", "image_filename", "file_name"),
        *(
            "filename",
            "filepath",
            "file_path",
            "image_name",
            "img_name",
            "photo",
            "picture",
            "jpg",
            "png",
            "path",
            "file",
        ),
        *("video", "clip", "audio", "recording", "wav"),  # streams (Source.stream)
    ),
    "caption": (
        *("caption", "captions", "text", "texts", "sentence", "sentences", "description", "comment", "alt_text", "txt"),
        *("title", "prompt", "raw", "hypothesis"),
    ),
    "question": ("question", "questions", "query", "sent_question"),
    "answer": ("answer", "answers", "multiple_choice_answer", "response", "label_text", "target_text"),
    "expression": ("expression", "expressions", "phrase", "phrases", "referring_expression", "refexp", "sent", "ref"),
    "box": ("box", "bbox", "bounding_box", "boxes", "bboxes", "box_xywh", "bbox_xywh", "box_xyxy", "bbox_xyxy"),
    "label": ("label", "labels", "class", "class_name", "category", "category_name", "gold_label", "target", "cls"),
    "conversation": ("conversations", "conversation", "messages"),
    "word_labels": ("word_labels", "token_labels", "ner_tags", "pos_tags", "chunk_tags"),
    "split": ("split", "subset", "partition", "set_name", "set", "fold"),
    "image_id": ("image_id", "img_id", "imageid", "imgid", "photo_id", "cocoid", "coco_id"),
    "id": (
        "question_id",
        "questionid",
        "qid",
        "caption_id",
        "sent_id",
        "sentid",
        "ref_id",
        "pair_id",
        "identifier",
        "id",
    ),
    "weights": ("weights", "weight", "answer_weights", "answer_weight"),
    "sample_weight": ("sample_weight", "sampling_weight"),
    "answer_type": ("answer_type",),
    "question_type": ("question_type", "type"),
    "width": ("width", "image_width", "img_width", "w_img"),
    "height": ("height", "image_height", "img_height", "h_img"),
}
CORNERS = (  # four columns that are a box together, with their convention
    (("x", "y", "w", "h"), "xywh"),
    (("x", "y", "width", "height"), "xywh"),
    (("left", "top", "width", "height"), "xywh"),
    (("xmin", "ymin", "xmax", "ymax"), "xyxy"),
    (("x_min", "y_min", "x_max", "y_max"), "xyxy"),
    (("x1", "y1", "x2", "y2"), "xyxy"),
    (("left", "top", "right", "bottom"), "xyxy"),
    (("cx", "cy", "w", "h"), "cxcywh"),
)
WORDS = ("tokens", "words")  # the columns of a text's words, where labels of them stand beside
SEVERAL = ("caption", "answer", "expression", "image")  # of which there may be several columns
LABELLED = ("hypothesis", "sentence", "statement", "text")  # texts that a label beside them is about
QUESTION_MARKS = ("?", "\uff1f", "\u061f")  # of Latin and most other scripts, of Chinese and Japanese, of Arabic
MAX_CLASSES = 50  # of such labels
ENTAILMENT = frozenset(("contradiction", "neutral", "entailment"))
TRUTHS = {"true": 1, "false": 0, "1": 1, "0": 0}
Columns = dict[str, tuple[str, ...]]


def map_columns(
    columns: Sequence[str], head: Sequence[Mapping[str, Any]], given: Mapping[str, Any], path: Any
) -> Columns:
    """The columns of each role. ``given`` maps roles to a column or several; DataError where nothing can be mapped."""
    found: Columns = {}
    for role, value in given.items():
        if role not in NAMES:
            raise ConfigError(f"data.columns names '{role}'; {suggest(role, NAMES)}")
        if value is not None:
            found[role] = _given(role, value, columns, path)
    used = {name for names in found.values() for name in names}
    free = {_plain(name): name for name in columns if name not in used}
    box: tuple[str, ...] = ()
    corners = next((names for names, _ in CORNERS if all(name in free for name in names)), None)
    if corners and "box" not in found and not _by_name("box", free):
        # before a picture's width and height take two of them
        box = tuple(free.pop(name) for name in corners)
    for role in (role for role in NAMES if role not in found):
        names = _by_name(role, free)
        if names:
            found[role] = names
            free = {plain: name for plain, name in free.items() if name not in names}
    found |= {"box": box} if box else {}
    if all(re.fullmatch(r"column\d+", name) for name in columns):
        found |= {role: names for role, names in _by_content(columns, head).items() if role not in found}
    if found.get("word_labels"):
        found = _paired(found, given, free, head)
    found = {role: names for role, names in found.items() if names}  # but those that are to be left unread, []
    _require_use(found, columns, path)
    return found


def names_pictures(columns: Sequence[str]) -> bool:
    """Whether one of the columns is called as pictures are."""
    return bool(_by_name("image", {_plain(name): name for name in columns}))


def _given(role: str, value: Any, columns: Sequence[str], path: Any) -> tuple[str, ...]:
    values: list[Any] = [value] if isinstance(value, str | int) else list(value)
    names = [f"column{name}" if isinstance(name, int) else str(name) for name in values]
    for name in names:
        if name not in columns:
            raise ConfigError(f"data.columns.{role} is '{name}', which {path} has not; {suggest(name, columns)}")
    if len(names) > 1 and role not in (*SEVERAL, "box"):
        raise ConfigError(f"data.columns.{role} names {len(names)} columns, but takes one")
    return tuple(names)


def _plain(name: str) -> str:
    """A column's name in small letters with underscores: "Image Path", "imagePath" and "image-path" are image_path."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^\w]+", "_", spaced).strip("_").lower()


def _by_name(role: str, free: Mapping[str, str]) -> tuple[str, ...]:
    for name in NAMES[role]:
        if name in free:
            return (free[name],)
        numbered = re.compile(rf"{name}_?\d+")
        several = [free[plain] for plain in free if numbered.fullmatch(plain)]
        if several and role in SEVERAL:
            return tuple(several)
    return ()


def _by_content(columns: Sequence[str], head: Sequence[Mapping[str, Any]]) -> Columns:
    """Of rows without names: what ends in a question mark, what few other texts are, and numbers or files."""
    values = {name: [row[name] for row in head if row.get(name) is not None] for name in columns}
    texts = [name for name in columns if values[name] and all(isinstance(value, str) for value in values[name])]
    asking = {name: sum(value.rstrip().endswith(QUESTION_MARKS) for value in values[name]) for name in texts}
    files = [name for name in texts if all(re.search(r"\.\w{3,4}$", value) for value in values[name])]
    numbers = [name for name in columns if values[name] and all(type(value) is int for value in values[name])]
    question = next((name for name in texts if 2 * asking[name] > len(values[name])), None)
    said = [name for name in texts if name not in (question, *files)]
    found: Columns = {"image": (files[0],)} if files else {"image_id": (numbers[0],)} if numbers else {}
    if question:
        found["question"] = (question,)
    if said:
        found["answer" if question else "caption"] = (said[0],)
    return found


def _paired(
    found: Columns, given: Mapping[str, Any], free: Mapping[str, str], head: Sequence[Mapping[str, Any]]
) -> Columns:
    """With the column of the words for the caption; without the labels where they are guessed, and no words have as many."""
    (labels,) = found["word_labels"]
    own = [free[name] for name in WORDS if name in free] if given.get("caption") is None else []
    there = [*own, *found.get("caption", ())]
    fit = [name for name in there if _fit(name, labels, head)]
    if given.get("word_labels") is None:
        there = fit
    elif not there:
        raise ConfigError(
            f"data.columns.word_labels is '{labels}', but no column has the words; say which with data.columns.caption=COLUMN"
        )
    words = next(iter(fit or there), None)
    if words is None:
        return {role: names for role, names in found.items() if role != "word_labels"}
    return {**found, "caption": (words,)}


def _fit(words: str, labels: str, head: Sequence[Mapping[str, Any]]) -> bool:
    """Whether most of the rows that have either have as many words as labels."""
    counts = [(len(items_of(row.get(words))), len(items_of(row.get(labels)))) for row in head]
    counts = [each for each in counts if any(each)]
    return 2 * sum(one == other for one, other in counts) > len(counts)


def items_of(value: Any) -> list[Any]:
    """What is in a cell of words, or of labels of words: those of a list, or those that spaces divide."""
    value = unpacked(value)
    if isinstance(value, list | tuple):
        return list(value)
    return value.split() if isinstance(value, str) else [] if value is None else [value]


def _require_use(found: Columns, columns: Sequence[str], path: Any) -> None:
    if not found.keys() & {"image", "image_id"}:
        raise DataError(
            f"{path} has no column of images (it has {', '.join(columns)[:200]}); say which it is with data.columns.image=COLUMN"
        )
    if not found.keys() & {"caption", "question", "expression", "label", "conversation"}:
        raise DataError(
            f"{path} has no column of texts or labels (it has {', '.join(columns)[:200]}); say which with "
            "data.columns.caption=COLUMN, .question, .expression or .label"
        )


def convention_of(names: Sequence[str]) -> str | None:
    """The convention of a box that the names of its columns tell."""
    plain = tuple(map(_plain, names))
    if len(plain) == 4:
        return next((kind for corners, kind in CORNERS if corners == plain), None)
    return next((kind for kind in ("cxcywh", "xywh", "xyxy") if kind in plain[0]), None)


def corners_in(box: Mapping[str, Any]) -> tuple[list[Any], str] | None:
    """The four numbers of a box that is an object, in the order of its convention, and this; None where its names tell none."""
    by_name = {_plain(str(name)): value for name, value in box.items()}
    names, kind = next((each for each in CORNERS if by_name.keys() >= set(each[0])), ((), ""))
    return ([by_name[name] for name in names], kind) if names else None


def texts_of(value: Any) -> list[str]:
    """The texts in a cell: itself, those of a list, or of objects that hold one; a list may be written as a text."""
    return list(_texts(unpacked(value)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, bool):
        yield "yes" if value else "no"
    elif isinstance(value, int | float):
        if isinstance(value, int) or math.isfinite(
            value
        ):  # NaN stands where there is nothing, and infinity is nobody's text
            yield str(int(value)) if value % 1 == 0 else str(value)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        key = next(
            (key for key in ("answer", "raw", "caption", "text", "sent", "sentence", "value") if key in value), None
        )
        if key is not None:
            yield from _texts(value[key])


def unpacked(value: Any) -> Any:
    """What a cell of text stands for, where it is a list or an object as JSON or Python write one; nothing is run."""
    if not isinstance(value, str) or value[:1] + value[-1:] not in ("[]", "{}", "()"):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return value


def weighted(answers: Any, weights: Any, where: str) -> list[str]:
    """Answers as people would have given them: each as often as its weight says, of ten (ALBEF, X-VLM, LXMERT).

    ``answers`` are texts, with ``weights`` of the same number or none, or an object from answer to weight; ``where`` they stand
    is said in the DataError for a weight that is no number.
    """
    answers, weights = unpacked(answers), unpacked(weights)
    if isinstance(answers, dict) and answers and all(isinstance(each, int | float) for each in answers.values()):
        answers, weights = list(answers), list(answers.values())
    said = texts_of(answers)
    if not isinstance(weights, list | tuple) or len(weights) != len(said):
        return said
    if wrong := [weight for weight in weights if not _is_weight(weight)]:
        raise DataError(
            f"{where} has the weight {str(wrong[0])[:60]!r}, but a weight is a number; correct it, or rename the column"
        )
    return [
        answer for answer, weight in zip(said, weights, strict=True) for _ in range(max(1, round(10 * float(weight))))
    ]


def as_weight(value: Any, where: str) -> float:
    """How often what stands ``where`` is drawn, in proportion. DataError for what is no number from 0 on."""
    if not _is_weight(value) or float(value) < 0:
        raise DataError(
            f"{where} has the sample_weight {str(value)[:60]!r}, but that is a number from 0 on; correct it"
        )
    return float(value)


def _is_weight(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
