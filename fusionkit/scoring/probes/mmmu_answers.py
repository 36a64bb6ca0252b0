"""How MMMU reads an answer in free text (MMMU-Benchmark/MMMU, eval_utils.py): the letter of an option, or words and numbers."""

import re
from collections.abc import Sequence

MARKS = ",.!?;:'"
ENOUGH = 5  # words of an answer, above which the text of an option is looked for in it
LEADS = (
    "could be ",
    "so ",
    "is ",
    "thus ",
    "therefore ",
    "final ",
    "answer ",
    "result ",
)  # what says that an answer follows
NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 12,345
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.2e-3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
Plain = str | float


def letters(count: int) -> list[str]:
    """The letters of so many options, from A on."""
    return [chr(ord("A") + place) for place in range(count)]


def choice_of(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer names; None where it names none.

    A letter in brackets counts before one between spaces, and this before the text of an option; of several the last counts.
    The published script draws one of the options where an answer names none, so that its scores differ from run to run.
    """
    for mark in MARKS:
        answer = answer.strip(mark)
    answer = f" {answer} "
    known = letters(len(options))
    for form in ("({})", " {} "):
        places = {letter: answer.rfind(form.format(letter)) for letter in known}
        if max(places.values(), default=-1) >= 0:
            return max(known, key=places.__getitem__)
    if len(answer.split()) <= ENOUGH:
        return None
    places = {letter: answer.lower().rfind(option.lower()) for letter, option in zip(known, options, strict=True)}
    return max(known, key=places.__getitem__) if max(places.values(), default=-1) >= 0 else None


def is_open_right(answer: str, known: str | Sequence[str]) -> bool:
    """Whether an answer to an open question has one of those known in it: as words, or as a number to two decimals."""
    right = {form for each in ([known] if isinstance(known, str) else known) for form in _plain(each)}
    said = {form for part in _parts(answer) for form in _plain(part)}
    words = [form for form in right if isinstance(form, str)]
    return any(word in each for each in said if isinstance(each, str) for word in words) or any(
        each in right for each in said if not isinstance(each, str)
    )


def _parts(answer: str) -> list[str]:
    """The ends of sentences that lead to an answer, else all of it; and the numbers in these."""
    whole = answer.strip().strip(".").lower()
    sentences = whole.split("\n")  # the published pattern looks for capitals too, where there are none any more
    found = []
    for place, sentence in enumerate(sentences):
        leads = (*LEADS, "=") if place == len(sentences) - 1 else LEADS
        end = ""
        for each in (sentence.split(lead)[-1].strip() for lead in leads if lead in sentence):
            end = each if not end or len(each) < len(end) else end  # as published, where one that is empty gives way
        if end and end not in tuple(MARKS):
            found.append(end)
    found = found or [whole]
    return [*found, *(number for each in found for form in NUMBERS for number in form.findall(each))]


def _plain(text: str) -> list[Plain]:
    """A number, rounded, or the text in small letters; a single letter with a space on one side of it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
