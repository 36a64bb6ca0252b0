"""POPE: does a model see objects that are not there? Yes or no to each question (Li et al. 2023)."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fusionkit.data.images import has_pixels
from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.foils import LABEL, PAIR
from fusionkit.errors import ConfigError, suggest
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.corpus_metrics import RATIOS
from fusionkit.scoring.examples import Example, evenly
from fusionkit.scoring.probes.pairs import COSINE, FOLDS, HOW, folds, given_scores, pair_schema, records_of
from fusionkit.scoring.record_schema import RecordSchema, is_text
from fusionkit.scoring.records import Record, index_records
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.text_only_models import Majority, guesses

DENIALS = {"No", "not", "no"}
TEXT_ONLY = f"the commonest answer to the same question about the benchmark's other images (in {FOLDS} parts)"


def says_yes(answer: str) -> bool:
    """Whether an answer counts as a yes by POPE's `evaluate.py`: unless No, not or no is a word of its first sentence."""
    first = answer.split(".")[0].replace(",", "")
    return not DENIALS & set(first.split(" "))


class Pope(BaseScorer):
    """Accuracy, and precision, recall and F1 of a yes, and the share of yes, in percent, as POPE's `evaluate.py` counts.

    A question without an answer counts as answered wrongly. A metric whose whole is 0 (precision without a yes) is missing.
    """

    schema: Sequence[RecordSchema] = (RecordSchema("questions", "question_id", "answer", "a text", is_text),)
    metrics = MappingProxyType(dict.fromkeys(("accuracy", "precision", "recall", "f1"), True))
    headlines = ("f1", "accuracy")

    def answers(self, records: Sequence[Record], samples: Sequence[Sample]) -> dict[Any, bool]:
        """Whether each question was answered by a yes."""
        known = {text.id for sample in samples for text in questions_of(sample)}
        found = index_records(records, "question_id", known)
        return {key: says_yes(record["answer"]) for key, record in found.items()}

    def records(self, answers: Mapping[Any, bool]) -> list[Record]:
        """Records that answer so."""
        return [{"question_id": key, "answer": "yes" if yes else "no"} for key, yes in answers.items()]

    def told(self) -> dict[str, str]:
        """What has to be said beside the scores."""
        return {"text only": TEXT_ONLY}

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a question."""
        given = self.answers(records, samples)
        rows = []
        for sample in samples:
            for text in questions_of(sample):
                is_true = text.facts[LABEL] == "yes"
                yes = given.get(text.id, not is_true)
                score, hit = 100.0 * (yes == is_true), int(yes and is_true)
                sums = {
                    f"{RATIOS}precision": [hit, int(yes)],
                    f"{RATIOS}recall": [hit, int(is_true)],
                    f"{RATIOS}f1": [2 * hit, int(yes) + int(is_true)],
                }
                values = {"accuracy": score, "yes_ratio": 100.0 * yes}
                row = {"id": text.id, "score": score, "image_id": sample.image_id, "values": values, "sums": sums}
                rows.append(row)
        return SampleScores(rows, self.told() if rows else {})

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """The commonest answer to the very question about other images, else to any; and always a yes."""
        guessed: dict[Any, bool] = {}
        for own, others in folds(samples):
            majority = Majority(_observed(others))
            for text in _all_questions(own):
                guessed[text.id] = majority((text.text.lower(), "")) != "no"
        always = dict.fromkeys(guessed, True)
        return guesses(score(self.records(guessed), samples), score(self.records(always), samples))

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """Each question with a yes or a no."""
        given = self.answers(records, samples)
        asked = {text.id: (sample, text) for sample in samples for text in questions_of(sample)}
        found = []
        for row in evenly(rows, limit):
            sample, text = asked[row["id"]]
            said = ("no", "yes")[given[text.id]] if text.id in given else None
            image = sample.image if has_pixels(sample.image) else None
            truth = text.facts[LABEL]
            found.append(
                Example(
                    text.id,
                    sample.image_id,
                    image,
                    text.text,
                    said,
                    truth,
                    row["score"],
                    sample.size,
                    upright=sample.upright,
                )
            )
        return found


class PopeStatements(Pope):
    """As ``Pope``, of a model that scores captions: yes where "There is a THING" scores above "There is no THING".

    ``value``  what records say of a caption (``pairs.HOW``).
    """

    def __init__(self, value: str = COSINE) -> None:
        if value not in HOW:
            raise ConfigError(f"value of a scorer of POPE is '{value}'; {suggest(value, HOW)}")
        self.value, self.schema = value, (pair_schema(value),)

    def answers(self, records: Sequence[Record], samples: Sequence[Sample]) -> dict[Any, bool]:
        """Whether each question's yes scores higher than its no."""
        given = given_scores(records, samples, self.value)
        found: dict[Any, dict[str, float]] = {}
        for text in (text for sample in samples for text in sample.texts.get("captions", ())):
            if text.id in given:
                found.setdefault(text.facts[PAIR], {})[text.facts["says"]] = given[text.id]
        return {key: scores["yes"] > scores["no"] for key, scores in found.items() if len(scores) == 2}

    def records(self, answers: Mapping[Any, bool]) -> list[Record]:
        """Records that answer so."""
        scores = {
            f"{key}/{says}": float(yes == (says == "yes")) for key, yes in answers.items() for says in ("yes", "no")
        }
        return records_of(scores, self.value)

    def told(self) -> dict[str, str]:
        """How it was asked, which is not POPE's way."""
        how = f'a yes where "There is a THING" scores higher than "There is no THING": {HOW[self.value]}'
        return {"scored by": how, **super().told()}


def questions_of(sample: Sample) -> list[Text]:
    """The questions whose answer is known."""
    return [text for text in sample.texts.get("questions", ()) if LABEL in text.facts]


def _all_questions(samples: Sequence[Sample]) -> Iterable[Text]:
    return (text for sample in samples for text in questions_of(sample))


def _observed(samples: Sequence[Sample]) -> Iterable[tuple[str, str]]:
    """Each question, and any, with its answer."""
    return ((context, text.facts[LABEL]) for text in _all_questions(samples) for context in (text.text.lower(), ""))
