"""Sentences and words that are given one of a few labels: visual entailment (SNLI-VE), NLVR2, named entities."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.word_labels import LABELS, TAGGED, labels_of, spans_of
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.corpus_metrics import RATIOS
from fusionkit.scoring.examples import Example
from fusionkit.scoring.record_schema import RecordSchema, one_of
from fusionkit.scoring.records import Record, index_records
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.text_only_models import Majority, guesses, ridge

ANY = ""  # any word

Truth = Callable[[Text], str | None]  # the right label of a text, None where it is not known


def entailment_label(text: Text) -> str | None:
    """What the annotators agreed on."""
    return text.facts.get("gold_label")


def nlvr2_label(text: Text) -> str | None:
    """ "True" or "False", as in the published files."""
    return str(bool(text.facts["label"])) if "label" in text.facts else None


class LabelScorer(BaseScorer):
    """Percentage of right labels; a text without a record counts as wrong, one whose right label is not known is left out."""

    @staticmethod
    def truth(text: Text) -> str | None:
        """The right label of a text, None where it is not known."""
        raise NotImplementedError

    def judged(self, records: Sequence[Record], samples: Sequence[Sample]) -> list[tuple[Sample, Text, bool]]:
        """Each text whose right label is known, and whether it was given."""
        (form,) = self.schema
        known = {text.id for sample in samples for text in sample.texts.get(form.kind, ())}
        given = index_records(records, form.key, known)
        return [
            (sample, text, text.id in given and given[text.id][form.value] == self.truth(text))
            for sample in samples
            for text in labelled([sample], form.kind, self.truth)
        ]

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """The label that the words alone suggest (ridge regression); and the commonest one."""
        (form,) = self.schema
        truth = self.truth
        known = labelled(train, form.kind, truth)
        counts = Counter(map(truth, known))
        if not counts:
            return {}
        labels = sorted(counts, key=str)
        shares = np.array([[float(truth(text) == label) for label in labels] for text in known])
        regress = ridge([text.text for text in known], shares)
        asked = labelled(samples, form.kind, truth)
        by_text = [{form.key: text.id, form.value: labels[int(regress(text.text).argmax())]} for text in asked]
        by_chance = [{form.key: text.id, form.value: counts.most_common(1)[0][0]} for text in asked]
        return guesses(score(by_text, samples), score(by_chance, samples))


class Entailment(LabelScorer):
    """SNLI-VE labels: accuracy, overall and by gold label."""

    labels = ("contradiction", "neutral", "entailment")
    schema = (RecordSchema("hypotheses", "pair_id", "label", f"one of {', '.join(labels)}", one_of(*labels)),)
    metrics = MappingProxyType({"accuracy": True})
    prefix = "entailment_"
    truth = staticmethod(entailment_label)

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a hypothesis that has a gold label."""
        rows = []
        for sample, text, is_right in self.judged(records, samples):
            score = 100.0 * is_right
            values = {"accuracy": score, f"accuracy/{entailment_label(text)}": score}
            rows.append({"id": text.id, "score": score, "image_id": sample.image_id, "values": values})
        return SampleScores(rows)


