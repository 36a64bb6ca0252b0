"""Features become ranked lists: the images that have captions, their similarities, and the records of the best."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusionkit.data.sample import Sample
from fusionkit.inference.candidates import TopK
from fusionkit.scoring.records import Record, Records, index_records


@dataclass(frozen=True)
class Pairing:
    """The images that have captions, their captions, and which belongs to which."""

    image_ids: list[Any]  # (I,)
    caption_ids: list[Any]  # (T,)
    owner: Tensor  # (T,) int64, the row of each caption's image

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Pairing":
        """Read the pairing off the annotations."""
        rows: dict[Any, int] = {}
        owner: dict[Any, int] = {}
        for sample in samples:
            for caption in sample.texts.get("captions", ()):
                owner[caption.id] = rows.setdefault(sample.image_id, len(rows))
        return cls(list(rows), list(owner), torch.tensor(list(owner.values()), dtype=torch.int64))


def similarities(records: Sequence[Record], samples: Sequence[Sample]) -> Tensor:
    """Dot products (T, I) of the features in the order of ``Pairing.of(samples)``, -inf where one is missing."""
    pairing = Pairing.of(samples)
    captions = index_records(
        [record for record in records if "caption_id" in record], "caption_id", set(pairing.caption_ids)
    )
    known_images = {sample.image_id for sample in samples}
    images = index_records([record for record in records if "caption_id" not in record], "image_id", known_images)
    text_feats, has_text = _stack(captions, pairing.caption_ids)
    image_feats, has_image = _stack(images, pairing.image_ids)
    sim = (
        text_feats @ image_feats.T
        if text_feats.numel() and image_feats.numel()
        else torch.zeros(len(has_text), len(has_image))
    )
    return sim.masked_fill(~(has_text[:, None] & has_image[None, :]), float("-inf"))


def list_records(text_to_image: TopK, image_to_text: TopK, pairing: Pairing) -> Records:
    """The best of every query: ``{"caption_id", "image_ids", "scores"}``, ``{"image_id", "caption_ids", "scores"}``."""
    return [
        {"caption_id": query, "image_ids": ids, "scores": scores}
        for query, ids, scores in _named(text_to_image, pairing.caption_ids, pairing.image_ids)
    ] + [
        {"image_id": query, "caption_ids": ids, "scores": scores}
        for query, ids, scores in _named(image_to_text, pairing.image_ids, pairing.caption_ids)
    ]


def _stack(records: dict[Any, Record], ids: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Features (N, E) in the order of ids, zeros where there are none, and bool (N,) where there are."""
    is_there = torch.tensor([item in records for item in ids], dtype=torch.bool)
    width = len(next(iter(records.values()))["feats"]) if records else 0
    nothing = torch.zeros(width)
    feats = [torch.as_tensor(records[item]["feats"]).float() if item in records else nothing for item in ids]
    return torch.stack(feats), is_there


def _named(ranking: TopK, queries: Sequence[Any], items: Sequence[Any]) -> Iterable[tuple[Any, list[Any], list[float]]]:
    for query, columns, row in zip(queries, ranking.items.tolist(), ranking.scores.tolist(), strict=True):
        yield query, [items[column] for column in columns], row
