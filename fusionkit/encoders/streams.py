"""Image encoders of streams: frames by any encoder of single images, recordings by a small spectrogram transformer."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.encoders.base import ImageEncoder, SupportsRecompute, SupportsWeightless
from fusionkit.encoders.image import as_grid
from fusionkit.encoders.recompute import blocks_of, recompute
from fusionkit.errors import ConfigError
from fusionkit.types import Frames, Sounds, Tokens

OURS = "fusionkit.encoders."


class FrameEncoder(nn.Module):
    """Tokens of all frames of a stream, in their order, each frame's with the embedding of its place.

    ``encoder``          of single images, which reads each frame for itself.
    ``max_length``       frames that there are places for.
    ``tokens_per_frame`` None: all that the encoder gives; 1: its pooled vector; k * k: means over a grid of k x k, which
                         bound what a fusion reads.
    ``layers``           transformer layers in which all tokens of a stream see each other (joint space-time attention, arXiv
                         2102.05095), with ``num_heads``; 0: frames meet in the fusion alone.
    The embeddings of places are learnt, and start from sines and cosines. What stands for a stream alone (``pooled``) is the
    mean of its frames' pooled vectors, and beside it, where there are layers, that of the tokens, which know their order.
    """

    reads = "frames"

    def __init__(
        self,
        encoder: ImageEncoder,
        max_length: int = 16,
        tokens_per_frame: int | None = None,
        layers: int = 0,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if encoder.reads != "pixel_values":
            raise ConfigError(
                f"image_encoder.encoder: {type(encoder).__name__} reads {encoder.reads}, but frames have pixels; choose another"
            )
        if tokens_per_frame is not None and (
            tokens_per_frame < 1 or math.isqrt(tokens_per_frame) ** 2 != tokens_per_frame
        ):
            raise ConfigError(
                f"image_encoder.tokens_per_frame is {tokens_per_frame}, but has to be a square such as 1, 4 or 9, or null"
            )
        self.encoder, self.hidden_size = encoder, encoder.hidden_size
        self.max_length, self.tokens_per_frame = max_length, tokens_per_frame
        self.places = nn.Parameter(sines(max_length, self.hidden_size))
        self.layers = transformer(self.hidden_size, layers, num_heads, dropout)

    def forward(self, frames: Frames) -> Tokens:
        """Frames (I, F, 3, H, W) -> tokens (I, F * N, hidden_size), a stream's behind its own frames masked."""
        images, length = frames.mask.shape
        if length > self.max_length:
            raise ConfigError(
                f"a stream has {length} frames, but image_encoder.max_length is {self.max_length}; raise it, or "
                "shorten the source's stream"
            )
        is_frame = frames.mask.bool()
        seen = self.encoder(frames.values[is_frame])  # (R, N, D): padding is no image, nor in a batch norm's statistics
        embeds, mask = self._of_frame(seen)
        number = embeds.shape[1]
        tokens = embeds.new_zeros(images, length, number, self.hidden_size)
        tokens[is_frame] = embeds
        tokens = (tokens + self.places[:length, None].to(tokens.dtype)).flatten(1, 2)
        there = torch.zeros(images, length, number, dtype=torch.long, device=tokens.device)
        there[is_frame] = mask
        there = there.flatten(1)
        pooled = seen.pooled.new_zeros(images, length, self.hidden_size)
        pooled[is_frame] = seen.pooled
        whole = mean_over(pooled, frames.mask)
        if len(self.layers):
            for layer in self.layers:
                tokens = layer(tokens, src_key_padding_mask=there == 0)
            whole = whole + mean_over(tokens, there)
        return Tokens(tokens * there[..., None].to(tokens.dtype), there, whole)

    def _of_frame(self, seen: Tokens) -> tuple[Tensor, Tensor]:
        """Of R frames the tokens that are kept, (R, N, D), and their mask (R, N)."""
        embeds = seen.embeds
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device) if seen.mask is None else seen.mask
        if self.tokens_per_frame is None:
            return embeds, mask.long()
        if self.tokens_per_frame == 1:
            return seen.pooled[:, None], mask.new_ones(len(embeds), 1).long()
        grid = as_grid(embeds[:, getattr(self.encoder, "num_prefix_tokens", 0) :]).permute(0, 3, 1, 2)
        kept = F.adaptive_avg_pool2d(grid, math.isqrt(self.tokens_per_frame)).flatten(2).transpose(1, 2)
        return kept, mask.new_ones(kept.shape[:2]).long()

    def recompute(self) -> int:
        """Let the encoder of frames and the layers over all compute theirs anew in the backward pass; gives how many they are."""
        if isinstance(self.encoder, SupportsRecompute):
            return self.encoder.recompute() + recompute(blocks_of(self.layers))
        return recompute(blocks_of(self))

    def sizes(self) -> dict[str, Any]:
        """What the files of the encoder of frames said of its architecture."""
        return self.encoder.sizes() if isinstance(self.encoder, SupportsWeightless) else {}

    @staticmethod
    def weightless(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration with the encoder of frames built of no file."""
        inner = dict(config["encoder"])
        module, _, name = str(inner.get("_target_", "")).rpartition(".")
        made = getattr(sys.modules.get(module), name, None) if f"{module}.".startswith(OURS) else None
        weightless = getattr(made, "weightless", None)
        return {**config, "encoder": inner if weightless is None else weightless(inner, sizes)}


class SpectrogramEncoder(nn.Module):
    """Patches of a log-mel spectrogram with their places in time and frequency, in a transformer (AST, arXiv 2104.01778).

    ``mels``        bands of the spectrogram: those of the source's stream.
    ``patch``       bands and steps of a patch.
    ``max_length``  steps that there are places for.
    ``layers``      of the transformer, with ``num_heads``; 0: patches alone, for a fusion that is the whole transformer.
    Patches do not overlap, unlike AST's; ``pooled`` is their mean. What is behind a recording's end is masked.
    """

    reads = "sounds"

    def __init__(
        self,
        hidden_size: int,
        mels: int = 80,
        patch: tuple[int, int] = (16, 16),
        max_length: int = 1000,
        layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        high, wide = patch
        if mels % high:
            raise ConfigError(
                f"image_encoder.mels is {mels}, no multiple of the {high} bands of image_encoder.patch; change either"
            )
        self.hidden_size, self.mels, self.patch, self.max_length = hidden_size, mels, (high, wide), max_length
        self.patches = nn.Conv2d(1, hidden_size, (high, wide), (high, wide))
        self.bands = nn.Parameter(torch.randn(mels // high, 1, hidden_size) * 0.02)
        self.times = nn.Parameter(sines(-(-max_length // wide), hidden_size))
        self.layers = transformer(hidden_size, layers, num_heads, dropout)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, sounds: Sounds) -> Tokens:
        """Spectrograms (I, M, S) -> tokens (I, N, hidden_size): all steps of the lowest bands first."""
        _, mels, steps = sounds.values.shape
        if mels != self.mels:
            raise ConfigError(
                f"image_encoder.mels is {self.mels}, but the source's stream has {mels}; set both to one number"
            )
        if steps > self.max_length:
            raise ConfigError(
                f"a recording has {steps} steps, but image_encoder.max_length is {self.max_length}; raise it, or shorten "
                "the source's stream"
            )
        rest = -steps % self.patch[1]
        patches = self.patches(F.pad(sounds.values, (0, rest))[:, None])  # (I, D, rows, columns)
        columns = patches.shape[3]
        there = F.pad(sounds.mask, (0, rest))[:, :: self.patch[1]]  # a patch is one where its first step is
        mask = there[:, None].expand(-1, patches.shape[2], -1).flatten(1).long()
        tokens = (patches.permute(0, 2, 3, 1) + self.bands + self.times[:columns]).flatten(1, 2)
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=mask == 0)
        tokens = self.norm(tokens)
        return Tokens(tokens * mask[..., None].to(tokens.dtype), mask, mean_over(tokens, mask))


def mean_over(states: Tensor, mask: Tensor) -> Tensor:
    """States (I, N, D) where the mask (I, N) is 1 -> their means (I, D)."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def sines(length: int, size: int) -> Tensor:
    """Places (length, size): sines and cosines of wavelengths from two places to four times the length (Vaswani et al. 2017)."""
    waves = 2 * (2 * length) ** torch.linspace(0, 1, size // 2)
    angles = torch.arange(length)[:, None] * (2 * torch.pi / waves)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, size % 2))


def transformer(size: int, layers: int, num_heads: int, dropout: float) -> nn.ModuleList:
    """Layers with the norm before each part; ConfigError where the heads do not divide the width."""
    if layers < 0:
        raise ConfigError(f"image_encoder.layers is {layers}, but has to be a number of layers, from 0 on")
    if layers and size % num_heads:
        raise ConfigError(
            f"image_encoder.num_heads is {num_heads}, which does not divide the width of {size}; change it"
        )
    return nn.ModuleList(
        nn.TransformerEncoderLayer(size, num_heads, 4 * size, dropout, "gelu", batch_first=True, norm_first=True)
        for _ in range(layers)
    )
