"""What the rows of a table say about their pictures, by kind of text."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusionkit.data.readers.row_columns import (
    ENTAILMENT,
    LABELLED,
    MAX_CLASSES,
    TRUTHS,
    Columns,
    as_weight,
    items_of,
    texts_of,
    unpacked,
    weighted,
)
from fusionkit.data.readers.row_pictures import Id, Row, references_of
from fusionkit.data.sample import WEIGHT, Text
from fusionkit.data.texts.conversations import CONVERSATIONS, IMAGE_TOKEN, USER, read_conversation, require_places
from fusionkit.data.texts.word_labels import LABELS, TAGGED
from fusionkit.errors import DataError
from fusionkit.files.unicode import BadText

MOST = {"statements": 2}  # by kind, how many pictures a text is about; one of others, and any number of conversations


@dataclass(frozen=True)
class Meaning:
    """Which column is read as which text.

    ``captions``, ``expressions``, ``hypotheses``, ``statements`` are columns; ``question`` one, or the words asked of all
    pictures (``asked``); ``answers`` one, which may be of labels.
    """

    captions: tuple[str, ...] = ()
    expressions: tuple[str, ...] = ()
    question: str | None = None
    asked: str | None = None
    answers: tuple[str, ...] = ()
    hypotheses: str | None = None
    statements: str | None = None
    conversation: str | None = None
    word_labels: str | None = None  # the labels of the words of the caption, which is then no caption

    @property
    def kinds(self) -> list[str]:
        """The kinds of texts that there are."""
        return list(self.columns)

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """By kind of text the columns that it is read from, of ``asked`` questions those of their answers."""
        there = {
            "captions": self.captions,
            "questions": self.question or (self.asked and self.answers),
            "expressions": self.expressions,
            "hypotheses": self.hypotheses,
            "statements": self.statements,
            CONVERSATIONS: self.conversation,
            TAGGED: self.word_labels,
        }
        return {kind: (each,) if isinstance(each, str) else each for kind, each in there.items() if each}


def what_is_meant(
    columns: Columns, head: Sequence[Mapping[str, Any]], classes: Mapping[str, Any], asked: str
) -> Meaning:
    """Which texts the columns of a table are, by their roles and by the labels in its first rows."""
    captions, label = columns.get("caption", ()), columns.get("label", (None,))[0]
    question, answers = columns.get("question", (None,))[0], columns.get("answer", ())
    expressions = columns.get("expression", ())
    conversation = columns.get("conversation", (None,))[0]
    if captions and "word_labels" in columns:
        others = {role: names for role, names in columns.items() if role not in ("caption", "word_labels")}
        return replace(what_is_meant(others, head, classes, asked), word_labels=columns["word_labels"][0])
    if "box" in columns and not expressions:
        expressions, captions, label = (captions or ((label,) if label else ())), (), None if not captions else label
    if label is None or question or (conversation and not captions):
        answers = answers or ((label,) if question and label else ())
        return Meaning(captions, expressions, question, None, answers, conversation=conversation)
    said = Counter(label_of(row.get(label), classes.get(label)) for row in head)
    labels = {str(each).lower() for each in said if each is not None}
    if captions and labels <= ENTAILMENT | {"-"}:
        return Meaning((), expressions, hypotheses=captions[0])
    is_pair = any(_is_pair(row, columns) for row in head)
    if captions and is_pair and labels <= TRUTHS.keys():
        return Meaning((), expressions, statements=captions[0])
    if captions and captions[0].lower() in LABELLED and len(labels) <= MAX_CLASSES:
        return Meaning((), expressions, question=captions[0], answers=(label,))
    return Meaning(captions, expressions, asked=asked, answers=(label,))


def _is_pair(row: Mapping[str, Any], columns: Columns) -> bool:
    names = columns.get("image", ())
    value = unpacked(row.get(names[0])) if len(names) == 1 else None
    return len(names) == 2 or (isinstance(value, list) and len(value) == 2)


def label_of(value: Any, names: Sequence[str] | None) -> str | None:
    """A label in words: of a number the name that the table gives its class."""
    if value is None:
        return None
    if names and isinstance(value, int) and not isinstance(value, bool):
        return names[value] if 0 <= value < len(names) else None
    if isinstance(value, bool):
        return str(value)
    return next(iter(texts_of(value)), None)


def texts_in(
    row: Row, meaning: Meaning, columns: Columns, classes: Mapping[str, Sequence[str]], pictures: int = 1
) -> Iterator[tuple[str, Text]]:
    """The texts of a row about so many pictures, each with its kind; those with an id of their own have that of the row.

    Raises DataError, also for a text of a kind that is about fewer pictures.
    """
    weight = row.cells.get(columns["sample_weight"][0]) if "sample_weight" in columns else None
    facts = {} if weight is None else {WEIGHT: as_weight(weight, row.where)}
    try:
        for kind, text in _texts_in(row, meaning, columns, classes):
            if pictures > MOST.get(kind, 1) and kind != CONVERSATIONS:
                raise _too_many(row, pictures, kind, meaning, columns)
            yield kind, replace(text, facts={**text.facts, **facts}) if facts else text
    except BadText as error:
        raise DataError(f"{row.where}: {error}") from error


def _too_many(row: Row, pictures: int, kind: str, meaning: Meaning, columns: Columns) -> DataError:
    """What is wrong with a text of a kind that would be read as one about the first of its pictures."""
    role = next(role for role, names in columns.items() if meaning.columns[kind][0] in names)
    unread = f", or leave the {kind} unread with data.columns.{role}=[]" if "conversation" in columns else ""
    return DataError(
        f"{row.where} has {pictures} pictures, but {kind} are about {MOST.get(kind, 1)}; give each picture a row, read them as "
        f"one stream (data=frames), or write a conversation with {IMAGE_TOKEN} where each is seen{unread}"
    )


def _texts_in(
    row: Row, meaning: Meaning, columns: Columns, classes: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Text]]:
    cells, own = row.cells, row.cells.get(columns["id"][0]) if "id" in columns else None
    single: Id = own if isinstance(own, int | str) and not isinstance(own, bool) else row.name
    for place, said in enumerate(text for name in meaning.captions for text in texts_of(cells.get(name))):
        yield "captions", Text(f"{row.name}/{place}", said)
    question = cells.get(meaning.question) if meaning.question else meaning.asked
    for place, said in enumerate(texts_of(question)):
        yield (
            "questions",
            Text(single if place == 0 else f"{single}/{place}", said, _answers(row, meaning, columns, classes)),
        )
    if meaning.expressions:
        box = tuple(unpacked(cells.get(name)) for name in columns.get("box", ()))
        raw = box[0] if len(box) == 1 else list(box)
        for place, said in enumerate(
            text for name in meaning.expressions for text in _named(cells.get(name), classes.get(name))
        ):
            if raw is not None and raw != []:
                yield "expressions", Text(f"{row.name}/{place}", said, {"box": raw})
    if meaning.hypotheses or meaning.statements:
        yield from _labelled(row, meaning, columns, classes, single)
    if meaning.word_labels:
        yield from _tagged(row, columns, classes.get(meaning.word_labels), single)
    if meaning.conversation:
        yield from _conversation(row, cells.get(meaning.conversation), columns, single)


def _tagged(row: Row, columns: Columns, names: Sequence[str] | None, single: Id) -> Iterator[tuple[str, Text]]:
    """The words of a row with their labels. DataError where they are not as many, or one of them is none."""
    value = unpacked(row.cells.get(columns["caption"][0]))
    words, labels = items_of(value), items_of(row.cells.get(columns["word_labels"][0]))
    fix = "or leave all of them unread with data.columns.word_labels=[]"
    if len(words) != len(labels):
        raise DataError(
            f"{row.where} has {len(words)} words and {len(labels)} labels of words; give each word one label, {fix}"
        )
    said, told = [texts_of(each) for each in words], [_word_label(each, names) for each in labels]
    for number, (word, label) in enumerate(zip(said, told, strict=True)):
        if len(word) != 1 or len(word[0].split()) != 1:
            raise DataError(
                f"{row.where} has the word {words[number]!r:.60}, but a word is a text without spaces; correct it, {fix}"
            )
        if label is None:
            known = f", of the {len(names)} that there are" if names else ""
            raise DataError(
                f"{row.where} has the label {labels[number]!r:.60} of a word; give each word a label{known}, {fix}"
            )
    if words:
        text = value if isinstance(value, str) else " ".join(word for (word,) in said)
        yield TAGGED, Text(single, text, {LABELS: told})


def _word_label(value: Any, names: Sequence[str] | None) -> str | None:
    """As of pictures; a number below 0 stands where there is none."""
    return None if isinstance(value, int) and value < 0 else label_of(value, names)


def _named(value: Any, names: Sequence[str] | None) -> list[str]:
    return texts_of(value) if not names else [said for said in [label_of(value, names)] if said is not None]


def _answers(row: Row, meaning: Meaning, columns: Columns, classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The facts of a question: its answers, the commonest of them, and their types where the table says them."""
    weights = row.cells.get(columns["weights"][0]) if "weights" in columns else None
    answers: list[str] = []
    for name in meaning.answers:
        value = row.cells.get(name)
        answers += _named(value, classes[name]) if name in classes else weighted(value, weights, row.where)
    if not answers:
        return {}
    facts: dict[str, Any] = {"answers": answers, "multiple_choice_answer": Counter(answers).most_common(1)[0][0]}
    for role in ("answer_type", "question_type"):
        value = row.cells.get(columns[role][0]) if role in columns else None
        facts |= {role: str(value)} if isinstance(value, str | int) else {}
    return facts


