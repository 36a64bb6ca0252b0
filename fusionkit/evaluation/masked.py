"""Masked language modelling: how many masked tokens are guessed?"""

from collections.abc import Sequence

from fusionkit.data.sample import Sample
from fusionkit.evaluation.records import Record, check_records


def score_masked(records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
    """Percentage of masked tokens predicted; each ``{"caption_id", "position", "token", "target"}`` is a token."""
    known = {text.id for sample in samples for text in sample.texts.get("captions", ())}
    check_records(records, ("caption_id", "position"), known)
    if not records:
        return {}
    return {"mlm_accuracy": 100 * sum(record["token"] == record["target"] for record in records) / len(records)}
