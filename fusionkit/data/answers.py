"""The answer vocabulary of VQA as classification, and its soft targets."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from fusionkit.data.files import read_json
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.evaluation.vqa import normalize_answer
from fusionkit.storage import write_text

PUBLISHED_MIN_COUNT = 9
"""Keeps 3,129 answers of VQA v2 train and val (ViLT's write_vqa.py, UNITER's ans2label.json)."""

_normalize = lru_cache(maxsize=200_000)(normalize_answer)  # people give the same answers again and again


def leave_one_out(count: int, total: int) -> float:
    """The official accuracy of an answer that `count` of `total` people gave: 1, 2, 3, 4 of ten are .3, .6, .9 and 1.

    Each person in turn is left out, and three others who agree are enough. A person alone is taken at his word.
    """
    if total == 1:
        return 1.0
    return ((total - count) * min(3, count) + count * min(3, count - 1)) / (3 * total)


def n_over_3(count: int, total: int) -> float:
    """The simpler target of the bottom-up-attention line: .33, .67, 1."""
    return min(1.0, count / 3)


TARGETS: dict[str, Callable[[int, int], float]] = {"leave_one_out": leave_one_out, "n_over_3": n_over_3}


class AnswerVocabulary:
    """The answers that a VQA head chooses among, in the order of its logits."""

    def __init__(self, answers: Sequence[str], target: str = "leave_one_out") -> None:
        if target not in TARGETS:
            raise ConfigError(f"data.answers.target: there is no soft target '{target}'; {suggest(target, TARGETS)}")
        self.answers = list(answers)
        self.index = {answer: number for number, answer in enumerate(self.answers)}
        self.target = target
        if len(self.index) < len(self.answers):
            twice = Counter(self.answers).most_common(1)[0][0]
            raise DataError(f"the answer list has '{twice}' twice; every answer needs one index: remove one")

    @classmethod
    def build(
        cls, answers: Iterable[str], min_count: int = PUBLISHED_MIN_COUNT, target: str = "leave_one_out"
    ) -> "AnswerVocabulary":
        """The published rule: of the normalised `multiple_choice_answer`s those that occur at least `min_count` times.

        The most frequent first. Raises ConfigError where none is that frequent.
        """
        counts = Counter(map(_normalize, answers))
        kept = sorted(
            (answer for answer in counts if counts[answer] >= min_count), key=lambda answer: (-counts[answer], answer)
        )
        if not kept:
            most = max(counts.values(), default=0)
            raise ConfigError(
                f"data.answers.min_count={min_count} leaves no answer (the most frequent occurs {most} times); lower it"
            )
        return cls(kept, target)

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
        counts = Counter(map(_normalize, answers))
        known = ((self.index[answer], count) for answer, count in counts.items() if answer in self.index)
        return {index: TARGETS[self.target](count, len(answers)) for index, count in known}

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
    if len(set(content)) < len(content):
        twice = Counter(content).most_common(1)[0][0]
        raise DataError(f"{path} has the answer '{twice}' twice; every answer needs one index: remove one")
    return content
