"""Masked modelling: how many masked tokens are guessed, and how much of hidden image features?"""

from collections.abc import Sequence

from fusionkit.data.sample import Sample
from fusionkit.scoring.records import Record, check_records


def score_masked(records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
    """Percentage of masked tokens predicted; each ``{"caption_id", "position", "token", "target"}`` is a token."""
    known = {text.id for sample in samples for text in sample.texts.get("captions", ())}
    check_records(records, ("caption_id", "position"), known)
    if not records:
        return {}
    return {"mlm_accuracy": 100 * sum(record["token"] == record["target"] for record in records) / len(records)}


def score_hidden(records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
    """Percentage of hidden image features that is explained: 0 is guessing the mean of the image's other tokens, 100 perfect.

    Each ``{"image_id", "error", "mean_error"}`` is an image; both are summed squared errors.
    """
    check_records(records, ("image_id",), {sample.image_id for sample in samples})
    guessed = sum(record["mean_error"] for record in records)
    return {"mrm_explained": 100 * (1 - sum(record["error"] for record in records) / guessed)} if guessed else {}
