"""Texts whose words have a label each (named entities of a post with its picture): which tokens the labels stand at."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fusionkit.data.sample import Text
from fusionkit.errors import DataError

TAGGED = "tagged"  # the kind of such texts
LABELS = "word_labels"  # the fact: a list of labels, one for each word, which spaces divide
WORD = re.compile(r"\S+")


def spans_of(text: str) -> list[tuple[int, int]]:
    """The characters of each word of a text, from one to before another."""
    return [found.span() for found in WORD.finditer(text)]


def labels_of(text: Text) -> list[str]:
    """One of each word. Raises DataError for a text with more or fewer words than labels."""
    labels, words = list(text.facts[LABELS]), len(spans_of(text.text))
    if len(labels) != words:
        raise DataError(
            f"text {text.id} has {words} words and {len(labels)} labels; give each word, between spaces, one label"
        )
    return labels


def label_rows(texts: Sequence[Text], tokenizer: Any, max_length: int, clean: Callable[[str], str]) -> dict[str, Any]:
    """Of each text ``word_labels`` and ``word_spans``, lists of one a word, and ``label_words`` (T, L).

    The last is, at the first token of each word, the number of the word, and -1 elsewhere; words beyond ``max_length`` tokens
    have none. Raises DataError for a text with more or fewer words than labels.
    """
    cleaned = [clean(text.text) for text in texts]
    for text, said in zip(texts, cleaned, strict=True):
        counts = len(spans_of(text.text)), len(spans_of(said)), len(text.facts[LABELS])
        is_kept = all(len(spans_of(clean(word))) == 1 for word in text.text.split())
        # where one word is left out and another becomes two, the counts are the same
        if len(set(counts)) > 1 or not is_kept:
            raise DataError(
                f"text {text.id} has {counts[0]} words ({counts[1]} as they are read) and {counts[2]} labels; give each word, "
                "between spaces, one label"
            )
    if not texts:
        return {LABELS: [], "word_spans": [], "label_words": torch.zeros(0, 1, dtype=torch.long)}
    encoded = tokenizer(
        cleaned, padding=True, truncation=True, max_length=max_length, return_offsets_mapping=True, verbose=False
    )
    rows = [_firsts(places, spans_of(said)) for places, said in zip(encoded["offset_mapping"], cleaned, strict=True)]
    return {
        LABELS: [list(text.facts[LABELS]) for text in texts],
        "word_spans": [spans_of(text.text) for text in texts],
        "label_words": torch.tensor(rows),
    }


def _firsts(places: Sequence[tuple[int, int]], words: Sequence[tuple[int, int]]) -> list[int]:
    """At each token, from a character to another, the number of the word that no token before it is of, or -1."""
    number, found = 0, []
    for start, stop in places:
        while number < len(words) and words[number][1] <= start:  # a word that has no token
            number += 1
        begins = number < len(words) and stop > words[number][0]
        found.append(number if begins else -1)
        number += begins
    return found
