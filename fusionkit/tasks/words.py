"""Token ids to text and back, by the tokenizer's vocabulary alone: WordPiece, word-level, SentencePiece, BPE of bytes."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property

from fusionkit.errors import ConfigError
from fusionkit.files.unicode import UNSPACED

# what marks the inner piece of a word (WordPiece), a word's first piece (BPE, SentencePiece), and its last one (CLIP)
_PIECE, _SPACE, _META, _LAST = "##", "\u0120", "\u2581", "</w>"

_UNSPACED = UNSPACED + "\u3001\u3002\uff01-\uff0f\uff1a-\uff1f"  # and the marks that such languages write


class Words:
    """``tokens`` is the vocabulary by id; ``special`` ids are not part of a text."""

    def __init__(self, tokens: Sequence[str], special: Iterable[int]) -> None:
        self.tokens, self.special = tuple(tokens), frozenset(special)

    @cached_property
    def marks(self) -> tuple[str, str]:
        """What a word begins and ends with, of those that mark spaces."""
        for mark in (_SPACE, _META):
            if any(token.startswith(mark) for token in self.tokens):
                return mark, ""
        return "", _LAST if any(token.endswith(_LAST) for token in self.tokens) else ""

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token."""
        return {token: number for number, token in enumerate(self.tokens)}

    def text(self, ids: Iterable[int]) -> str:
        """The text of some tokens, special ones left out; marks stand as they do in writing ("a dog's, a cat")."""
        pieces = [self.tokens[number] for number in ids if number not in self.special and number < len(self.tokens)]
        before, behind = self.marks
        if before == _SPACE:
            return _from_bytes("".join(pieces)).strip()
        if before == _META:
            return _from_byte_names("".join(pieces)).replace(_META, " ").strip()
        if behind:
            pieces = _from_bytes("".join(pieces).replace(_LAST, _SPACE)).split()
        text = " ".join(pieces).replace(f" {_PIECE}", "")
        text = re.sub(rf"(?<=[{_UNSPACED}]) (?=[{_UNSPACED}])", "", text)
        return re.sub(r"(?<=\w) ' (?=\w)", "'", re.sub(r" (?=[.,!?;:%])", "", text))

    def spell(self, text: str, key: str) -> list[int]:
        """The ids of a text of words, and marks behind them; ConfigError naming ``key`` where one of them is not one token."""
        return [number for word in text.split() for number in self._spell_word(word, key)]

    def _spell_word(self, word: str, key: str) -> list[int]:
        before, behind = self.marks
        if before + word + behind in self.ids:
            return [self.ids[before + word + behind]]
        parts = re.findall(r"\w+(?:'\w+)?|[^\w\s]+", word)  # as tokenizers cut "photo:" and "photo..."
        pieces = [(before if not place else "") + part + behind for place, part in enumerate(parts)]
        for part, piece in zip(parts, pieces, strict=True):
            if piece not in self.ids:
                raise ConfigError(f"{key}: '{part}' is no token of the tokenizer; use whole words that it knows")
        return [self.ids[piece] for piece in pieces]


def _from_byte_names(text: str) -> str:
    """The text in which SentencePiece has named the bytes of letters that it has no token for, as <0xE2>."""
    return re.sub(
        r"(<0x[0-9A-F]{2}>)+",
        lambda run: bytes(int(name, 16) for name in re.findall("x(..)", run[0])).decode("utf-8", errors="replace"),
        text,
    )


def _from_bytes(text: str) -> str:
    """The text that byte-level BPE wrote with one printable character a byte (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
    return bytes(byte_of[letter] for letter in text if letter in byte_of).decode("utf-8", errors="replace")
