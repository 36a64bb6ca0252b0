"""The model's part of two-stage retrieval: token states kept or made anew, and pairs of them scored by the matching task."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit.errors import ConfigError, suggest
from fusionkit.evaluation.retrieval import Match, Pairing, rerank
from fusionkit.types import Batch, Encoded, Tokens

RULES = ("itm", "itm+itc")


@dataclass(frozen=True)
class Reranking:
    """How captions and images are matched again after the contrastive ranking.

    ``k``            candidates a query; 0: no re-ranking.
    ``rule``         "itm": the logit of a match (ALBEF, X-VLM); "itm+itc": plus the cosine, not divided by the temperature (BLIP).
    ``chunk``        pairs scored at a time.
    ``memory_bytes`` up to here image states stay in memory between the two stages; above, images are encoded a second time.
    """

    k: int = 32
    rule: str = "itm"
    chunk: int = 256
    memory_bytes: int = 2 * 2**30

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"unknown re-ranking rule '{self.rule}': {suggest(self.rule, RULES)}")
        if self.k < 0 or self.chunk < 1:
            raise ConfigError("re-ranking needs k >= 0 (0 switches it off) and chunk >= 1")


class Rows(NamedTuple):
    """Token states and the rows of the pairing that they belong to, ascending."""

    rows: Tensor  # (B,)
    tokens: Tokens


class TokenStore:
    """What the first stage leaves for the second: the text states of all captions, and image states as far as they fit."""

    def __init__(self, pairing: Pairing, memory_bytes: int) -> None:
        self.image_row = {image_id: row for row, image_id in enumerate(pairing.image_ids)}
        self.caption_row = {caption_id: row for row, caption_id in enumerate(pairing.caption_ids)}
        self.memory_bytes, self.image_bytes = memory_bytes, 0
        self.images: list[Rows] = []
        self.texts: list[Rows] = []

    @property
    def holds_images(self) -> bool:
        """Whether all image states seen so far are here."""
        return self.image_bytes <= self.memory_bytes

    def add(self, batch: Batch, kind: str, encoded: Encoded) -> None:
        """Keep the states of one batch."""
        self.texts.append(_known(self.caption_row, batch[kind]["ids"], encoded.text[kind], torch.device("cpu")))  # type: ignore[literal-required]
        embeds = encoded.image.embeds
        self.image_bytes += embeds.numel() * embeds.element_size()
        if self.holds_images:
            self.images.append(self.image_rows(batch, encoded.image))
        else:
            self.images.clear()

    def image_rows(self, batch: Batch, image: Tokens) -> Rows:
        """The states of those images of a batch that have captions."""
        return _known(self.image_row, batch["image_ids"], image, torch.device("cpu"))

    def joined_texts(self) -> Tokens:
        """All captions in the order of the pairing."""
        order = torch.cat([part.rows for part in self.texts]).argsort()
        return _take(_join([part.tokens for part in self.texts]), order)


class ImageWindow:
    """Image states handed out in ascending order from a stream of batches, holding no more than are being asked for."""

    def __init__(self, stream: Iterable[Rows]) -> None:
        self.stream: Iterator[Rows] = iter(stream)
        self.parts: list[Rows] = []
        self.rows, self.tokens = torch.empty(0, dtype=torch.int64), None

    def take(self, wanted: Tensor) -> Tokens:
        """Tokens of the ascending rows ``wanted`` (B,); no row may be below one that was asked for before."""
        parts = [part for part in self.parts if len(part.rows) and part.rows[-1] >= wanted[0]]
        while not parts or parts[-1].rows[-1] < wanted[-1]:
            part = next(self.stream)
            parts += [part] if len(part.rows) and part.rows[-1] >= wanted[0] else []
        if [id(part) for part in parts] != [id(part) for part in self.parts] or self.tokens is None:
            self.parts, self.rows = parts, torch.cat([part.rows for part in parts])
            self.tokens = _join([part.tokens for part in parts])
        return _take(self.tokens, torch.searchsorted(self.rows, wanted))


def rerank_with(
    model: Any,
    matcher: Any,
    sim: Tensor,
    store: TokenStore,
    encode_again: Callable[[], Iterable[tuple[Batch, Tokens]]],
    settings: Reranking,
    device: torch.device,
    advance: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Text-to-image and image-to-text scores of ``retrieval.rerank`` with ``matcher.score_pairs`` of a matching task.

    sim (T, I) in the order of the store's pairing; ``encode_again`` yields the batches with their image tokens once more;
    ``advance`` is told the number of pairs done.
    """
    texts = store.joined_texts()
    again = (store.image_rows(batch, tokens) for batch, tokens in encode_again())
    window = ImageWindow(store.images if store.holds_images else again)

    def match(image_rows: Tensor, text_rows: Tensor) -> Tensor:
        distinct, index = image_rows.unique(return_inverse=True)
        memory = model.fusion.prepare(_to(window.take(distinct), device))
        logits = matcher.score_pairs(model, memory, _to(_trim(_take(texts, text_rows)), device), index.to(device))
        scores = logits[:, 1].float().cpu()
        advance(len(scores))
        return scores + sim[text_rows, image_rows] if settings.rule == "itm+itc" else scores

    match_rows: Match = match
    return rerank(sim, match_rows, settings.k, settings.chunk)


def _known(rows: dict[Any, int], ids: list[Any], tokens: Tokens, device: torch.device) -> Rows:
    """The tokens whose ids have rows, by ascending row."""
    places = sorted((rows[item], at) for at, item in enumerate(ids) if item in rows)
    at = torch.tensor([place for _, place in places], dtype=torch.int64, device=tokens.embeds.device)
    return Rows(torch.tensor([row for row, _ in places], dtype=torch.int64), _to(_take(tokens, at), device))


def _take(tokens: Tokens, at: Tensor) -> Tokens:
    return Tokens(tokens.embeds[at], None if tokens.mask is None else tokens.mask[at], tokens.pooled[at])


def _to(tokens: Tokens, device: torch.device) -> Tokens:
    return Tokens(*(None if part is None else part.to(device) for part in tokens))


def _trim(text: Tokens) -> Tokens:
    """Without the columns that are padding in every row."""
    assert text.mask is not None
    length = int(text.mask.sum(dim=1).max())
    return Tokens(text.embeds[:, :length], text.mask[:, :length], text.pooled)


def _join(parts: list[Tokens]) -> Tokens:
    """One Tokens of all rows; shorter ones are padded at the end, out of sight of the mask."""
    length = max(part.embeds.shape[1] for part in parts)
    embeds = torch.cat([F.pad(part.embeds, (0, 0, 0, length - part.embeds.shape[1])) for part in parts])
    pooled = torch.cat([part.pooled for part in parts])
    if all(part.mask is None and part.embeds.shape[1] == length for part in parts):
        return Tokens(embeds, None, pooled)
    masks = [part.embeds.new_ones(part.embeds.shape[:2]) if part.mask is None else part.mask for part in parts]
    return Tokens(embeds, torch.cat([F.pad(mask, (0, length - mask.shape[1])) for mask in masks]), pooled)
