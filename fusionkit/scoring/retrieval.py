"""Image-text retrieval: R@1, R@5, R@10 and the median rank, both ways.

A record lists the best items of one query, ``{"caption_id", "image_ids", "scores"}`` or ``{"image_id", "caption_ids",
"scores"}``; without scores the order decides. While training it holds features instead, ``{"image_id", "feats"}`` and
``{"caption_id", "feats"}``, whose dot products rank. The rank of a query is the number of wrong items that score at least as
high as its best right one: ties count against us, and so does NaN. A caption has one right image; an image has all its
captions, of which the best counts.
"""

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusionkit.data.sample import Sample
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.examples import Example
from fusionkit.scoring.record_schema import RecordSchema, is_list
from fusionkit.scoring.records import Record, index_records
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.sheet import GREEN, GREY, RED, Note, Panel, Picture, Sheet, worst_first
from fusionkit.scoring.text_only_models import guesses

Features = NDArray[np.float32]
Flags = NDArray[np.bool_]
CUTS = (1, 5, 10)
WAYS = ("text_to_image", "image_to_text")
MISS = 2**31  # the rank of a query that has no prediction
TOP = 5  # images shown for a caption
CHUNK = 1024  # queries whose dot products are held at a time


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
class Retrieval(BaseScorer):
    """Recalls and median ranks over all images and, where ``folds`` names sizes, recalls over folds of so many images each.

    ``folds={"1k": 1000}`` is COCO's second protocol: the 5,000 test images in five folds, in the order of the file, and the
    mean over the folds (Karpathy and Fei-Fei 2015). A split that such folds do not fill is scored whole only.
    """

    folds: Mapping[str, int] = field(default_factory=dict)

    schema = (
        RecordSchema(
            "captions", "caption_id", "image_ids", "a list of image ids, best first", is_list, lists="image_id"
        ),
        RecordSchema(
            "captions", "image_id", "caption_ids", "a list of caption ids, best first", is_list, True, "caption_id"
        ),
    )
    metrics = MappingProxyType(
        {f"{way}_r{cut}": True for way in WAYS for cut in CUTS} | {f"{way}_median_rank": False for way in WAYS}
    )
    headlines = tuple(f"{way}_r1" for way in WAYS)

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a caption, then one an image."""
        asked = [sample for sample in samples if sample.texts.get("captions")]
        if has_features(records):
            known = {sample.image_id for sample in samples}
            return SampleScores([_row(*each) for each in _ranked_by_features(records, asked, known)])
        queries = _queries(records, asked)
        rows = [_row(query, list_rank(query.record, query.key, query.right, query.total)) for query in queries]
        notes = {"ties": "pessimistic: an equal score counts as a better one"} | _without_unknown_medians(rows, queries)
        for name, size in self.folds.items():
            if len(asked) <= size or len(asked) % size:
                notes[name] = f"left out: {len(asked):,} images do not make folds of {size:,}"
                continue
            for start in range(0, len(asked), size):
                _add_fold(rows, queries, asked[start : start + size], name, len(asked))
        return SampleScores(rows, notes)

    def summary(self, scores: dict[str, float], samples: Sequence[Sample]) -> dict[str, float]:
        """The recalls."""
        return {name: value for name, value in scores.items() if not name.endswith("median_rank")}

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """R@k of a random order, for both: k / I for a caption, 1 - C(T - c, k) / C(T, k) for an image with c captions."""
        owned = Counter(sample.image_id for sample in samples for _ in sample.texts.get("captions", ()))
        images, texts = len(owned), sum(owned.values())
        scores = {}
        for cut in CUTS if owned else ():
            scores[f"text_to_image_r{cut}"] = 100 * min(1.0, cut / images)
            missed = [comb(texts - count, cut) / comb(texts, cut) if cut <= texts else 0.0 for count in owned.values()]
            scores[f"image_to_text_r{cut}"] = 100 * (1 - sum(missed) / images)
        return guesses(scores, scores)

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """Captions alone, each with the image that comes first for it."""
        by_text = [row for row in rows if str(row["id"]).startswith(WAYS[0])]
        return super().examples(records, samples, by_text, limit)

    def sheet(self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row]) -> Sheet:
        """The worst ranked caption of each image, the five best images for it, the right one framed.

        Where the right one is not among them, it stands at the end.
        """
        by_id = {sample.image_id: sample for sample in samples}
        ranked = {record["caption_id"]: record for record in records if "caption_id" in record}
        with_captions = sum(bool(sample.texts.get("captions")) for sample in samples)
        ordered: list[tuple[float, int, Panel]] = []
        for sample in samples:
            captions = [caption for caption in sample.texts.get("captions", ()) if caption.id in ranked]
            ranks = [list_rank(ranked[each.id], "image_ids", {sample.image_id}, with_captions) for each in captions]
            if captions:
                worst = ranks.index(max(ranks))
                pictures = _candidates(ranked[captions[worst].id], ranks[worst], sample, by_id)
                ordered.append((-ranks[worst], 0, Panel(captions[worst].text, pictures)))
        legend = (
            f"text to image: the worst caption of each image, and the best {TOP} of {with_captions} images for it; "
            "the right one is framed"
        )
        return Sheet(legend, worst_first(ordered))


def has_features(records: Sequence[Record]) -> bool:
    """Whether these are features to be ranked, which stay in memory, rather than records to be written."""
    return any("feats" in record for record in records)


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


def _row(query: Query, rank: int) -> Row:
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


def _ranked_by_features(
    records: Sequence[Record], samples: Sequence[Sample], known: Container[Any]
) -> list[tuple[Query, int]]:
    """The queries and their ranks by dot products of features; what has none is a miss."""
    captions = {text.id: row for row, sample in enumerate(samples) for text in sample.texts["captions"]}
    images = {sample.image_id: row for row, sample in enumerate(samples)}
    by_text = index_records([record for record in records if "caption_id" in record], "caption_id", captions)
    by_image = index_records([record for record in records if "caption_id" not in record], "image_id", known)
    (texts, has_text), (photos, has_photo) = _stack(by_text, captions), _stack(by_image, images)
    owner = np.array(list(captions.values()), dtype=np.int64)
    queries = _queries([], samples)
    if not len(texts) or texts.shape[1] != photos.shape[1]:  # one of the two has no features at all
        return [(query, MISS) for query in queries]
    image_rows = np.arange(len(photos))
    ranks = [
        *_ranks(texts, has_text, photos, has_photo, lambda rows: owner[rows, None] == image_rows),
        *_ranks(photos, has_photo, texts, has_text, lambda rows: rows[:, None] == owner),
    ]
    return list(zip(queries, ranks, strict=True))


def _ranks(
    queries: Features, has_query: Flags, items: Features, has_item: Flags, is_right: Callable[[Any], Flags]
) -> list[int]:
    """The rank of the best right item of each query (Q, E) among the items (N, E); MISS where all that is right is missing."""
    ranks: list[int] = []
    for start in range(0, len(queries), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(queries)))
        scores = queries[rows] @ items.T
        scores[~(has_query[rows, None] & has_item)] = -np.inf
        right = is_right(rows)
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        found = (~(scores < best) & ~right).sum(axis=1)
        found[np.isneginf(best[:, 0])] = MISS
        ranks += found.tolist()
    return ranks


def _stack(records: Mapping[Any, Record], ids: Mapping[Any, int]) -> tuple[Features, Flags]:
    """Features (N, E) in the order of ids, zeros where there are none, and bool (N,) where there are."""
    is_there = np.array([item in records for item in ids], dtype=bool)
    width = len(next(iter(records.values()))["feats"]) if records else 0
    feats = np.zeros((len(ids), width), dtype=np.float32)
    for row, item in enumerate(ids):
        if item in records:
            feats[row] = np.asarray(records[item]["feats"], dtype=np.float32)
    return feats, is_there


def _candidates(record: Record, rank: int, right: Sample, by_id: Mapping[Any, Sample]) -> tuple[Picture, ...]:
    """The first images of one caption's record, and the right one if it is not among them."""
    pictures = []
    listed = record["image_ids"]
    for place, (image_id, score) in enumerate(zip(listed[:TOP], record["scores"], strict=False), start=1):
        is_right = image_id == right.image_id
        note = Note(f"{place}.   score {score:z.2f}", GREEN if is_right else GREY)
        pictures.append(_shown(by_id[image_id], GREEN if is_right else None, note))
    if right.image_id not in listed[:TOP]:
        place_text = f"rank {rank + 1}" if right.image_id in listed else f"beyond rank {len(listed)}"
        pictures.append(_shown(right, GREEN, Note(f"the right one, {place_text}", RED)))
    return tuple(pictures)


def _shown(sample: Sample, frame: str | None, note: Note) -> Picture:
    return Picture(sample.image, sample.size, frame=frame, notes=(note,), upright=sample.upright)
