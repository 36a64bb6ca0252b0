"""Image-text matching: is a caption's own image told from another one?"""

from collections.abc import Sequence

from fusionkit.data.sample import Sample
from fusionkit.scoring.records import Record, check_records

THRESHOLD = 0.5


def score_matching(records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
    """Balanced accuracy at P(match) >= .5, from ``{"caption_id", "image_id", "score"}`` records: the mean of the
    percentages right among true and among false pairs. Which pairs are true, the annotations say.

    Without true or without false pairs there is nothing to tell apart, and no score.
    """
    owner = {text.id: sample.image_id for sample in samples for text in sample.texts.get("captions", ())}
    check_records(records, ("caption_id", "image_id"), owner)
    correct: dict[bool, list[bool]] = {True: [], False: []}
    for record in records:
        is_match = owner[record["caption_id"]] == record["image_id"]
        correct[is_match].append((record["score"] >= THRESHOLD) == is_match)
    if not correct[True] or not correct[False]:
        return {}
    return {"itm_accuracy": 50 * sum(sum(each) / len(each) for each in correct.values())}
