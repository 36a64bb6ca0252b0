"""Image-text matching: is a caption's own image told from another one?"""

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from fusionkit.data.sample import Sample
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.corpus_metrics import RATIOS
from fusionkit.scoring.examples import Example
from fusionkit.scoring.record_schema import RecordSchema, is_number
from fusionkit.scoring.records import Record, check_records
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.text_only_models import guesses

THRESHOLD = 0.5


class Matching(BaseScorer):
    """Balanced accuracy at P(match) >= .5, from ``{"caption_id", "image_id", "score"}`` records: the mean of the
    percentages right among true and among false pairs. Which pairs are true, the annotations say.

    Without true or without false pairs there is nothing to tell apart, and no score.
    """

    schema = (RecordSchema("captions", "caption_id", "score", "a probability", is_number),)
    metrics = MappingProxyType({"accuracy": True})
    prefix = "itm_"
    decimals = None

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a pair, resampled with the caption's own image."""
        owners = {text.id: sample.image_id for sample in samples for text in sample.texts.get("captions", ())}
        check_records(records, ("caption_id", "image_id"), owners)
        rows: list[Row] = []
        for record in records:
            caption, image = record["caption_id"], record["image_id"]
            is_match = owners[caption] == image
            is_right = (record["score"] >= THRESHOLD) == is_match
            counts = [int(is_right and is_match), int(is_match), int(is_right and not is_match), int(not is_match)]
            row = {"id": f"{_plain(image)}/{caption}", "score": 100.0 * is_right, "image_id": owners[caption]}
            rows.append({**row, "sums": {f"{RATIOS}accuracy": counts}})
        return SampleScores(rows)

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """Each caption with its own image."""
        own = {text.id: sample.image_id for sample in samples for text in sample.texts.get("captions", ())}
        true = [record for record in records if own[record["caption_id"]] == record["image_id"]]
        named = [row for row in rows if row["id"].partition("/")[0] == _plain(row["image_id"])]
        return [replace(each, true="a match") for each in super().examples(true, samples, named, limit)]

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """Balanced accuracy of any answer that does not compare the caption with the image."""
        return guesses(*[{self.own_name("accuracy"): 50.0}] * 2)


def _plain(image: Any) -> str:
    """An image's id without the slash that parts it from the caption's."""
    return str(image).replace("/", "|")
