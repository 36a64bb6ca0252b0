"""What every encoder promises. Each check takes a function that builds it, and raises AssertionError in a sentence."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusionkit.contracts.toys import VOCABULARY, module, require, require_equal, toy_batch, toy_regions
from fusionkit.encoders.base import ImageEncoder, TextEncoder
from fusionkit.types import Frames, Regions, Sounds, Tokens

SIDES = (64, 224, 32, 384)  # of images: the first that an encoder reads


def images_for(encoder: ImageEncoder, count: int) -> Any:
    """Images that the encoder reads: pixels (count, 3, S, S) of the first side S that it takes, or regions."""
    if encoder.reads == "regions":
        return toy_regions(count)
    if encoder.reads == "sounds":
        return toy_sounds(count, getattr(encoder, "mels", 80))
    for side in SIDES:
        pixels = toy_frames(count, side) if encoder.reads == "frames" else torch.randn(count, 3, side, side)
        try:
            encoder(pixels)
        except Exception:  # whatever a model makes of images of another size
            continue
        return pixels
    raise AssertionError(f"it reads none of the image sizes {', '.join(map(str, SIDES))}")


def toy_frames(count: int, side: int = 32, longest: int = 3) -> Frames:
    """Streams of 1 to ``longest`` frames, zeros behind them; the first has most."""
    mask = (torch.arange(longest) < torch.tensor([longest - row % longest for row in range(count)])[:, None]).long()
    return Frames(torch.randn(count, longest, 3, side, side) * mask[..., None, None, None], mask)


def toy_sounds(count: int, mels: int, longest: int = 48) -> Sounds:
    """Recordings of 16 to ``longest`` steps, zeros behind them; the first has most."""
    mask = (torch.arange(longest) < torch.tensor([longest - 16 * (row % 3) for row in range(count)])[:, None]).long()
    return Sounds(torch.randn(count, mels, longest) * mask[:, None], mask)


def image_tokens(build: Callable[[], ImageEncoder]) -> None:
    """Tokens of the width that it says, one vector an image, each image for itself, a gradient for all that trains."""
    encoder = build()
    known = ("pixel_values", "regions", "frames", "sounds")
    require(encoder.reads in known, f"reads is '{encoder.reads}'; known: {', '.join(known)}")
    module(encoder).eval()
    images = images_for(encoder, 3)
    tokens = encoder(images)
    _shapes(tokens, 3, encoder.hidden_size)
    one = (
        type(images)._make(part if part is None else part[1:2] for part in images)
        if isinstance(images, Regions | Frames | Sounds)
        else images[1:2]
    )
    alone = encoder(one)
    real = torch.ones(alone.embeds.shape[1]).bool() if alone.mask is None else alone.mask[0].bool()
    ours = [tokens.embeds[1:2, real], tokens.pooled[1:2]]
    require_equal(ours, [alone.embeds[:, real], alone.pooled], "an image in a batch and alone")
    _reaches(encoder, tokens)


def text_tokens(build: Callable[[], TextEncoder]) -> None:
    """Tokens of the width that it says, each text for itself, padding or not, a gradient for all that trains."""
    encoder = build()
    module(encoder).eval()
    words = encoder.word_embeddings.num_embeddings
    require(words >= VOCABULARY, f"word_embeddings has {words} rows, fewer than vocab_size={VOCABULARY}")
    rows = toy_batch(images=3)["captions"]
    ids, mask = rows["input_ids"], rows["attention_mask"]
    tokens = encoder(ids, mask)
    _shapes(tokens, 3, encoder.hidden_size)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = encoder(ids[row : row + 1, :length], mask[row : row + 1, :length])
        ours = [tokens.embeds[row : row + 1, :length], tokens.pooled[row : row + 1]]
        require_equal(ours, [alone.embeds, alone.pooled], "a padded text in a batch and alone")
    _reaches(encoder, tokens)


def _shapes(tokens: Tokens, count: int, width: int) -> None:
    found = tuple(tokens.embeds.shape)
    require((found[0], found[2]) == (count, width), f"tokens are {found}, but have to be ({count}, N, {width})")
    pooled = tuple(tokens.pooled.shape)
    require(pooled == (count, width), f"pooled is {pooled}, but has to be {(count, width)}")


def _reaches(encoder: object, tokens: Tokens) -> None:
    parts: list[Tensor] = [part for part in (tokens.embeds, tokens.pooled) if part.requires_grad]
    if parts:
        torch.stack([(part * torch.randn_like(part)).sum() for part in parts]).sum().backward()
    trains = [(name, parameter) for name, parameter in module(encoder).named_parameters() if parameter.requires_grad]
    idle = [name for name, parameter in trains if parameter.grad is None]
    require(not idle, f"no gradient reaches {', '.join(idle[:3])}; freeze what its tokens do not depend on")


IMAGE_CHECKS, TEXT_CHECKS = (image_tokens,), (text_tokens,)
