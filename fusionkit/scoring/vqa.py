"""The official VQA v2 accuracy, quirks included (GT-Vision-Lab/VQA, vqaEval.py of 2021)."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fusionkit.data.sample import Sample, Text
from fusionkit.data.vqa_answers import answer_key, clean_spaces, leave_one_out, mmf_answer, normalize_answer
from fusionkit.errors import ConfigError, suggest
from fusionkit.files.unicode import metric_words
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.examples import answer_counts
from fusionkit.scoring.record_schema import RecordSchema, is_text
from fusionkit.scoring.records import Record, index_records
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.sheet import GREEN, RED, Note, Panel, Picture, Sheet, worst_first
from fusionkit.scoring.text_only_models import Majority, guesses

AnswerRule = Callable[[str, Sequence[str]], float]
QUESTION_PREFIXES = (3, 2, 1, 0)  # words
QUESTION_TYPE = "question_type/"
AGREEMENT = "agreement"
ENOUGH = 4  # people who all agree, and each of whom has three others that do
WRONGED = {"few answers", "spelling"}  # notes on questions whose right answers the rule calls wrong
REACH = 0.95  # of what agreement can give: a rule that gives right answers less is none to choose a checkpoint by


def official_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Agreement in 0..1 with the human answers: min(1, matches among the others / 3), averaged over the humans.

    As in the official script both sides are normalised only where the humans disagree: "Yes" has 0 against ten "yes".
    """
    answer, answers = clean_spaces(answer), [clean_spaces(human) for human in answers]
    if len(set(answers)) > 1:
        answer, answers = normalize_answer(answer), [normalize_answer(human) for human in answers]
    return _agreement(answer, answers)


def always_normalized_accuracy(answer: str, answers: Sequence[str]) -> float:
    """As ``official_accuracy``, but both sides are always normalised.

    MMF's ``EvalAIAnswerProcessor`` drops commas and question marks and splits off 's before that (``textvqa_accuracy``).
    """
    return _agreement(normalize_answer(answer), [normalize_answer(human) for human in answers])


def textvqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """As ``official_accuracy``, but both sides are always processed as MMF does (its ``TextVQAAccuracyEvaluator``)."""
    return _agreement(mmf_answer(answer), [mmf_answer(human) for human in answers])


def agreement(answer: str, answers: Sequence[str]) -> float:
    """As ``official_accuracy`` with the limits of its rule taken away: 1 can be reached, however people spell and how few.

    Answers are compared by ``answer_key`` and count as ``leave_one_out`` says, which is what an answer head is trained on.
    """
    keys = [answer_key(human) for human in answers]
    return leave_one_out(keys.count(answer_key(answer)), len(keys))


RULES: dict[str, AnswerRule] = {
    "official": official_accuracy,
    "evalai": always_normalized_accuracy,
    "textvqa": textvqa_accuracy,
}


