"""The model's part of two-stage retrieval: the matching task's logits of the nearest pairs, image by image."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit.assembly.evaluation_options import MATCH, MATCH_AND_COSINE, Reranking
from fusionkit.distributed import barrier, rank, world_size
from fusionkit.inference.candidates import Candidates, TopK, blocks, on_top
from fusionkit.inference.encoding_cache import Encodings
from fusionkit.inference.logits_file import LogitsFile
from fusionkit.inference.progress import Bar
from fusionkit.inference.rankings import Pairing
from fusionkit.model.model import VisionLanguageModel
from fusionkit.types import Tokens


class Images:
    """Image states (by row of the pairing) that stay where the encodings are: on disk, or in the system's cache of it."""

    def __init__(self, parts: Sequence[tuple[list[Any], Tokens]], rows: dict[Any, int]) -> None:
        # a sample's further images, which bear its id, stand behind its own
        self.places = {
            rows[key]: (tokens, torch.tensor([at]))
            for ids, tokens in parts
            for at, key in reversed(list(enumerate(ids)))
            if key in rows
        }

    def take(self, rows: Tensor) -> Tokens:
        """The states of some rows (B,), shorter ones padded."""
        return _join([tokens.take(at) for tokens, at in (self.places[row] for row in rows.tolist())])

    @property
    def widest(self) -> int:
        """Bytes of the largest image's states."""
        return max(tokens.embeds[at].nbytes for tokens, at in self.places.values())


class Texts:
    """Text states (by row of the pairing) packed end to end, without padding."""

    def __init__(self, parts: Sequence[tuple[list[Any], Tokens]], rows: dict[Any, int]) -> None:
        masks = [_mask(tokens).bool() for _, tokens in parts]
        lengths = torch.cat([mask.sum(dim=1) for mask in masks])
        order = torch.tensor([rows[key] for ids, _ in parts for key in ids]).argsort()
        self.embeds = torch.cat([tokens.embeds[mask] for (_, tokens), mask in zip(parts, masks, strict=True)])  # (M, D)
        self.pooled = torch.cat([tokens.pooled for _, tokens in parts])[order]
        self.starts, self.lengths = (lengths.cumsum(0) - lengths)[order], lengths[order]

    def to(self, device: torch.device) -> None:
        """Move all of them."""
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.to(device))

    def take(self, rows: Tensor) -> Tokens:
        """The states of some rows (B,), padded to the longest."""
        rows = rows.to(self.starts.device)
        lengths = self.lengths[rows][:, None]
        steps = torch.arange(int(lengths.max()), device=rows.device)[None]
        mask = steps < lengths
        places = torch.where(mask, self.starts[rows][:, None] + steps, self.starts[rows][:, None])
        return Tokens(self.embeds[places], mask.long(), self.pooled[rows])

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return self.embeds.nbytes

    @property
    def widest(self) -> int:
        """Bytes of the longest text's states."""
        return int(self.lengths.max()) * self.embeds[0].nbytes


