"""The model's part of two-stage retrieval: token states, kept or made anew, and the matching task's scores of pairs."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit.errors import ConfigError, suggest
from fusionkit.evaluation.retrieval import Pairing, rerank
from fusionkit.types import Batch, Encoded, Tokens

RULES = ("itm", "itm+cosine", "density_ratio")


@dataclass(frozen=True)
class Reranking:
    """How captions and images are matched again after the contrastive ranking.

    ``k``            candidates a query; 0: no re-ranking.
    ``rule``         "itm": the logit of a match (ALBEF, X-VLM); "itm+cosine": plus the cosine, without temperature (BLIP);
                     "density_ratio": the log-odds of a match plus the cosine over the temperature (ours, the default).
    ``chunk``        pairs scored at a time.
    ``memory_bytes`` up to here image states are kept between the two stages; above, images are encoded a second time.

    Why "density_ratio": a classifier of matches against negatives has the log-odds log p(match) / q(negative) (noise
    contrastive estimation, Gutmann and Hyvärinen 2010). Hard negatives are drawn from the contrastive softmax, so q itself
    grows with exp(cosine / temperature), and what ranks candidates is the sum of both. "itm" alone forgets what the
    contrastive stage knew, and a matching head that has not learnt yet ranks at random.
    """

    k: int = 32
    rule: str = "density_ratio"
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


class ImageWindow:
    """Image states handed out in ascending order from a stream of batches; holds only those being asked for."""

    def __init__(self, stream: Iterable[Rows]) -> None:
        self.stream: Iterator[Rows] = iter(stream)
        self.parts: list[Rows] = []
        self.joined: Rows | None = None

    def take(self, wanted: Tensor) -> Tokens:
        """Tokens of the ascending rows ``wanted`` (B,); no row may be below one that was asked for before."""
        parts = [part for part in self.parts if part.rows[-1] >= wanted[0]]
        while not parts or parts[-1].rows[-1] < wanted[-1]:
            part = next(self.stream)
            if len(part.rows) and part.rows[-1] >= wanted[0]:
                parts.append(part)
        if self.joined is None or len(parts) != len(self.parts) or parts[0] is not self.parts[0]:
            self.parts = parts
            self.joined = Rows(torch.cat([part.rows for part in parts]), _join([part.tokens for part in parts]))
        return self.joined.tokens.take(torch.searchsorted(self.joined.rows, wanted))


class Reranker:
    """Keeps the token states of the first stage and scores candidates with ``matcher.score_pairs`` (a matching task).

    Text states of all captions are kept on the CPU; image states as far as they fit into ``settings.memory_bytes``.
    """

    def __init__(self, model: Any, matcher: Any, pairing: Pairing, settings: Reranking, device: torch.device) -> None:
        self.model, self.matcher, self.settings, self.device = model, matcher, settings, device
        self.image_row = {image_id: row for row, image_id in enumerate(pairing.image_ids)}
        self.caption_row = {caption_id: row for row, caption_id in enumerate(pairing.caption_ids)}
        self.image_bytes = 0
        self.images: list[Rows] = []
        self.texts: list[Rows] = []

    @property
    def holds_images(self) -> bool:
        """Whether all image states seen so far are kept."""
        return self.image_bytes <= self.settings.memory_bytes

    def keep(self, batch: Batch, encoded: Encoded) -> None:
        """Keep the states of one batch."""
        kind = self.matcher.reads
        self.texts.append(_known(self.caption_row, batch[kind]["ids"], encoded.text[kind]))  # type: ignore[literal-required]
        embeds = encoded.image.embeds
        self.image_bytes += embeds.numel() * embeds.element_size()
        if self.holds_images:
            self.images.append(_known(self.image_row, batch["image_ids"], encoded.image))
        else:
            self.images.clear()

    def __call__(
        self, sim: Tensor, image_tokens: Iterable[tuple[Batch, Tokens]], advance: Callable[[int], None]
    ) -> tuple[Tensor, Tensor]:
        """``retrieval.rerank`` of sim (T, I), ordered as the pairing: text-to-image, image-to-text scores.

        ``image_tokens`` yields all batches with their image tokens again, in the same order, and is read where they
        were not kept; ``advance`` is told how many pairs were scored.
        """
        order = torch.cat([part.rows for part in self.texts]).argsort()
        texts = _join([part.tokens for part in self.texts]).take(order)
        again = (_known(self.image_row, batch["image_ids"], tokens) for batch, tokens in image_tokens)
        window = ImageWindow(self.images if self.holds_images else again)

        def match(image_rows: Tensor, text_rows: Tensor) -> Tensor:
            distinct, index = image_rows.unique(return_inverse=True)
            memory = self.model.fusion.prepare(_to(window.take(distinct), self.device))
            text = _to(_trim(texts.take(text_rows)), self.device)
            logits = self.matcher.score_pairs(self.model, memory, text, index.to(self.device)).float().cpu()
            advance(len(logits))
            return self._combine(logits, sim[text_rows, image_rows])

        return rerank(sim, match, self.settings.k, self.settings.chunk)

    def _combine(self, logits: Tensor, cosine: Tensor) -> Tensor:
        """Scores (P,) of pairs from the matching logits (P, 2) and cosines (P,)."""
        match self.settings.rule:
            case "itm":
                return logits[:, 1]
            case "itm+cosine":
                return logits[:, 1] + cosine
            case _:
                return logits[:, 1] - logits[:, 0] + cosine / self.model.temperature.item()


def _known(rows: dict[Any, int], ids: list[Any], tokens: Tokens) -> Rows:
    """The tokens whose ids have rows, by ascending row, on the CPU."""
    places = sorted((rows[item], at) for at, item in enumerate(ids) if item in rows)
    at = torch.tensor([place for _, place in places], dtype=torch.int64, device=tokens.embeds.device)
    return Rows(torch.tensor([row for row, _ in places], dtype=torch.int64), _to(tokens.take(at), torch.device("cpu")))


def _to(tokens: Tokens, device: torch.device) -> Tokens:
    mask = None if tokens.mask is None else tokens.mask.to(device)
    return Tokens(tokens.embeds.to(device), mask, tokens.pooled.to(device))


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