@dataclass(frozen=True)
class VQA(BaseScorer):
    """Answers by the ``official`` script's rule, by ``evalai``'s, which always normalises both sides, or by ``textvqa``'s.

    Every question counts for ``accuracy``, ``accuracy/<answer type>`` and ``accuracy/question_type/<question type>``; under
    another rule these are ``evalai_accuracy``, lest one is taken for the official score. ``agreement`` stands beside it, by
    answer type too where the rule is out of ``reach``; notes say of how many questions the rule calls right answers wrong.
    An unanswered question scores 0, one without human answers (of a test split) is left out. The official script rounds to
    two decimals, this does not.
    """

    rule: str = "official"

    schema = (RecordSchema("questions", "question_id", "answer", "a text", is_text),)
    prefix = "vqa_"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"there is no VQA rule '{self.rule}'; {suggest(self.rule, RULES)}")

    @property
    def metric(self) -> str:
        """What the accuracy is called."""
        return "accuracy" if self.rule == "official" else f"{self.rule}_accuracy"

    @property
    def metrics(self) -> Mapping[str, bool]:  # type: ignore[override]
        """The accuracy by the rule, and the agreement."""
        return {self.metric: True, AGREEMENT: True}

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row an annotated question."""
        accuracies = question_accuracies(records, samples, RULES[self.rule])
        asked = [(sample, question) for sample in samples for question in annotated_questions([sample])]
        agreed = question_accuracies(records, samples, agreement)
        notes = {"rule": self.rule} | question_notes(samples, self.rule)
        misspelt = sum(agreed[key] > accuracies[key] for key in agreed) if not notes.keys() & WRONGED else 0
        if misspelt:
            notes["answers"] = (
                f"{misspelt:,} of the given answers are right but for their spelling, which the rule counts as wrong where "
                f"people all spell alike ('Yes' is not 'yes'); {AGREEMENT} always normalises both sides"
            )
        parts = _type_names([question for _, question in asked])
        is_in_reach = reach(samples, RULES[self.rule]) >= REACH
        rows = []
        for sample, question in asked:
            score = 100 * accuracies[question.id]
            types = parts(question)
            values = dict.fromkeys([self.metric, *(f"{self.metric}/{part}" for part in types)], score)
            shown = [] if is_in_reach else [part for part in types if not part.startswith(QUESTION_TYPE)]
            values |= dict.fromkeys([AGREEMENT, *(f"{AGREEMENT}/{part}" for part in shown)], 100 * agreed[question.id])
            rows.append({"id": question.id, "score": score, "image_id": sample.image_id, "values": values})
        return SampleScores(rows, notes)

    def summary(self, scores: dict[str, float], samples: Sequence[Sample]) -> dict[str, float]:
        """Without question types; ``agreement`` stands first where the official rule is out of ``reach``."""
        is_led = AGREEMENT in scores and reach(samples) < REACH
        first = {AGREEMENT: scores[AGREEMENT]} | scores if is_led else scores
        return {name: value for name, value in first.items() if QUESTION_TYPE not in name}

    def notes(self, samples: Sequence[Sample]) -> Mapping[str, str]:
        """Where the rule cannot do the answers to these questions justice."""
        return question_notes(samples, self.rule)

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """The commonest training answer to the same question, backing off to its first 3, 2, 1 words; and to any."""
        known = annotated_questions(train)
        majority = Majority((context, _answer(each)) for each in known for context in _question_contexts(each))
        if not majority.counts:
            return {}
        asked = list(annotated_questions(samples))
        by_text = [{"question_id": each.id, "answer": majority(_question_contexts(each))} for each in asked]
        commonest = majority([()])
        by_chance = [{"question_id": each.id, "answer": commonest} for each in asked]
        return guesses(score(by_text, samples), score(by_chance, samples))

    def sheet(self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row]) -> Sheet:
        """Question, image, the given answer and the human ones, by agreement."""
        return self.sheet_by(agreement, records, samples)

    def sheet_by(self, rule: AnswerRule, records: Sequence[Record], samples: Sequence[Sample]) -> Sheet:
        """The same, by a rule."""
        accuracies = question_accuracies(records, samples, rule)
        given = {record["question_id"]: record["answer"] for record in records}
        ordered: list[tuple[float, int, Panel]] = []
        for sample in samples:
            for turn, question in enumerate(q for q in sample.texts.get("questions", ()) if q.id in accuracies):
                score = accuracies[question.id]
                counts = answer_counts(question.facts).items()
                humans = ", ".join(f"{answer} ({count})" if len(counts) > 1 else answer for answer, count in counts)
                said = Note(f"given: {given.get(question.id, '(nothing)')}", GREEN if score >= 0.5 else RED)
                notes = (said, Note(f"true: {humans}"))
                picture = Picture(sample.image, sample.size, notes=notes, upright=sample.upright)
                ordered.append((score, turn, Panel(question.text, (picture,))))
        legend = "the answer given (green: at least half right), and the human answers"
        return Sheet(legend, worst_first(ordered))


def reach(samples: Sequence[Sample], rule: AnswerRule = official_accuracy) -> float:
    """What the rule gives at most, as a share of what ``agreement`` does; people's answers alone tell, no records.

    The answer to each question is then what most people say, normalised, as published answer lists have it.
    """
    people = _people(samples)
    given = [Counter(map(answer_key, answers)).most_common(1)[0] for answers in people]
    most = sum(leave_one_out(count, len(answers)) for (_, count), answers in zip(given, people, strict=True))
    return (
        sum(rule(answer, answers) for (answer, _), answers in zip(given, people, strict=True)) / most if most else 1.0
    )


def question_notes(samples: Sequence[Sample], rule: str = "official") -> dict[str, str]:
    """Where the rule cannot do the answers to these questions justice."""
    people = _people(samples)
    few = sum(len(answers) < ENOUGH for answers in people)
    enough = [answers for answers in people if len(answers) >= ENOUGH] if rule == "official" else []
    spelt = sum(map(is_spelling_decisive, enough))
    foreign = sum(not "".join(answers).isascii() for answers in people)
    notes = {}
    if few:
        notes["few answers"] = (
            f"{few:,} of {len(people):,} questions have fewer than four answers, for which the rule gives a right one 0, 33 or "
            f"67; {AGREEMENT} asks no more people to agree than there are"
        )
    if spelt:
        notes["spelling"] = (
            f"the answers to {spelt:,} of {len(people):,} questions are all alike, and the official rule then compares letter "
            f"by letter ('Yes' is not 'yes'); {AGREEMENT} always normalises both sides"
        )
    if foreign:
        notes["language"] = (
            f"{foreign:,} of {len(people):,} questions have answers with other letters than English; the rule's number words, "
            "articles ('an') and contractions are English, whatever the language"
        )
    return notes


def is_spelling_decisive(answers: Sequence[str]) -> bool:
    """Whether people agree on an answer that normalising would change, which it is compared without."""
    first = clean_spaces(answers[0])
    return first != normalize_answer(first) and all(clean_spaces(answer) == first for answer in answers)


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


def _people(samples: Sequence[Sample]) -> list[Sequence[str]]:
    """People's answers to every annotated question."""
    return [question.facts["answers"] for question in annotated_questions(samples)]


def _type_names(questions: Sequence[Text]) -> Callable[[Text], list[str]]:
    """Of a question, "yes_no" and "question_type/is_this_a"."""
    types = {"answer_type": "", "question_type": QUESTION_TYPE}
    words = {fact: metric_words(kind for each in questions if (kind := each.facts.get(fact))) for fact in types}

    def names(question: Text) -> list[str]:
        kinds = {fact: question.facts.get(fact) for fact in types}
        return [types[fact] + words[fact][kind] for fact, kind in kinds.items() if kind]

    return names


def _answer(question: Text) -> str:
    given: str | None = question.facts.get("multiple_choice_answer")
    answers: list[str] = question.facts["answers"] if given is None else []
    return given if given is not None else Counter(answers).most_common(1)[0][0]


def _question_contexts(question: Text) -> list[tuple[str, ...]]:
    """The whole question (marked by its end), its first words, and nothing."""
    words = tuple(question.text.lower().rstrip(" ?").split())
    return [(*words, "?"), *(words[:count] for count in QUESTION_PREFIXES)]


def _agreement(answer: str, answers: Sequence[str]) -> float:
    matches = [human == answer for human in answers]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)