class NLVR2(LabelScorer):
    """NLVR2 labels: accuracy, and consistency, the percentage of sentences judged rightly for all their image pairs.

    The identifiers are the published ones, split-set-pair-sentence; those that differ in the pair alone are one sentence
    (lil-lab/nlvr, nlvr2/eval/metrics.py). A sentence's consistency stands with the first of its image pairs. What is resampled
    for an interval is a set of image pairs, which share their sentences.
    """

    schema = (RecordSchema("statements", "statement_id", "label", '"True" or "False"', one_of("True", "False")),)
    metrics = MappingProxyType({"accuracy": True, "consistency": True})
    prefix = "nlvr2_"
    truth = staticmethod(nlvr2_label)

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a statement."""
        rows = []
        by_sentence: dict[tuple[str, ...], Row] = {}
        for _, text, is_right in self.judged(records, samples):
            score, parts = 100.0 * is_right, str(text.id).split("-")
            row = {"id": text.id, "score": score, "image_id": "-".join(parts[:2]), "values": {"accuracy": score}}
            first = by_sentence.setdefault((*parts[:2], *parts[3:]), row)
            first["values"]["consistency"] = min(score, first["values"].get("consistency", score))
            rows.append(row)
        return SampleScores(rows)


def labelled(samples: Sequence[Sample], kind: str, truth: Truth) -> list[Text]:
    """The texts of a kind whose right label is known."""
    return [text for sample in samples for text in sample.texts.get(kind, ()) if truth(text) is not None]


def is_labels(value: Any) -> bool:
    """A list of {"start", "end", "label"}, whole numbers and a text."""
    kinds = {"start": int, "end": int, "label": str}
    return isinstance(value, list) and all(
        isinstance(each, dict) and {name: type(part) for name, part in each.items()} == kinds for each in value
    )


class WordLabels(BaseScorer):
    """Words with the right label: ``accuracy`` of all, and ``f1`` of those that have, or are given, another than ``outside``.

    Both by the word, not by the entity of several words. A word without a prediction is wrong. There is no F1 where no word
    has the label ``outside``, since each would be of interest.
    """

    schema = (RecordSchema(TAGGED, "text_id", "labels", 'a list of {"start", "end", "label"}', is_labels),)
    metrics = MappingProxyType({"accuracy": True, "f1": True})
    prefix = "words_"

    def __init__(self, outside: str | int = "O") -> None:
        self.outside = str(outside)

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a text."""
        known = {text.id for sample in samples for text in sample.texts.get(TAGGED, ())}
        given, rows, has_outside = index_records(records, "text_id", known), list[Row](), self._has_outside(samples)
        for sample in samples:
            for text in tagged([sample]):
                said = {
                    (each["start"], each["end"]): each["label"] for each in given.get(text.id, {}).get("labels", ())
                }
                pairs = [
                    (said.get(span), label) for span, label in zip(spans_of(text.text), labels_of(text), strict=True)
                ]
                right = sum(one == other for one, other in pairs)
                hits = sum(one == other != self.outside for one, other in pairs)
                named = sum(one not in (None, self.outside) for one, _ in pairs) + sum(
                    other != self.outside for _, other in pairs
                )
                sums = {f"{RATIOS}accuracy": [right, len(pairs)]}
                sums |= {f"{RATIOS}f1": [2 * hits, named]} if has_outside else {}
                row = {"id": text.id, "score": 100.0 * right / max(1, len(pairs)), "image_id": sample.image_id}
                rows.append({**row, "sums": sums})
        return SampleScores(rows)

    def _has_outside(self, samples: Sequence[Sample]) -> bool:
        return any(self.outside in text.facts[LABELS] for text in tagged(samples))

    def notes(self, samples: Sequence[Sample]) -> Mapping[str, str]:
        """Why there is no F1."""
        if not tagged(samples) or self._has_outside(samples):
            return {}
        fix = "say which label words of no interest have with task.token_classification.scorer.outside=LABEL"
        return {"f1": f"left out, as no word has the label '{self.outside}'; {fix}"}

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """With the words that have a label of interest, and it."""
        texts = {text.id: text for text in tagged(samples)}
        found = []
        for each in super().examples(records, samples, rows, limit):
            text = texts[each.id]
            given, true = each.given, _word_record(text, labels_of(text))["labels"]
            found.append(
                replace(each, given=given and self._named(text.text, given), true=self._named(text.text, true))
            )
        return found

    def _named(self, text: str, labels: Sequence[Mapping[str, Any]]) -> str:
        """The words with a label of interest: "Rome (LOC), Ann (PER)"."""
        named = [each for each in labels if each["label"] != self.outside]
        return ", ".join(f"{text[each['start'] : each['end']]} ({each['label']})" for each in named)

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """The commonest label of the very word, else of all words; and that of all words."""
        majority = Majority(
            (context, label)
            for text in tagged(train)
            for word, label in zip(text.text.split(), labels_of(text), strict=True)
            for context in (word.lower(), ANY)
        )
        if not majority.counts:
            return {}
        by_word, by_chance = (
            [_word_record(text, [majority(contexts(word)) for word in text.text.split()]) for text in tagged(samples)]
            for contexts in (lambda word: [word.lower(), ANY], lambda word: [ANY])
        )
        return guesses(score(by_word, samples), score(by_chance, samples))


def tagged(samples: Sequence[Sample]) -> list[Text]:
    """The texts whose words have labels."""
    return [text for sample in samples for text in sample.texts.get(TAGGED, ()) if LABELS in text.facts]


def _word_record(text: Text, labels: Sequence[str]) -> Record:
    said = [{"start": a, "end": b, "label": label} for (a, b), label in zip(spans_of(text.text), labels, strict=True)]
    return {"text_id": text.id, "labels": said}
