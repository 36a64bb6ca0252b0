"""DocVQA, questions about scanned documents (Mathew et al. 2021), by ANLS, the average normalised Levenshtein similarity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from fusionkit.data.sample import Sample
from fusionkit.scoring.records import Record
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.sheet import Sheet
from fusionkit.scoring.vqa import VQA, annotated_questions, question_accuracies

LEAST = 0.5  # below which a similarity counts as none
METRIC, EXACT = "anls", "accuracy"


def distance(one: str, other: str) -> int:
    """Levenshtein's: the fewest letters to insert, remove or replace."""
    before = list(range(len(other) + 1))
    for place, letter in enumerate(one, 1):
        now = [place]
        for at, other_letter in enumerate(other, 1):
            now.append(min(before[at] + 1, now[-1] + 1, before[at - 1] + (letter != other_letter)))
        before = now
    return before[-1]


def anls(answer: str, answers: Sequence[str]) -> float:
    """The similarity in 0..1 with the nearest of the known answers, 0 where it is below a half.

    As the evaluation script of DocVQA's server (Robust Reading Competition) has it: what is compared is in small letters with
    single spaces, what the distance is divided by is the length of the longer text as it was given, and a half counts.
    """
    plain = _plain(answer)
    best = 0.0
    for known in answers:
        most = max(len(known.upper()), len(answer.upper()))
        best = max(best, 1 - distance(_plain(known), plain) / most if most else 1.0)
    return best if best >= LEAST else 0.0


def exact(answer: str, answers: Sequence[str]) -> float:
    """1 where the answer is one of those known, but for case and spaces."""
    return float(_plain(answer) in map(_plain, answers))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


@dataclass(frozen=True)
class DocVQA(VQA):
    """ANLS in percent, and the share of answers that are one of those known to the letter; all answers of a question count alike.

    A question without an answer scores 0; one whose answers are secret is left out.
    """

    metrics: ClassVar[Mapping[str, bool]] = MappingProxyType({METRIC: True, EXACT: True})  # type: ignore[misc]

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row an annotated question."""
        similar, same = (question_accuracies(records, samples, rule) for rule in (anls, exact))
        rows = []
        for sample in samples:
            for question in annotated_questions([sample]):
                score = 100 * similar[question.id]
                values = {METRIC: score, EXACT: 100 * same[question.id]}
                rows.append({"id": question.id, "score": score, "image_id": sample.image_id, "values": values})
        return SampleScores(rows)

    def summary(self, scores: dict[str, float], samples: Sequence[Sample]) -> dict[str, float]:
        """All of them."""
        return scores

    def notes(self, samples: Sequence[Sample]) -> Mapping[str, str]:
        """None: every right answer can reach 100."""
        return {}

    def sheet(self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row]) -> Sheet:
        """Question, document, the given answer and those known, by ANLS."""
        return self.sheet_by(anls, records, samples)
