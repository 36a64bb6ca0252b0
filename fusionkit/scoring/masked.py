"""Masked modelling: how many masked tokens are guessed, and how much of hidden image features?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from fusionkit.data.sample import Sample
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.corpus_metrics import RATIOS
from fusionkit.scoring.examples import Example
from fusionkit.scoring.record_schema import RecordSchema, is_number, is_text
from fusionkit.scoring.records import Record, check_records
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.text_only_models import Majority, captions_of, guesses


class MaskedTokens(BaseScorer):
    """Percentage of masked tokens predicted; each ``{"caption_id", "position", "token", "target"}`` is a token."""

    schema = (RecordSchema("captions", "caption_id", "token", "a token", is_text),)
    metrics = MappingProxyType({"accuracy": True})
    prefix = "mlm_"
    decimals = None

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a masked token."""
        owners = {text.id: sample.image_id for sample in samples for text in sample.texts.get("captions", ())}
        check_records(records, ("caption_id", "position"), owners)
        rows: list[Row] = []
        for record in records:
            score, key = 100.0 * (record["token"] == record["target"]), record["caption_id"]
            row = {"id": f"{record['position']}/{key}", "score": score, "image_id": owners[key]}
            rows.append({**row, "values": {"accuracy": score}})
        return SampleScores(rows)

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """The first masked token of each caption."""
        targets: dict[Any, str] = {}
        for record in records:
            targets.setdefault(record["caption_id"], record["target"])
        return [replace(each, true=targets[each.id]) for each in super().examples(records, samples, rows, limit)]

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """The commonest training token between the same neighbours, backing off to the left, the right one; and of all.

        A neighbour that is masked itself is not known.
        """
        asked = list(_masked_contexts(samples, records, tokenize))
        wanted = {context for contexts in asked for context in contexts} | {(None, None)}
        majority = Majority(
            (context, token)
            for caption in captions_of(train)
            for left, token, right in _trigrams(tokenize(caption.text))
            for context in _neighbour_contexts(left, right)
            if context in wanted
        )
        if not majority.counts:
            return {}
        commonest = majority([(None, None)])
        by_text = [{**record, "token": majority(contexts)} for record, contexts in zip(records, asked, strict=True)]
        by_chance = [{**record, "token": commonest} for record in records]
        return guesses(score(by_text, samples), score(by_chance, samples))


class HiddenFeatures(BaseScorer):
    """Percentage of hidden image features that is explained: 0 is guessing the mean of the image's other tokens, 100 perfect.

    Each ``{"image_id", "error", "mean_error"}`` is an image; both are summed squared errors.
    """

    schema = (RecordSchema("captions", "image_id", "error", "a number", is_number, of_images=True),)
    metrics = MappingProxyType({"explained": True})
    prefix = "mrm_"
    decimals = None

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row an image."""
        check_records(records, ("image_id",), {sample.image_id for sample in samples})
        rows: list[Row] = []
        for record in records:
            whole = record["mean_error"]
            explained = whole - record["error"]
            score = min(100.0, max(0.0, 100 * explained / whole)) if whole else 0.0
            row = {"id": record["image_id"], "score": score, "image_id": record["image_id"]}
            rows.append({**row, "sums": {f"{RATIOS}explained": [explained, whole]}})
        if not all(math.isfinite(record["error"]) for record in records):  # a metric that vanished would not be missed
            return SampleScores(rows, scores={"explained": math.nan})
        return SampleScores(rows)

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """None: nobody sees a feature."""
        return []

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """What the score calls 0: guessing the mean of the image's other tokens."""
        return guesses(*[{self.own_name("explained"): 0.0}] * 2)


def _masked_contexts(
    samples: Sequence[Sample], records: Sequence[Record], tokenize: Tokenize
) -> Iterator[list[tuple[str | None, str | None]]]:
    """For each record what its token's neighbours tell."""
    texts = {caption.id: caption.text for caption in captions_of(samples)}
    masked = {(record["caption_id"], record["position"]) for record in records}
    tokens: dict[Any, list[str]] = {}
    for record in records:
        key, position = record["caption_id"], record["position"]
        if key not in tokens:
            tokens[key] = ["", *tokenize(texts[key]), ""]
        before, own, behind = tokens[key][position : position + 3]
        left = None if (key, position - 1) in masked else before
        right = None if (key, position + 1) in masked or not own else behind  # of an end that is masked
        yield _neighbour_contexts(left, right)


def _neighbour_contexts(left: str | None, right: str | None) -> list[tuple[str | None, str | None]]:
    return list(dict.fromkeys([(left, right), (left, None), (None, right), (None, None)]))


def _trigrams(tokens: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    padded = ["", *tokens, ""]
    return (found for found in zip(padded, tokens, padded[2:], strict=False) if found[1])