def _labelled(
    row: Row, meaning: Meaning, columns: Columns, classes: Mapping[str, Sequence[str]], single: Id
) -> Iterator[tuple[str, Text]]:
    name = columns["label"][0]
    label = label_of(row.cells.get(name), classes.get(name))
    said = " ".join(texts_of(row.cells.get(meaning.hypotheses or meaning.statements or "")))
    if not said or label == "-":
        return
    if meaning.statements:
        if label is not None and label.lower() not in TRUTHS:
            raise DataError(f"{row.where} has the label {label!r}; known: true, false")
        yield "statements", Text(single, said, {} if label is None else {"label": TRUTHS[label.lower()]})
        return
    if label is not None and label.lower() not in ENTAILMENT:
        raise DataError(f"{row.where} has the label {label!r}; known: {', '.join(sorted(ENTAILMENT))}")
    shares = {each: float(label is not None and each == label.lower()) for each in sorted(ENTAILMENT)}
    yield "hypotheses", Text(single, said, {} if label is None else {"gold_label": label.lower(), **shares})


def _conversation(row: Row, value: Any, columns: Columns, single: Id) -> Iterator[tuple[str, Text]]:
    """The conversation of a row (LLaVA's, or messages); none where the user says nothing."""
    where = row.where
    conversation = read_conversation(unpacked(value) or [], where)
    if USER not in conversation.roles:
        return
    require_places(conversation, len(references_of(row, columns)), where)
    yield CONVERSATIONS, conversation.text(single)
