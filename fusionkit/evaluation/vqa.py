"""The official VQA v2 accuracy, quirks included (GT-Vision-Lab/VQA, vqaEval.py of 2021). Imports no torch."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError, suggest
from fusionkit.evaluation.form import Form, is_text
from fusionkit.evaluation.judging import Judged, scores_of
from fusionkit.evaluation.records import Record, index_records

AnswerRule = Callable[[str, Sequence[str]], float]
QUESTION_TYPE = "question_type/"

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the script passes re.UNICODE (32) where re.sub takes a count
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}

# "she's" and "let's" are missing on purpose: the published table maps them to themselves, so "shes" stays "shes".
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've"
)
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTED.split() for at, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # the published table has this one the wrong way round


def normalize_answer(answer: str) -> str:
    """The official processing of an answer: punctuation, then number words, articles and contractions."""
    return _process_words(_process_punctuation(_clean_spaces(answer)))


def official_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Agreement in 0..1 with the human answers: min(1, matches among the others / 3), averaged over the humans.

    As in the official script both sides are normalised only where the humans disagree: "Yes" has 0 against ten "yes".
    """
    answer, answers = _clean_spaces(answer), [_clean_spaces(human) for human in answers]
    if len(set(answers)) > 1:
        answer, answers = normalize_answer(answer), [normalize_answer(human) for human in answers]
    return _agreement(answer, answers)


def always_normalized_accuracy(answer: str, answers: Sequence[str]) -> float:
    """As ``official_accuracy``, but both sides are always normalised.

    MMF's ``EvalAIAnswerProcessor`` drops commas and question marks and splits off 's before that; this does not.
    """
    return _agreement(normalize_answer(answer), [normalize_answer(human) for human in answers])


RULES: dict[str, AnswerRule] = {"official": official_accuracy, "evalai": always_normalized_accuracy}


def score_vqa(records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
    """Official percentages over all questions and by answer type, from ``{"question_id", "answer"}`` records.

    An unanswered question scores 0; questions without human answers (a test split) are left out.
    The official script rounds to two decimals, this does not.
    """
    scores = scores_of(VQAMeasure()(records, samples).rows)
    return {f"vqa_{name.replace('/', '_')}": value for name, value in scores.items() if QUESTION_TYPE not in name}


@dataclass(frozen=True)
class VQAMeasure:
    """Judges answers by the ``official`` script's rule, or by ``evalai``'s, which always normalises both sides.

    Every question counts for ``accuracy``, ``accuracy/<answer type>`` and ``accuracy/question_type/<question type>``; under
    the other rule these are ``evalai_accuracy``, lest one is taken for the official score.
    """

    rule: str = "official"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"there is no VQA rule '{self.rule}'; {suggest(self.rule, RULES)}")

    @property
    def forms(self) -> tuple[Form, ...]:
        return (Form("questions", "question_id", "answer", "a text", is_text),)

    def __call__(self, records: Sequence[Record], samples: Sequence[Sample]) -> Judged:
        accuracies = question_accuracies(records, samples, RULES[self.rule])
        name = "accuracy" if self.rule == "official" else f"{self.rule}_accuracy"
        rows = []
        for sample in samples:
            for question in annotated_questions([sample]):
                score = 100 * accuracies[question.id]
                values = dict.fromkeys([name, *(f"{name}/{part}" for part in _types(question))], score)
                rows.append({"id": question.id, "score": score, "image_id": sample.image_id, "values": values})
        return Judged(rows, {"rule": self.rule})


def question_accuracies(
    records: Sequence[Record], samples: Sequence[Sample], rule: AnswerRule = official_accuracy
) -> dict[int | str, float]:
    """Accuracy in 0..1 of every annotated question, by question id."""
    asked = {question.id for sample in samples for question in sample.texts.get("questions", ())}
    given = index_records(records, "question_id", asked)
    return {
        question.id: rule(given[question.id]["answer"], question.facts["answers"]) if question.id in given else 0.0
        for question in annotated_questions(samples)
    }


def annotated_questions(samples: Sequence[Sample]) -> Iterator[Text]:
    """The questions that have human answers."""
    for sample in samples:
        yield from (question for question in sample.texts.get("questions", ()) if question.facts.get("answers"))


def _types(question: Text) -> Iterator[str]:
    """ "yes_no", "question_type/is_this_a"."""
    for fact, before in (("answer_type", ""), ("question_type", QUESTION_TYPE)):
        if kind := question.facts.get(fact):
            yield before + re.sub(r"[^a-z0-9]+", "_", kind.lower()).strip("_")


def _agreement(answer: str, answers: Sequence[str]) -> float:
    matches = [human == answer for human in answers]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def _clean_spaces(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _process_punctuation(answer: str) -> str:
    """A mark vanishes if it touches a space anywhere in the answer (or a number has a comma), else is a space."""
    has_thousands = _THOUSANDS.search(answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        vanishes = has_thousands or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if vanishes else " ")
    return _PERIOD.sub("", text, count=_MAX_PERIODS)


def _process_words(answer: str) -> str:
    words = (_NUMBERS.get(word, word) for word in answer.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