class TokenIds:
    """Token ids (by row of the pairing) of texts that the matching task encodes itself, packed end to end.

    ``words`` is how many words it tells apart: what it computes with a text is as many numbers a token.
    """

    def __init__(self, parts: Sequence[dict[str, Any]], rows: dict[Any, int], words: int) -> None:
        masks = [part["attention_mask"].bool() for part in parts]
        lengths = torch.cat([mask.sum(dim=1) for mask in masks])
        order = torch.tensor([rows[key] for part in parts for key in part["ids"]]).argsort()
        self.ids = torch.cat([part["input_ids"][mask] for part, mask in zip(parts, masks, strict=True)])  # (M,)
        self.starts, self.lengths = (lengths.cumsum(0) - lengths)[order], lengths[order]
        self.words = words

    def to(self, device: torch.device) -> None:
        """Nothing: what is taken of them is moved."""

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` (B, L) of some rows (B,), padded to the longest."""
        lengths = self.lengths[rows][:, None]
        steps = torch.arange(int(lengths.max()))[None]
        mask = steps < lengths
        places = torch.where(mask, self.starts[rows][:, None] + steps, self.starts[rows][:, None])
        return {"input_ids": self.ids[places], "attention_mask": mask.long()}

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return self.ids.nbytes

    @property
    def widest(self) -> int:
        """Bytes of what is said of the longest text's tokens."""
        return int(self.lengths.max()) * self.words * torch.float32.itemsize


class Reranker:
    """Scores the candidates of a contrastive ranking with ``matcher.score_pairs`` (a matching task).

    It is given encoded texts, or of a task that encodes them itself (``encodes`` False) their token ids.

    Candidates come image by image, so that an image's keys and values are projected once for all its captions. Processes
    take the blocks of images in turns. Each block's logits go to a file at once, where a later run with the same
    candidates finds them: what was interrupted goes on, and another rule costs nothing.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        matcher: Any,
        encodings: Encodings,
        batches: int,
        pairing: Pairing,
        settings: Reranking,
        device: torch.device,
    ) -> None:
        self.model, self.matcher, self.settings, self.device = model, matcher, settings, device
        self.folder, kind = encodings.folder, matcher.reads
        kept = [encodings.load(number) for number in range(batches)]
        images = {image_id: row for row, image_id in enumerate(pairing.image_ids)}
        captions = {caption_id: row for row, caption_id in enumerate(pairing.caption_ids)}
        self.images = Images([(ids["image_ids"], encoded.image) for ids, encoded in kept], images)
        self.texts: Texts | TokenIds
        if matcher.encodes:
            texts = [(ids[kind]["ids"], encoded.text[kind]) for ids, encoded in kept if kind in encoded.text]
            self.texts = Texts(texts, captions)
        else:
            words = model.text_encoder.word_embeddings.num_embeddings
            self.texts = TokenIds([ids[kind] for ids, _ in kept if ids[kind]["ids"]], captions, words)
        if self.texts.nbytes <= settings.memory_bytes:
            self.texts.to(device)
        share = settings.WIDTHS * (self.images.widest + self.texts.widest)
        self.chunk = max(1, min(settings.chunk, settings.memory_bytes // share))

    def images_at_once(self) -> int:
        """How many prepared images the memory may hold, by the size of one."""
        first = torch.tensor([min(self.images.places)])
        prepared = self.model.fusion.prepare(_to(self.images.take(first), self.device))
        return max(1, self.settings.memory_bytes // max(1, _bytes(prepared)))

    def __call__(self, sim: Tensor, text_to_image: TopK, image_to_text: TopK, bar: Bar) -> tuple[TopK, TopK]:
        """Both rankings of the cosines sim (T, I) with their first ``k`` items in the order of the rule's scores."""
        candidates = Candidates.of(text_to_image, image_to_text, self.settings.k)
        cosine = sim[candidates.text_rows, candidates.image_rows]
        scores = combined(self.settings.rule, self.logits(candidates, bar), cosine, self.model.temperature.item())
        by_text, by_image = candidates.spread(scores.double())
        return on_top(text_to_image, by_text), on_top(image_to_text, by_image)

    def logits(self, candidates: Candidates, bar: Bar) -> Tensor:
        """Logits (P, 2) of all candidates, [:, 1] for a match, of which this process computes its share."""
        image_rows, text_rows = candidates.image_rows, candidates.text_rows
        name = hashlib.blake2b(candidates.pairs.numpy().tobytes(), digest_size=10).hexdigest()
        file = LogitsFile(self.folder / f"logits_{name}", len(image_rows))
        kept = file.read()
        own = blocks(image_rows, self.chunk, self.images_at_once())[rank() :: world_size()]
        missing = [block for block in own if kept[block].isnan().any()]
        todo, share = (sum(block.stop - block.start for block in part) for part in (missing, own))
        bar.begin(share, share - todo)
        for block in missing:
            file.write(block.start, self._score(image_rows[block], text_rows[block]))
            bar.advance(block.stop - block.start)
        barrier()
        return file.read()

    def _score(self, image_rows: Tensor, text_rows: Tensor) -> Tensor:
        """Logits (B, 2) of the pairs of a few images."""
        distinct, index = image_rows.unique_consecutive(return_inverse=True)
        memory = self.model.fusion.prepare(_to(self.images.take(distinct), self.device))
        index, parts = index.to(self.device), text_rows.split(self.chunk)
        logits = [
            self.matcher.score_pairs(self.model, memory, _to(self.texts.take(rows), self.device), at)
            for rows, at in zip(parts, index.split(self.chunk), strict=True)
        ]
        return torch.cat(logits).cpu()


def combined(rule: str, logits: Tensor, cosine: Tensor, temperature: float) -> Tensor:
    """Scores (P,) of pairs by a rule of ``Reranking``, from the matching logits (P, 2) and cosines (P,)."""
    if rule == MATCH:
        return logits[:, 1]
    if rule == MATCH_AND_COSINE:
        return logits[:, 1] + cosine
    apart: Tensor = logits[:, 1] - logits[:, 0]
    return apart + cosine / temperature


def _bytes(value: Any) -> int:
    """Bytes of all tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_bytes, parts))


def _mask(tokens: Tokens) -> Tensor:
    return tokens.embeds.new_ones(tokens.embeds.shape[:2]) if tokens.mask is None else tokens.mask


def _to(tokens: Any, device: torch.device) -> Any:
    if isinstance(tokens, dict):
        return {name: part.to(device) for name, part in tokens.items()}
    mask = None if tokens.mask is None else tokens.mask.to(device)
    return Tokens(tokens.embeds.to(device), mask, tokens.pooled.to(device))


def _join(parts: Sequence[Tokens]) -> Tokens:
    """One Tokens of all rows; shorter ones are padded at the end, out of sight of the mask."""
    length = max(part.embeds.shape[1] for part in parts)
    embeds = torch.cat([F.pad(part.embeds, (0, 0, 0, length - part.embeds.shape[1])) for part in parts])
    pooled = torch.cat([part.pooled for part in parts])
    if all(part.mask is None and part.embeds.shape[1] == length for part in parts):
        return Tokens(embeds, None, pooled)
    masks = [_mask(part) for part in parts]
    return Tokens(embeds, torch.cat([F.pad(mask, (0, length - mask.shape[1])) for mask in masks]), pooled)
