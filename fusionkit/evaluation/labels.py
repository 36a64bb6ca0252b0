"""Sentences that are given one of a few labels: visual entailment (SNLI-VE) and NLVR2."""

from collections.abc import Callable, Sequence

from fusionkit.data.sample import Sample, Text
from fusionkit.evaluation.records import Record, index_records

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
    by_metric: dict[str, list[bool]] = {}
    for text, is_right in _judged(records, "pair_id", samples, "hypotheses", entailment_label):
        by_metric.setdefault("entailment_accuracy", []).append(is_right)
        by_metric.setdefault(f"entailment_accuracy_{entailment_label(text)}", []).append(is_right)
    return {name: 100 * sum(values) / len(values) for name, values in by_metric.items()}


def score_nlvr2(records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
    """Accuracy, and consistency: the percentage of sentences that are judged rightly for all their image pairs.

    From ``{"statement_id", "label"}`` records. The identifiers are the published ones, split-set-pair-sentence; those that
    differ in the pair alone are one sentence (lil-lab/nlvr, nlvr2/eval/metrics.py).
    """
    judged = _judged(records, "statement_id", samples, "statements", nlvr2_label)
    if not judged:
        return {}
    by_sentence: dict[tuple[str, ...], bool] = {}
    for text, is_right in judged:
        parts = str(text.id).split("-")
        sentence = (*parts[:2], *parts[3:])
        by_sentence[sentence] = by_sentence.get(sentence, True) and is_right
    return {
        "nlvr2_accuracy": 100 * sum(is_right for _, is_right in judged) / len(judged),
        "nlvr2_consistency": 100 * sum(by_sentence.values()) / len(by_sentence),
    }


def labelled(samples: Sequence[Sample], kind: str, truth: Truth) -> list[Text]:
    """The texts of a kind whose right label is known."""
    return [text for sample in samples for text in sample.texts.get(kind, ()) if truth(text) is not None]


def _judged(
    records: Sequence[Record], key: str, samples: Sequence[Sample], kind: str, truth: Truth
) -> list[tuple[Text, bool]]:
    known = {text.id for sample in samples for text in sample.texts.get(kind, ())}
    given = index_records(records, key, known)
    texts = labelled(samples, kind, truth)
    return [(text, text.id in given and given[text.id]["label"] == truth(text)) for text in texts]
