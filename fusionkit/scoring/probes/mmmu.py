"""MMMU, questions of thirty college subjects with pictures (Yue et al. 2024): multiple choice, and a few open ones."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fusionkit.data.images import has_pixels
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError, suggest
from fusionkit.files.unicode import metric_words
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.examples import Example, evenly
from fusionkit.scoring.probes.mmmu_answers import choice_of, is_open_right, letters
from fusionkit.scoring.probes.pairs import COSINE, HOW, given_scores, pair_schema, records_of
from fusionkit.scoring.record_schema import RecordSchema, is_text
from fusionkit.scoring.records import Record, index_records
from fusionkit.scoring.sample_scores import Row, SampleScores, scores_of
from fusionkit.scoring.text_only_models import guesses

DISCIPLINES: Mapping[str, tuple[str, ...]] = {
    "art_and_design": ("Art", "Art_Theory", "Design", "Music"),
    "business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "health_and_medicine": (
        *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine"),
        *("Pharmacy", "Public_Health"),
    ),
    "humanities_and_social_science": ("History", "Literature", "Sociology", "Psychology"),
    "tech_and_engineering": (
        *("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power"),
        *("Materials", "Mechanical_Engineering"),
    ),
}
HOME = {subject: discipline for discipline, subjects in DISCIPLINES.items() for subject in subjects}


class MMMU(BaseScorer):
    """Accuracy in percent, of all questions, by discipline and by subject, of answers in free text as MMMU's script reads them.

    A question without an answer is answered wrongly, as is one whose answer names no option: the published script draws an
    option there (``mmmu_answers.choice_of``).
    """

    schema: Sequence[RecordSchema] = (RecordSchema("questions", "question_id", "answer", "a text", is_text),)
    metrics = MappingProxyType({"accuracy": True})

    def questions(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Text]]:
        """The questions that are scored, with their images."""
        for sample in samples:
            yield from ((sample, text) for text in sample.texts.get("questions", ()) if text.facts.get("answer"))

    def answers(self, records: Sequence[Record], samples: Sequence[Sample]) -> dict[Any, str]:
        """What was answered to each question: the letter of an option, where it has some, or "" for none of them."""
        asked = {text.id: text for _, text in self.questions(samples)}
        known = {text.id for sample in samples for text in sample.texts.get("questions", ())}
        found = {key: str(record["answer"]) for key, record in index_records(records, "question_id", known).items()}
        return {
            key: (choice_of(found[key], text.facts["options"]) or "") if text.facts["options"] else found[key]
            for key, text in asked.items()
            if key in found
        }

    def records(self, answers: Mapping[Any, str], samples: Sequence[Sample]) -> list[Record]:
        """Records that answer so."""
        return [{"question_id": key, "answer": answer} for key, answer in answers.items()]

    def told(self, samples: Sequence[Sample]) -> dict[str, str]:
        """What has to be said beside the scores."""
        several = sum(text.facts["images"] > 1 for _, text in self.questions(samples))
        told = {"text only": "always the commonest letter, by the known answers"}
        if several:
            told["images"] = f"{several:,} questions name several pictures, of which the first alone is shown"
        return told

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a question."""
        given = self.answers(records, samples)
        asked = list(self.questions(samples))
        words = metric_words(text.facts["subject"] for _, text in asked)
        rows: list[Row] = []
        for sample, text in asked:
            score = 100.0 * (text.id in given and is_right(text, given[text.id]))
            subject = text.facts["subject"]
            names = ["accuracy", *([f"accuracy/{HOME[subject]}"] if subject in HOME else [])]
            values = dict.fromkeys([*names, f"accuracy/subject/{words[subject]}"], score)
            rows.append({"id": text.id, "score": score, "image_id": sample.image_id, "values": values})
        return SampleScores(rows, self.told(samples) if rows else {})

    def summary(self, scores: dict[str, float], samples: Sequence[Sample]) -> dict[str, float]:
        """Without subjects."""
        return {name: value for name, value in scores.items() if "/subject/" not in name}

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """Always the letter that is right most often; and any of a question's options."""
        asked = list(self.questions(samples))
        common = Counter(text.facts["answer"] for _, text in asked if text.facts["options"]).most_common(1)
        if not common:
            return {}
        by_text = score(self.records({text.id: common[0][0] for _, text in asked}, samples), samples)
        rows = self.rows([], samples).rows
        for row, (_, text) in zip(rows, asked, strict=True):
            row["values"] = dict.fromkeys(
                row["values"], 100.0 / max(1, len(text.facts["options"])) * bool(text.facts["options"])
            )
        return guesses(by_text, scores_of(rows))

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """Each question with the option that was chosen, or the answer."""
        given = self.answers(records, samples)
        asked = {text.id: (sample, text) for sample, text in self.questions(samples)}
        found = []
        for row in evenly(rows, limit):
            sample, text = asked[row["id"]]
            said, true = given.get(text.id) or None, text.facts["answer"]
            known = true if isinstance(true, str) else ", ".join(true)
            image = sample.image if has_pixels(sample.image) else None
            place = (sample.image_id, image, text.text, said, known)
            found.append(Example(text.id, *place, row["score"], sample.size, upright=sample.upright))
        return found


class MMMUChoices(MMMU):
    """As ``MMMU``, of a model that scores texts: of a question's options the one that scores highest; equal ones are none.

    Open questions are left out. ``value``  what records say of a text (``pairs.HOW``).
    """

    def __init__(self, value: str = COSINE) -> None:
        if value not in HOW:
            raise ConfigError(f"value of a scorer of MMMU is '{value}'; {suggest(value, HOW)}")
        self.value, self.schema = value, (pair_schema(value),)

    def questions(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Text]]:
        """Those with options."""
        return ((sample, text) for sample, text in super().questions(samples) if text.facts["options"])

    def answers(self, records: Sequence[Record], samples: Sequence[Sample]) -> dict[Any, str]:
        """The letter of the option that scores highest, of those that have a score."""
        given = given_scores(records, samples, self.value)
        found = {}
        for _, text in self.questions(samples):
            scores = {
                name: given[key]
                for name in letters(len(text.facts["options"]))
                if (key := f"{text.id}/{name}") in given
            }
            best = max(scores.values(), default=0.0)
            names = [name for name, score in scores.items() if score == best]
            if scores:
                found[text.id] = names[0] if len(names) == 1 else ""
        return found

    def records(self, answers: Mapping[Any, str], samples: Sequence[Sample]) -> list[Record]:
        """Records that choose so."""
        options = {text.id: letters(len(text.facts["options"])) for _, text in self.questions(samples)}
        scores = {f"{key}/{name}": float(name == answers[key]) for key in answers for name in options[key]}
        return records_of(scores, self.value)

    def told(self, samples: Sequence[Sample]) -> dict[str, str]:
        """How it was asked."""
        left = sum(1 for _ in super().questions(samples)) - sum(1 for _ in self.questions(samples))
        told = {"scored by": f"the option that scores highest behind its question: {HOW[self.value]}"}
        return (
            told
            | ({"left out": f"{left:,} open questions, which have no options"} if left else {})
            | super().told(samples)
        )


def is_right(question: Text, answer: str) -> bool:
    """Whether an answer, or a letter where there are options, is right."""
    true = question.facts["answer"]
    if question.facts["options"]:
        return answer == true if isinstance(true, str) else answer in true
    return is_open_right(answer, true)
