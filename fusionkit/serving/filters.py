"""What is said may be looked at before it is sent: a filter is any callable (kind, text) -> text, built by the configuration."""

import re
from collections.abc import Sequence
from typing import Any, Protocol

from fusionkit.errors import ConfigError
from fusionkit.serving.problems import Problem

SAID = ("answer", "caption")  # the kinds whose texts the model makes up


class Filter(Protocol):
    """Gives the text that is sent in place of a text; ``kind`` is "answer" or "caption". May raise ``Problem``.

    One that has ``held``, a number of words, lets a stream run that many words behind, so that what it looks for is never sent
    in parts. Of one that has none a stream sends the whole text at its end.
    """

    def __call__(self, kind: str, text: str) -> str: ...


class Words:
    """Puts ``mark`` in the place of words and phrases, in any case, whole words only; or refuses the text (``refuse``)."""

    def __init__(self, words: Sequence[str], mark: str = "***", refuse: bool = False) -> None:
        given = [] if isinstance(words, str) else [str(word).split() for word in words]
        if not given or not all(given):
            raise ConfigError(f"filter.words is {words!r}, but has to be a list of words or phrases")
        phrases = (r"\s+".join(map(re.escape, phrase)) for phrase in sorted(given, key=len, reverse=True))
        self.pattern = re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)", re.IGNORECASE)
        self.held = max(map(len, given))
        self.mark, self.refuse = mark, refuse

    def __call__(self, kind: str, text: str) -> str:
        if self.refuse and self.pattern.search(text):
            raise Problem(422, f"the {kind} holds words that this service does not send")
        return self.pattern.sub(lambda _: self.mark, text)


def filtered(kind: str, value: Any, rule: Filter | None) -> Any:
    """A value of JSON with all its texts as the filter gives them."""
    if rule is None or kind not in SAID:
        return value
    if isinstance(value, str):
        text = rule(kind, value)
        if not isinstance(text, str):
            raise TypeError(f"the filter gave {type(text).__name__} in the place of a text")
        return text
    if isinstance(value, dict):
        return {name: filtered(kind, each, rule) for name, each in value.items()}
    return [filtered(kind, each, rule) for each in value] if isinstance(value, list | tuple) else value


def draft(kind: str, text: str, rule: Filter | None) -> str | None:
    """As much of an unfinished text as may be sent already; None: nothing."""
    if rule is None:
        return text
    held = getattr(rule, "held", None)
    if held is None:
        return None
    said = str(filtered(kind, text, rule))  # a phrase that is not whole yet is in what is held back
    words = list(re.finditer(r"\S+", said))
    return said[: words[-held - 1].end()] if len(words) > held else ""
