"""Where texts look in their images, as arrays: of a whole text, and of each of its words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusionkit.files.atomic import atomic_write
from fusionkit.model import saliency
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.saliency import Score
from fusionkit.types import TextRows, Tokens


@dataclass(frozen=True)
class Look:
    """The maps of one text: first of the whole text, then of each word; of a grid of the image, or of its regions."""

    words: Sequence[str]
    attention: np.ndarray  # (1 + W, side, side) or (1 + W, regions), mean over heads and tokens
    gradcam: np.ndarray | None  # of the same shape; None where the prediction hangs on no one number

    @property
    def best(self) -> np.ndarray:
        """GradCAM where there is one: it says what the prediction hangs on, attention only what was read."""
        return self.attention if self.gradcam is None else self.gradcam

    def write(self, path: Path) -> None:
        """An npz file: ``words`` (W,), ``attention`` and, where there is one, ``gradcam``."""
        arrays: dict[str, Any] = {"words": np.array(self.words, dtype=str), "attention": self.attention}
        arrays |= {} if self.gradcam is None else {"gradcam": self.gradcam}
        with atomic_write(path) as file:
            np.savez_compressed(file, **arrays)


@dataclass(frozen=True)
class AttentionWeights:
    """What the tokens of one text give to those of its image, by layer and head, padding left out.

    ``weights`` (layers, heads, L, N) of all image tokens; ``grid`` (layers, heads, L, rows, columns) of those that stand for a
    place in the image, None for regions.
    """

    tokens: Sequence[str]  # (L,) of the text, its ends included
    weights: Tensor
    grid: Tensor | None


def read_attention(
    model: VisionLanguageModel, images: Any, image: Tokens, text: Tokens, rows: TextRows, tokenizer: Any
) -> list[AttentionWeights]:
    """The attention of T encoded texts; ``images`` and ``image`` as in ``look``."""
    weights = saliency.attention_weights_of(model, image, text, rows["image_index"])  # (layers, T, H, L, N)
    found = []
    for row, (ids, mask) in enumerate(zip(rows["input_ids"], rows["attention_mask"], strict=True)):
        index = rows["image_index"][row]
        own = weights[:, row][:, :, mask.bool()]  # (layers, H, L, N) without the text's padding
        flat = own.flatten(0, 2)
        maps = saliency.pictures(model, images, index.expand(len(flat)), flat)
        grid = None if maps is None else maps.unflatten(0, own.shape[:3]).cpu()
        is_there = slice(None) if image.mask is None else image.mask[index].bool()
        tokens = tokenizer.convert_ids_to_tokens(ids[mask.bool()].tolist())
        found.append(AttentionWeights(tokens, own[..., is_there].cpu(), grid))
    return found


def look(
    model: VisionLanguageModel,
    evidence: Score | None,
    images: Any,
    image: Tokens,
    text: Tokens,
    rows: TextRows,
    tokenizer: Any,
    layer: int | None,
) -> list[Look]:
    """The looks of T encoded texts at their images; GradCAM explains the evidence, if there is any.

    ``images`` is what the image encoder read (``model.images_of``), ``image`` its tokens.
    """
    parts = model, image, text, rows["image_index"]
    attention = _by_word(model, saliency.attention_maps(*parts, layer), images, text, rows)
    cams: list[Any] = [None] * len(attention)
    if evidence is not None:
        cams = _by_word(model, saliency.gradcam(model, evidence, *parts[1:], layer), images, text, rows)
    words = [
        _words(ids, numbers, tokenizer) for ids, numbers in zip(rows["input_ids"], rows["word_index"], strict=True)
    ]
    return [Look(*parts) for parts in zip(words, attention, cams, strict=True)]


def _by_word(model: VisionLanguageModel, maps: Tensor, images: Any, text: Tokens, rows: TextRows) -> list[np.ndarray]:
    """Maps (T, L, N) of tokens -> of each text (1 + W, ...): the mean over all tokens, and over those of each word."""
    assert text.mask is not None
    found = []
    whole = saliency.over_words(maps, text.mask)
    for row, numbers in enumerate(rows["word_index"]):
        own = [maps[row, numbers == word].mean(dim=0) for word in range(int(numbers.max()) + 1)]
        stacked = torch.stack([whole[row], *own])
        maps_of_image = saliency.pictures(model, images, rows["image_index"][row].expand(len(stacked)), stacked)
        found.append((stacked if maps_of_image is None else maps_of_image).cpu().numpy())
    return found


def _words(ids: Tensor, numbers: Tensor, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(ids[numbers == word].tolist()).strip() for word in range(int(numbers.max()) + 1)]
