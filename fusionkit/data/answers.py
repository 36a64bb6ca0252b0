"""The answer vocabulary of VQA as classification, and its soft targets."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fusionkit.data.vqa_answers import answer_key, clean_spaces, leave_one_out, normalize_answer
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.files.atomic import write_text
from fusionkit.files.plain import read_json
from fusionkit.files.unicode import is_unicode, shown

PUBLISHED_MIN_COUNT = 9
"""Keeps 3,129 answers of VQA v2 train and val (ViLT's write_vqa.py, UNITER's ans2label.json), one of which is "": all that
normalising leaves nothing of ("a", "the"). Here each such answer counts for itself."""


def n_over_3(count: int, total: int) -> float:
    """The simpler target of the bottom-up-attention line: .33, .67, 1; of fewer than three people all are enough."""
    return min(1.0, count / min(3, total))


TARGETS: dict[str, Callable[[int, int], float]] = {"leave_one_out": leave_one_out, "n_over_3": n_over_3}


class AnswerVocabulary:
    """The answers that a VQA head chooses among, in the order of its logits.

    People's spellings of an answer are one (``vqa.answer_key``). Where two of the list would be, the normalised one is meant.
    """

    def __init__(self, answers: Sequence[str], target: str = "leave_one_out") -> None:
        if target not in TARGETS:
            raise ConfigError(f"data.answers.target: there is no soft target '{target}'; {suggest(target, TARGETS)}")
        self.answers = list(answers)
        self.target = target
        numbers = {answer: number for number, answer in enumerate(self.answers)}
        if len(numbers) < len(self.answers):
            twice = Counter(self.answers).most_common(1)[0][0]
            raise DataError(f"the answer list has '{twice}' twice; every answer needs one index: remove one")
        self.index: dict[str, int] = {}
        for answer, number in numbers.items():
            self.index.setdefault(answer_key(answer), number)
        self.index |= {answer: number for answer, number in numbers.items() if answer == answer_key(answer)}

    @classmethod
    def build(
        cls, answers: Iterable[str], min_count: int = PUBLISHED_MIN_COUNT, target: str = "leave_one_out"
    ) -> "AnswerVocabulary":
        """The published rule: of the normalised `multiple_choice_answer`s those that occur at least `min_count` times.

        The most frequent first, each as most people spell it: the official metric normalises nothing where all agree.
        Raises ConfigError where none is that frequent.
        """
        spellings: dict[str, Counter[str]] = {}
        for answer in answers:
            if answer := clean_spaces(answer):
                spellings.setdefault(answer_key(answer), Counter())[answer] += 1
        counts = {key: spelt.total() for key, spelt in spellings.items()}
        kept = sorted((key for key in counts if counts[key] >= min_count), key=lambda key: (-counts[key], key))
        if not kept:
            most = max(counts.values(), default=0)
            raise ConfigError(
                f"data.answers.min_count={min_count} leaves no answer (the most frequent occurs {most} times); lower it"
            )
        spelt = [min(spellings[key], key=lambda each: (-spellings[key][each], each != key, each)) for key in kept]
        return cls(spelt, target)

    @classmethod
    def load(cls, path: str | Path, target: str = "leave_one_out") -> "AnswerVocabulary":
        """A published answer list, as ``read_answers`` reads it. Raises DataError."""
        if not Path(path).is_file():
            raise DataError(
                f"data.answers: the answer list {path} does not exist; give a JSON file, or the rule to build one by"
            )
        return cls(read_answers(Path(path)), target)

    def save(self, path: str | Path) -> None:
        """Write the answers as a JSON list, which `load` reads."""
        write_text(Path(path), json.dumps(self.answers, indent=0, ensure_ascii=False) + "\n")

    def scores(self, answers: Sequence[str]) -> dict[int, float]:
        """Soft targets in 0..1 by index, from the people's answers to one question; other answers have none."""
        counts = Counter(place for answer in answers if (place := self.place(answer)) is not None)
        return {place: TARGETS[self.target](count, len(answers)) for place, count in counts.items()}

    def place(self, answer: str) -> int | None:
        """The number of an answer, however it is spelt; older lists have "" for what normalising leaves nothing of."""
        return self.index.get(answer_key(answer), self.index.get(normalize_answer(answer)))

    def __len__(self) -> int:
        return len(self.answers)


def read_answers(path: Path) -> list[str]:
    """Answers in the order of their indices, each once, from a JSON file in any of the forms they are published in.

    A list, a list under "answers", an object from answer to index, or one from index to answer. Raises DataError.
    """
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("answers"), list):
        content = content["answers"]
    if isinstance(content, dict):
        numbers = list(range(len(content)))
        if {type(value) for value in content.values()} == {str} and sorted(content) == sorted(map(str, numbers)):
            content = [content[str(number)] for number in numbers]
        elif sorted(content.values(), key=str) == sorted(numbers, key=str):
            content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not all(isinstance(answer, str) for answer in content) or not content:
        raise DataError(f"{path} is no answer list; expected a JSON list of strings, or an object from answer to index")
    if (broken := next((answer for answer in content if not is_unicode(answer)), None)) is not None:
        raise DataError(f"{path} has the answer {shown(broken)}, which is no text in Unicode; correct it")
    if len(set(content)) < len(content):
        twice = Counter(content).most_common(1)[0][0]
        raise DataError(f"{path} has the answer '{twice}' twice; every answer needs one index: remove one")
    return content
