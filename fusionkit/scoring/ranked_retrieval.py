"""Image-text retrieval from ranked lists: R@1, R@5, R@10 and the median rank, both ways. Imports numpy only.

A record lists the best items of one query, ``{"caption_id", "image_ids", "scores"}`` or ``{"image_id", "caption_ids",
"scores"}``; without scores the order decides. The rank of a query is the number of wrong items that score at least as high
as its best right one: ties count against us, and so does NaN. A caption has one right image; an image has all its captions,
of which the best counts.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fusionkit.data.sample import Sample
from fusionkit.scoring.record_schema import Form, is_list
from fusionkit.scoring.records import Record, index_records
from fusionkit.scoring.sample_scores import Row, SampleScores, scores_of

CUTS = (1, 5, 10)
MISS = 2**31  # the rank of a query that has no prediction
FORMS = (
    Form("captions", "caption_id", "image_ids", "a list of image ids, best first", is_list, lists="image_id"),
    Form("captions", "image_id", "caption_ids", "a list of caption ids, best first", is_list, True, "caption_id"),
)


class Query(NamedTuple):
    """What is looked for: the ``right`` ones of ``total`` items; ``key`` is that of the record's list."""

    way: str
    id: Any
    image_id: Any
    key: str
    right: set[Any]
    total: int
    record: Record | None


@dataclass(frozen=True)
class RetrievalMeasure:
    """Judges ranked lists over all images and, where ``folds`` names sizes, over folds of so many images each.

    ``folds={"1k": 1000}`` is COCO's second protocol: the 5,000 test images in five folds, in the order of the file, and the
    mean over the folds (Karpathy and Fei-Fei 2015). A split that such folds do not fill is scored whole only.
    """

    folds: Mapping[str, int] = field(default_factory=dict)

    @property
    def forms(self) -> tuple[Form, ...]:
        return FORMS

    def __call__(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        asked = [sample for sample in samples if sample.texts.get("captions")]
        queries = _queries(records, asked)
        rows = [_row(query) for query in queries]
        notes = {"ties": "pessimistic: an equal score counts as a better one"} | _without_unknown_medians(rows, queries)
        for name, size in self.folds.items():
            if len(asked) <= size or len(asked) % size:
                notes[name] = f"left out: {len(asked):,} images do not make folds of {size:,}"
                continue
            for start in range(0, len(asked), size):
                _add_fold(rows, queries, asked[start : start + size], name, len(asked))
        return SampleScores(rows, notes)


def recalls(ranks: Iterable[int]) -> dict[str, float]:
    """Percentages ``r1``, ``r5``, ``r10`` of the queries whose rank (0 = first) is below 1, 5, 10."""
    ranks = list(ranks)
    return {f"r{cut}": 100 * sum(rank < cut for rank in ranks) / len(ranks) for cut in CUTS} if ranks else {}


def score_ranking(records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
    """R@k, the same as from the whole matrix where the lists are longer than k."""
    scores = scores_of(RetrievalMeasure()(records, samples).rows)
    return {name: value for name, value in scores.items() if not name.endswith("median_rank")}


def list_rank(record: Record | None, key: str, right: set[Any], total: int, among: Container[Any] | None = None) -> int:
    """Rank of the best ``right`` id in a record that lists the best of ``total`` items; unlisted, the last rank.

    With ``among``, only the ``total`` items in it count.
    """
    if record is None:
        return MISS
    scores = record.get("scores", range(len(record[key]), 0, -1))
    listed = list(zip(record[key], scores, strict=True))
    counted = [(item, score) for item, score in listed if among is None or item in among]
    own = [score for item, score in counted if item in right]
    last = total - len(right)
    if not own or not max(own) > min(scores):  # equal scores may go on beyond the list
        return last
    return sum(item not in right and not score < max(own) for item, score in counted)


def _queries(records: Sequence[Record], samples: Sequence[Sample]) -> list[Query]:
    owner = {text.id: sample.image_id for sample in samples for text in sample.texts["captions"]}
    captions = {sample.image_id: {text.id for text in sample.texts["captions"]} for sample in samples}
    by_text = index_records([record for record in records if "caption_id" in record], "caption_id", owner)
    by_image = index_records([record for record in records if "caption_id" not in record], "image_id", captions)
    images, texts = len(captions), len(owner)
    return [
        *(Query("text_to_image", key, own, "image_ids", {own}, images, by_text.get(key)) for key, own in owner.items()),
        *(
            Query("image_to_text", key, key, "caption_ids", own, texts, by_image.get(key))
            for key, own in captions.items()
        ),
    ]


def _row(query: Query) -> Row:
    rank = list_rank(query.record, query.key, query.right, query.total)
    return {
        "id": f"{query.way}/{query.id}",
        "score": 100.0 * (rank < 1),
        "image_id": query.image_id,
        "values": {f"{query.way}_r{cut}": 100.0 * (rank < cut) for cut in CUTS},
        "ranks": {f"{query.way}_median_rank": min(rank, query.total) + 1},
    }


def _without_unknown_medians(rows: Sequence[Row], queries: Sequence[Query]) -> dict[str, str]:
    """Take from the rows a median rank that lies beyond the end of the lists; returns notes that say so."""
    notes = {}
    for way in dict.fromkeys(query.way for query in queries):
        lists = [query for query in queries if query.way == way and query.record is not None]
        listed, total = min(((len(each.record[each.key]), each.total) for each in lists if each.record), default=(0, 0))
        name = f"{way}_median_rank"
        ranks = sorted(row["ranks"][name] for row in rows if name in row["ranks"])
        if listed < total and ranks[len(ranks) // 2] > listed:  # the upper of two in the middle
            notes[name] = f"missing: it lies beyond the {listed:,} items of {total:,} that are listed"
            for row in rows:
                row["ranks"].pop(name, None)
    return notes


def _add_fold(rows: Sequence[Row], queries: Sequence[Query], fold: Sequence[Sample], name: str, count: int) -> None:
    """Add what the fold's queries reach within it, weighted so that their mean is that of the folds; ``count`` images in all."""
    images = {sample.image_id for sample in fold}
    captions = {text.id for sample in fold for text in sample.texts["captions"]}
    for way in dict.fromkeys(query.way for query in queries):
        total = sum(query.way == way for query in queries)
        inside = [
            (row, query)
            for row, query in zip(rows, queries, strict=True)
            if query.way == way and query.image_id in images
        ]
        weight = len(fold) * total / (count * len(inside))  # 1 where all folds have as many captions
        for row, query in inside:
            among = images if query.key == "image_ids" else captions
            rank = list_rank(query.record, query.key, query.right, len(among), among)
            row["values"] |= {f"{name}/{way}_r{cut}": 100.0 * weight * (rank < cut) for cut in CUTS}
