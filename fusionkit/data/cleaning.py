"""Texts as published models were trained to read them, before they are tokenised, and what stands around them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusionkit.errors import ConfigError, suggest

PLACE = "{text}"
KINDS = {"question": "questions", "phrase": "expressions", "text": "captions"}
"""By word of a request, the kind whose template it is read in."""


@dataclass(frozen=True)
class Clean:
    """Lower case, without the characters of ``removed``, with spaces for those of ``spaced``, cut to so many ``words``.

    The defaults are ALBEF's and X-VLM's ``pre_caption`` (dataset/utils.py); BLIP's: removed='' and spaced='.!"()*#:;~'.
    Changes what the model reads, not what a scorer compares with.
    """

    words: int = 30
    removed: str = ",.'!?\"()*#:;~"
    spaced: str = "-/"

    def __call__(self, text: str) -> str:
        changed = {**dict.fromkeys(self.removed), **dict.fromkeys(self.spaced, " ")}
        return " ".join(
            text.lower().translate(str.maketrans(changed)).replace("<person>", "person").split()[: self.words]
        )


@dataclass(frozen=True)
class Ending:
    """A question as VisualBERT was trained to answer it: without commas and question marks, but for ``end`` behind it.

    Its answer is read off the state of that [MASK] (uclanlp/visualbert, ``vqa_dataset.py``, ``no_next_sentence``).
    """

    end: str = " ? [MASK]"

    def __call__(self, text: str) -> str:
        return text.translate(str.maketrans("", "", ",?")).strip() + self.end


def check_templates(templates: Any, kinds: Iterable[str], key: str) -> None:
    """Raise ConfigError unless these are templates of the kinds, each with one place for the text."""
    if templates is None:
        return
    if not isinstance(templates, Mapping):
        raise ConfigError(
            f"{key} is {templates!r}, but has to be a section of a template a kind: {{questions: 'Q: {PLACE} A:'}}"
        )
    for kind, template in templates.items():
        if kind not in (known := list(kinds)):
            raise ConfigError(f"{key} names '{kind}', of which the source reads no texts; {suggest(str(kind), known)}")
        if not isinstance(template, str) or template.count(PLACE) != 1:
            raise ConfigError(f"{key}.{kind} is {template!r}, but has to have {PLACE} once, where the text goes")


def filled(template: str, texts: Sequence[str], tokenizer: Any, max_length: int) -> tuple[list[str], int]:
    """Each text within the template, cut so that the whole comes to ``max_length`` tokens at most; and how many were cut."""
    before, _, behind = template.partition(PLACE)
    whole = [before + text + behind for text in texts]
    encoded = tokenizer(whole, return_offsets_mapping=True)
    cut = 0
    for row, (ids, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
        if (over := len(ids) - max_length) <= 0:
            continue
        end = len(before) + len(texts[row])
        starts = [start for start, stop in offsets if len(before) <= start < stop <= end]
        kept = starts[-over] - len(before) if over <= len(starts) else 0
        whole[row], cut = before + texts[row][:kept].rstrip() + behind, cut + 1
    return whole, cut
