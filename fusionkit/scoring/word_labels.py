"""Labels of the words of texts, word by word."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.word_labels import LABELS, TAGGED, spans_of
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.corpus_metrics import RATIOS
from fusionkit.scoring.examples import Example
from fusionkit.scoring.record_schema import RecordSchema
from fusionkit.scoring.records import Record, index_records
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.text_only_models import Majority, guesses

OUTSIDE = "O"  # the label of a word of no interest
ANY = ""  # any word


def is_labels(value: Any) -> bool:
    """A list of {"start", "end", "label"}, whole numbers and a text."""
    kinds = {"start": int, "end": int, "label": str}
    return isinstance(value, list) and all(
        isinstance(each, dict) and {name: type(part) for name, part in each.items()} == kinds for each in value
    )


class WordLabels(BaseScorer):
    """Words with the right label: ``accuracy`` of all, and ``f1`` of those that have, or are given, another label than O.

    Both by the word, not by the entity of several words. A word without a prediction is wrong.
    """

    schema = (RecordSchema(TAGGED, "text_id", "labels", 'a list of {"start", "end", "label"}', is_labels),)
    metrics = MappingProxyType({"accuracy": True, "f1": True})
    prefix = "words_"

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a text."""
        known = {text.id for sample in samples for text in sample.texts.get(TAGGED, ())}
        given, rows = index_records(records, "text_id", known), list[Row]()
        for sample in samples:
            for text in labelled([sample]):
                said = {
                    (each["start"], each["end"]): each["label"] for each in given.get(text.id, {}).get("labels", ())
                }
                pairs = [
                    (said.get(span), label) for span, label in zip(spans_of(text.text), text.facts[LABELS], strict=True)
                ]
                right = sum(one == other for one, other in pairs)
                hits = sum(one == other != OUTSIDE for one, other in pairs)
                named = sum(one not in (None, OUTSIDE) for one, _ in pairs) + sum(
                    other != OUTSIDE for _, other in pairs
                )
                sums = {f"{RATIOS}accuracy": [right, len(pairs)], f"{RATIOS}f1": [2 * hits, named]}
                row = {"id": text.id, "score": 100.0 * right / max(1, len(pairs)), "image_id": sample.image_id}
                rows.append({**row, "sums": sums})
        return SampleScores(rows)

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """With the words that have a label of interest, and it."""
        texts = {text.id: text for text in labelled(samples)}
        found = []
        for each in super().examples(records, samples, rows, limit):
            text = texts[each.id]
            given, true = each.given, _record(text, text.facts[LABELS])["labels"]
            found.append(replace(each, given=given and _named(text.text, given), true=_named(text.text, true)))
        return found

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
            for text in labelled(train)
            for word, label in zip(text.text.split(), text.facts[LABELS], strict=True)
            for context in (word.lower(), ANY)
        )
        if not majority.counts:
            return {}
        by_word, by_chance = (
            [_record(text, [majority(contexts(word)) for word in text.text.split()]) for text in labelled(samples)]
            for contexts in (lambda word: [word.lower(), ANY], lambda word: [ANY])
        )
        return guesses(score(by_word, samples), score(by_chance, samples))


def labelled(samples: Sequence[Sample]) -> list[Text]:
    """The texts whose words have labels."""
    return [text for sample in samples for text in sample.texts.get(TAGGED, ()) if LABELS in text.facts]


def _record(text: Text, labels: Sequence[str]) -> Record:
    said = [{"start": a, "end": b, "label": label} for (a, b), label in zip(spans_of(text.text), labels, strict=True)]
    return {"text_id": text.id, "labels": said}


def _named(text: str, labels: Sequence[Mapping[str, Any]]) -> str:
    """The words with a label of interest: "Rome (LOC), Ann (PER)"."""
    named = [each for each in labels if each["label"] != OUTSIDE]
    return ", ".join(f"{text[each['start'] : each['end']]} ({each['label']})" for each in named)
