"""Sentences that are given one of a few labels: visual entailment (SNLI-VE) and NLVR2."""

from collections.abc import Callable, Sequence

from fusionkit.data.sample import Sample, Text
from fusionkit.scoring.record_schema import Form, one_of
from fusionkit.scoring.records import Record, index_records
from fusionkit.scoring.sample_scores import Row, SampleScores, scores_of

Truth = Callable[[Text], str | None]  # the right label of a text, None where it is not known


def entailment_label(text: Text) -> str | None:
    """What the annotators agreed on."""
    return text.facts.get("gold_label")


def nlvr2_label(text: Text) -> str | None:
    """ "True" or "False", as in the published files."""
    return str(bool(text.facts["label"])) if "label" in text.facts else None


def score_entailment(records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
    """Percentage of right labels, overall and by gold label, from ``{"pair_id", "label"}`` records.

    A hypothesis without a record counts as wrong, one without a gold label is left out.
    """
    scores = scores_of(EntailmentMeasure()(records, samples).rows)
    return {f"entailment_{name.replace('/', '_')}": value for name, value in scores.items()}


def score_nlvr2(records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
    """Accuracy, and consistency: the percentage of sentences that are judged rightly for all their image pairs.

    From ``{"statement_id", "label"}`` records. The identifiers are the published ones, split-set-pair-sentence; those that
    differ in the pair alone are one sentence (lil-lab/nlvr, nlvr2/eval/metrics.py).
    """
    return {f"nlvr2_{name}": value for name, value in scores_of(NLVR2Measure()(records, samples).rows).items()}


class EntailmentMeasure:
    """Judges SNLI-VE labels."""

    @property
    def forms(self) -> tuple[Form, ...]:
        labels = ("contradiction", "neutral", "entailment")
        return (Form("hypotheses", "pair_id", "label", f"one of {', '.join(labels)}", one_of(*labels)),)

    def __call__(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        rows = []
        for sample, text, is_right in _judged(records, "pair_id", samples, "hypotheses", entailment_label):
            score = 100.0 * is_right
            values = {"accuracy": score, f"accuracy/{entailment_label(text)}": score}
            rows.append({"id": text.id, "score": score, "image_id": sample.image_id, "values": values})
        return SampleScores(rows)


class NLVR2Measure:
    """Judges NLVR2 labels. A sentence's consistency stands with the first of its image pairs.

    What is resampled for an interval is a set of image pairs, which share their sentences.
    """

    @property
    def forms(self) -> tuple[Form, ...]:
        return (Form("statements", "statement_id", "label", '"True" or "False"', one_of("True", "False")),)

    def __call__(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        rows = []
        by_sentence: dict[tuple[str, ...], Row] = {}
        for _, text, is_right in _judged(records, "statement_id", samples, "statements", nlvr2_label):
            score, parts = 100.0 * is_right, str(text.id).split("-")
            row = {"id": text.id, "score": score, "image_id": "-".join(parts[:2]), "values": {"accuracy": score}}
            first = by_sentence.setdefault((*parts[:2], *parts[3:]), row)
            first["values"]["consistency"] = min(score, first["values"].get("consistency", score))
            rows.append(row)
        return SampleScores(rows)


def labelled(samples: Sequence[Sample], kind: str, truth: Truth) -> list[Text]:
    """The texts of a kind whose right label is known."""
    return [text for sample in samples for text in sample.texts.get(kind, ()) if truth(text) is not None]


def _judged(
    records: Sequence[Record], key: str, samples: Sequence[Sample], kind: str, truth: Truth
) -> list[tuple[Sample, Text, bool]]:
    known = {text.id for sample in samples for text in sample.texts.get(kind, ())}
    given = index_records(records, key, known)
    return [
        (sample, text, text.id in given and given[text.id]["label"] == truth(text))
        for sample in samples
        for text in labelled([sample], kind, truth)
    ]
