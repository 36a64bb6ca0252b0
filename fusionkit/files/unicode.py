"""Texts as they are read everywhere: one spelling of each letter, no broken characters, of a length that is a text's."""

import unicodedata
from collections.abc import Iterable
from itertools import chain, count

from fusionkit.errors import DataError

MAX_CHARACTERS = 100_000  # a book's chapter: what is longer is no caption, question or answer
REPLACEMENT = "\ufffd"
PICTURES = ("So", "Sk", "Cf")  # emoji, their skin colours and what joins them
GUESSERS = ("baseline", "chance")  # how the metrics of guessers end
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Letters of languages written without spaces between words, for a regex: Thai to Lao, Burmese, Khmer, kana, Chinese."""


class BadText(DataError):
    """A value that is no text, or none that anybody wrote; who knows the file it stands in names it."""


class LongText(BadText):
    """A text of more characters than any that people wrote about an image."""


def readable(text: str) -> str:
    """The text in Unicode's NFC; a lone surrogate or NUL, which no file of text can hold, becomes U+FFFD.

    Raises LongText for one of more than ``MAX_CHARACTERS``.
    """
    if len(text) > MAX_CHARACTERS:
        raise LongText(
            f"a text of {len(text):,} characters is longer than the {MAX_CHARACTERS:,} that one may have; shorten or remove it"
        )
    text = text.replace("\0", REPLACEMENT)
    if text.isascii():
        return text
    # UTF-16 joins the two halves of a character that stand side by side
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return unicodedata.normalize("NFC", whole)


def is_unicode(text: str) -> bool:
    """Whether a text is without halves of letters (lone surrogates), which no tokenizer reads and no file of text can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shown(text: str) -> str:
    """As it is written in Python, no more than a hundred letters, among them the first half of a letter."""
    first = next((place for place, letter in enumerate(text) if not is_unicode(letter)), 0)
    return ascii(text[max(0, first - 50) :][:100])


def metric_words(kinds: Iterable[str]) -> dict[str, str]:
    """By kind, its part of a metric's name: letters, digits and pictures in lower case, "yes/no" as "yes_no", "Màu" as "màu".

    Kinds that would share a name, as "Color" and "color" would, are numbered in their order as texts: "color", "color_2".
    """
    words: dict[str, str] = {}
    for kind in sorted(set(kinds)):
        kept = "".join(letter if _is_kept(letter) else " " for letter in readable(kind).lower())
        word = "_".join(kept.split()) or "unnamed"
        if word.endswith(GUESSERS):
            word += "_type"
        name = next(name for name in chain([word], (f"{word}_{n}" for n in count(2))) if name not in words.values())
        words[kind] = name
    return words


def _is_kept(letter: str) -> bool:
    category = unicodedata.category(letter)
    return category[0] in "LMN" or (category in PICTURES and not letter.isascii())
