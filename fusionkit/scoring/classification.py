"""Sentences that are given one of a few labels: visual entailment (SNLI-VE) and NLVR2."""

from collections import Counter
from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np

from fusionkit.data.sample import Sample, Text
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.record_schema import RecordSchema, one_of
from fusionkit.scoring.records import Record, index_records
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.text_only_models import guesses, ridge

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
