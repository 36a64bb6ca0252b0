"""Search among the images of an index by a text, an image or both, and groups of images that look alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit.data.requests import Request
from fusionkit.errors import ConfigError
from fusionkit.inference.answering import Predictor
from fusionkit.inference.candidates import TopK
from fusionkit.inference.embedding import Embedder, require_finite
from fusionkit.inference.image_index import ImageIndex, content_of
from fusionkit.inference.index_update import Update
from fusionkit.inference.nearest import near_groups, nearest
from fusionkit.inference.prediction import matcher_of
from fusionkit.inference.progress import Bar, show_progress
from fusionkit.inference.reranking import combined
from fusionkit.scoring.records import Record
from fusionkit.types import Tokens


@dataclass(frozen=True)
class Query:
    """What is looked for: a text, an image, or an image with a text."""

    text: str | None = None
    image: Request | None = None


@dataclass(frozen=True)
class Ways:
    """How to search.

    ``top``     how many images to name.
    ``k``       how many of the nearest to a text are ranked again by matching, at least ``top``; 0: none.
    ``weight``  the part of the image, from 0 to 1, in the mean of the vectors of an image and its text.
    """

    top: int = 10
    k: int = 64
    weight: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("top", 1), ("k", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} is {value!r}, but has to be a whole number from {least}")
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float) or not 0 <= self.weight <= 1:
            raise ConfigError(
                f"weight is {self.weight!r}, but has to be a number from 0 (the text alone) to 1 (the image alone)"
            )


class ImageSearch:
    """An index that a predictor can search, and what its last ``update`` did, if there was one."""

    def __init__(self, predictor: Predictor, index: ImageIndex, update: Update | None = None) -> None:
        self.predictor, self.index, self.update = predictor, index, update
        self.embedder = Embedder(predictor)
        self.matcher = matcher_of(predictor.tasks)

    def search(self, queries: Sequence[Query], ways: Ways) -> list[list[Record]]:
        """The best images of each query: {"rank", "image", "score", "cosine"}, best first.

        Those of a text are ranked again by matching, where a task matches: they have ``match`` too, a probability, and
        ``score`` is by the checkpoint's rule of re-ranking; else it is the cosine. Behind them stand those of the candidates
        that cannot be read any more, {"image", "cosine", "error"}. Raises DataError for an image of a query that cannot be read.
        """
        matched = [number for number, query in enumerate(queries) if self.matches(query, ways.k)]
        depth = max(ways.top, ways.k) if matched else ways.top
        found = nearest(self.index.features, self._vectors(queries, ways.weight), depth)
        texts = [str(queries[number].text) for number in matched]
        ranked = self._rerank(texts, TopK(*(part[matched] for part in found))) if matched else ()
        listed = [self._by_cosine(*row) for row in zip(*(part.tolist() for part in found), strict=True)]
        for number, records in zip(matched, ranked, strict=True):
            listed[number] = records
        return [_numbered(records, ways.top) for records in listed]

    def matches(self, query: Query, k: int) -> bool:
        """Whether matching ranks the nearest of a query again: it is about a text, and knows no image beside it."""
        return k > 0 and self.matcher is not None and query.image is None

    def duplicates(self, threshold: float) -> list[list[Record]]:
        """Groups of images of a cosine from ``threshold`` on, or of the same bytes: {"image", "cosine", "same_bytes"}.

        The cosine is that with the first of the group; ``same_bytes`` says that one before it in the group has the same.
        """
        require_threshold(threshold)
        index, groups, contents = self.index, list[list[Record]](), self.index.contents()
        for rows in near_groups(index.features, threshold, contents):
            cosines = (index.features[rows] @ index.features[rows[0]]).tolist()
            groups.append([])
            before = set[bytes]()
            for row, cosine in zip(rows, cosines, strict=True):
                same = contents[row] in before
                groups[-1].append({"image": index.name(row), "cosine": cosine, "same_bytes": same})
                before.add(contents[row])
        return groups

    def _vectors(self, queries: Sequence[Query], weight: float) -> Tensor:
        """The queries' vectors (Q, E)."""
        texts = [query.text for query in queries if query.text is not None]
        images = list({id(query.image): query.image for query in queries if query.image is not None}.values())
        said = iter(self.embedder.texts(texts) if texts else ())
        shown = [row for part in self.embedder.map_images(images, self.embedder.project_images) for row in part]
        seen = {id(image): row for image, row in zip(images, shown, strict=True)}
        return torch.stack([self._vector(query, said, seen, weight) for query in queries])

    def _vector(self, query: Query, said: Iterator[Tensor], seen: dict[int, Tensor], weight: float) -> Tensor:
        if query.image is None:
            return next(said)
        image = seen[id(query.image)]
        return image if query.text is None else F.normalize(weight * image + (1 - weight) * next(said), dim=0)

    def _by_cosine(self, items: list[int], cosines: list[float]) -> list[Record]:
        names = map(self.index.name, items)
        return [{"image": name, "score": cosine, "cosine": cosine} for name, cosine in zip(names, cosines, strict=True)]

    def _rerank(self, texts: Sequence[str], found: TopK) -> Iterator[list[Record]]:
        """The candidates (Q, k) of each text as matching and cosine rank them, and behind them those that cannot be read."""
        predictor, at_once = self.predictor, 4 * self.predictor.batch_size
        rule, temperature = predictor.options.reranking.rule, predictor.model.temperature.item()
        images = sum(len(items.unique()) for items in found.items.split(at_once))
        with show_progress(predictor.options.quiet or images <= predictor.batch_size) as progress:
            bar = Bar(progress, "matching")
            bar.begin(images, 0)
            for start in range(0, len(texts), at_once):
                items, cosines = (part[start : start + at_once] for part in found)
                logits, faults = self._logits(texts[start : start + at_once], items, bar)
                scores = combined(rule, logits.flatten(0, 1), cosines.flatten(), temperature).view_as(cosines)
                matches = logits.softmax(dim=2)[:, :, 1]
                for number in range(len(items)):
                    yield self._by_score(items[number], scores[number], cosines[number], matches[number], faults)

    def _by_score(
        self, items: Tensor, scores: Tensor, cosines: Tensor, matches: Tensor, faults: dict[int, str]
    ) -> list[Record]:
        """The candidates (k,) of one text, those with faults behind all others."""
        numbers = list(zip(*(part.tolist() for part in (items, scores, cosines, matches)), strict=True))
        there = sorted((each for each in numbers if each[0] not in faults), key=lambda each: -each[1])
        ranked: list[Record] = [
            {"image": self.index.name(row), "score": score, "cosine": cosine, "match": match}
            for row, score, cosine, match in there
        ]
        return ranked + [
            {"image": self.index.name(row), "cosine": cosine, "error": faults[row]}
            for row, _, cosine, _ in numbers
            if row in faults
        ]

    def _logits(self, texts: Sequence[str], items: Tensor, bar: Bar) -> tuple[Tensor, dict[int, str]]:
        """The logits (Q, k, 2) of texts with their candidates (Q, k), [..., 1] for a match, and what is wrong with which rows.

        Each image is read once for all texts.
        """
        embedder, faults, logits = self.embedder, dict[int, str](), torch.zeros(*items.shape, 2)
        source = next(name for name, tasks in self.predictor.sources.items() if self._matcher_name in tasks)
        rows = embedder.tokenize(texts, source)
        text = embedder.compute(rows, embedder.encode_text) if self.matcher.encodes else rows
        for images in items.unique().split(self.predictor.batch_size):
            read = embedder.read([Request(self.index.path(row), {}) for row in images.tolist()], source)
            wrong = self._changed(images.tolist()) | {int(images[place]): fault for place, fault in read.faults.items()}
            faults |= {
                row: f"{fault}; update the index with images={self.index.images}" for row, fault in wrong.items()
            }
            if read.batch is not None:
                pairs = (items[:, :, None] == images[read.places]).nonzero()  # (P, 3): text, place among its own, image
                inputs = (read.batch, text, pairs[:, 0], pairs[:, 2])
                logits[pairs[:, 0], pairs[:, 1]] = require_finite(embedder.compute(inputs, self._match).float())
            bar.advance(len(images))
        return logits, faults

    def _match(self, inputs: Any) -> Tensor:
        """The logits (P, 2) of pairs of texts and images of a batch."""
        batch, text, text_rows, image_rows = inputs
        model = self.predictor.model
        memory = model.fusion.prepare(self.embedder.image_tokens(batch))
        chunk = self.predictor.options.reranking.chunk
        parts = zip(text_rows.split(chunk), image_rows.split(chunk), strict=True)
        return torch.cat(
            [self.matcher.score_pairs(model, memory, _taken(text, rows), images) for rows, images in parts]
        )

    @property
    def _matcher_name(self) -> str:
        return next(name for name, task in self.predictor.tasks.items() if task is self.matcher)

    def _changed(self, rows: list[int]) -> dict[int, str]:
        """Those whose files have other bytes than when they were embedded."""
        paths, contents = {row: self.index.path(row) for row in rows}, self.index.table["content"]
        return {
            row: f"{path} has changed since it was embedded"
            for row, path in paths.items()
            if path.is_file() and content_of(path) != contents[row].as_py()
        }


def require_threshold(threshold: Any) -> None:
    """Raise ConfigError for what is no cosine from which on two images look alike."""
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
        raise ConfigError(f"threshold is {threshold!r}, but has to be a cosine above 0 and at most 1")


def _taken(text: Any, rows: Tensor) -> Any:
    """Some of the encoded texts, or of the rows of token ids."""
    return text.take(rows) if isinstance(text, Tokens) else {name: part[rows] for name, part in text.items()}


def _numbered(records: list[Record], top: int) -> list[Record]:
    """The first ``top`` with their ranks, and those that have none because of an error."""
    ranked = [record for record in records if "error" not in record][:top]
    return [{"rank": rank} | record for rank, record in enumerate(ranked, start=1)] + [
        record for record in records if "error" in record
    ]
