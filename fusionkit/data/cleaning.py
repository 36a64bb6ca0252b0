"""Texts as published models were trained to read them, before they are tokenised."""

from dataclasses import dataclass


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
