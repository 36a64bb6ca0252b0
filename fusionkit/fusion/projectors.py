"""Image tokens to what a language model reads in their place. Built as ``projector(image_size, hidden_size)``."""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.fusion.bert import PostNormBlock
from fusionkit.fusion.cross_attention import CrossAttentionLayer
from fusionkit.fusion.layers import Attention, FeedForward, KeyValue, stack
from fusionkit.types import Tokens


class Projector(Protocol):
    """Gives n vectors of the language model's width for an image."""

    def __call__(self, image: Tokens) -> tuple[Tensor, Tensor | None]:
        """Vectors (I, n, hidden_size), and which are real (I, n); None: all are."""
        ...

    def count(self, image_tokens: int) -> int:
        """n for so many image tokens; ConfigError where it cannot read them."""
        ...


class Pooled(nn.Module):
    """``tokens`` vectors from the pooled one: linear, tanh, linear (ClipCap)."""

    def __init__(self, image_size: int, hidden_size: int, tokens: int = 10) -> None:
        super().__init__()
        self.tokens = _positive(tokens, "tokens")
        inner = max(image_size, tokens * hidden_size // 2)
        self.map = nn.Sequential(
            nn.Linear(image_size, inner),
            nn.Tanh(),
            nn.Linear(inner, tokens * hidden_size),
            nn.Unflatten(1, (tokens, -1)),
        )

    def forward(self, image: Tokens) -> tuple[Tensor, Tensor | None]:
        return self.map(image.pooled), None

    def count(self, image_tokens: int) -> int:
        return self.tokens


class Linear(nn.Module):
    """Each token through a linear map (LLaVA 1); the first ``skip`` tokens, such as a class token, are left out.

    With ``norm_eps`` a layer norm follows (GIT).
    """

    def __init__(self, image_size: int, hidden_size: int, skip: int = 0, norm_eps: float | None = None) -> None:
        super().__init__()
        self.skip = skip
        self.map: nn.Module = nn.Linear(image_size, hidden_size)
        if norm_eps is not None:
            self.map = nn.Sequential(self.map, nn.LayerNorm(hidden_size, eps=norm_eps))

    def forward(self, image: Tokens) -> tuple[Tensor, Tensor | None]:
        return self.map(image.embeds[:, self.skip :]), None if image.mask is None else image.mask[:, self.skip :]

    def count(self, image_tokens: int) -> int:
        if not 0 <= self.skip < image_tokens:
            raise ConfigError(
                f"fusion.projector.skip is {self.skip}, but an image has {image_tokens} tokens; skip fewer"
            )
        return image_tokens - self.skip


class MLP(Linear):
    """Each token through ``depth`` linear maps, with or without ``bias``, and an ``activation`` between them (LLaVA 1.5: two)."""

    def __init__(
        self,
        image_size: int,
        hidden_size: int,
        depth: int = 2,
        skip: int = 0,
        bias: bool = True,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__(image_size, hidden_size, skip)
        self.map = _mlp(image_size, hidden_size, _positive(depth, "depth"), bias, activation)


class PixelShuffle(nn.Module):
    """``factor`` x ``factor`` neighbours become one token of their joint width, then ``depth`` linear maps (Idefics3, nanoVLM).

    Idefics3 has one map, without a ``bias``.

    The tokens behind the first ``skip`` ones have to make a square whose side the factor divides.
    """

    def __init__(
        self, image_size: int, hidden_size: int, factor: int = 2, depth: int = 1, skip: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        self.factor, self.skip = _positive(factor, "factor"), skip
        self.map = _mlp(image_size * factor**2, hidden_size, _positive(depth, "depth"), bias)

    def forward(self, image: Tokens) -> tuple[Tensor, Tensor | None]:
        if image.mask is not None:
            raise ConfigError(
                "fusion.projector: PixelShuffle joins neighbours of a square, but these images have tokens of their own number "
                "(regions, or data.fit=keep); choose fusion=prefix, prefix_qformer or prefix_perceiver"
            )
        side, s = math.isqrt(self.count(image.embeds.shape[1])), self.factor
        grid = image.embeds[:, self.skip :].unflatten(1, (side, s, side, s)).transpose(2, 3)  # (I, side, side, s, s, D)
        return self.map(grid.flatten(3).flatten(1, 2)), None

    def count(self, image_tokens: int) -> int:
        patches = image_tokens - self.skip
        side = math.isqrt(max(patches, 0))
        if self.skip < 0 or side < 1 or side**2 != patches or side % self.factor:
            raise ConfigError(
                f"fusion.projector: the {image_tokens} image tokens but the first {self.skip} make no square whose side "
                f"{self.factor} divides; set fusion.projector.skip to the tokens that are no patches (a class token: 1), or "
                "another fusion.projector.factor"
            )
        return (side // self.factor) ** 2


class QFormer(nn.Module):
    """Learnt queries that read one another and the image, then a linear map (BLIP-2).

    ``cross_every``  of the layers each so many-th, the first included, reads the image (BLIP-2: 2); the others the queries alone.
    ``width``        of the queries; None: the language model's; ``intermediate_size`` None: four times that.
    """

    def __init__(
        self,
        image_size: int,
        hidden_size: int,
        num_queries: int = 32,
        num_layers: int = 2,
        num_heads: int = 4,
        width: int | None = None,
        dropout: float = 0.0,
        eps: float = 1e-12,
        cross_every: int = 1,
        intermediate_size: int | None = None,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        inner = width or hidden_size
        _positive(cross_every, "cross_every")
        self.queries = nn.Parameter(torch.randn(_positive(num_queries, "num_queries"), inner) * 0.02)
        self.norm = nn.LayerNorm(inner, eps=eps)
        between = intermediate_size or 4 * inner

        def layer(number: int) -> nn.Module:
            if number % cross_every:
                return PostNormBlock(inner, num_heads, dropout, eps, between, activation)
            return CrossAttentionLayer(inner, image_size, num_heads, between, dropout, eps, activation)

        self.layers = stack(num_layers, layer)
        self.map = nn.Linear(inner, hidden_size)

    def forward(self, image: Tokens) -> tuple[Tensor, Tensor | None]:
        states = self.norm(self.queries).expand(image.embeds.shape[0], -1, -1)
        for layer in self.layers:
            if isinstance(layer, PostNormBlock):
                states = layer(states, None)
                continue
            states, _ = layer.extend(states, None, layer.cross_attention.project(image.embeds, image.mask))
        return self.map(states), None

    def count(self, image_tokens: int) -> int:
        return len(self.queries)


class PerceiverLayer(nn.Module):
    """Latents that read the image and themselves in one attention, pre-norm (Flamingo's resampler, Idefics)."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        dropout: float,
        head_size: int | None = None,
        qk_norm: bool = False,
        activation: Callable[[], nn.Module] = nn.GELU,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm_image, self.norm_latents = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.attention = Attention(
            hidden_size,
            num_heads,
            dropout=dropout,
            bias=False,
            head_size=head_size,
            qk_norm=nn.LayerNorm if qk_norm else None,
        )
        self.norm_feed_forward = nn.LayerNorm(hidden_size)
        self.feed_forward = FeedForward(hidden_size, 4 * hidden_size, activation, bias)

    def forward(self, latents: Tensor, image: Tensor, mask: Tensor | None) -> Tensor:
        """Latents (I, n, D), image (I, N, D) with mask (I, N) -> (I, n, D)."""
        normed = self.norm_latents(latents)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(latents.shape[:2])], dim=1)
        seen: KeyValue = self.attention.project(torch.cat([self.norm_image(image), normed], dim=1), mask)
        latents = latents + self.attention(normed, seen)
        out: Tensor = latents + self.feed_forward(self.norm_feed_forward(latents))
        return out


class Perceiver(nn.Module):
    """Learnt latents that resample the image's tokens to their number (Flamingo, Idefics2).

    The image's tokens are first mapped to the latents' width; ``maps`` false leaves that out where both are as wide. Idefics has
    heads of a ``head_size``, with norms of their queries and keys (``qk_norm``), and feed-forwards of ReLU without a ``bias``.
    """

    def __init__(
        self,
        image_size: int,
        hidden_size: int,
        num_latents: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.0,
        maps: bool = True,
        head_size: int | None = None,
        qk_norm: bool = False,
        activation: Callable[[], nn.Module] = nn.GELU,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if not maps and image_size != hidden_size:
            raise ConfigError(
                f"fusion: Perceiver's maps is false, but the image's tokens are {image_size} wide and its latents {hidden_size}; "
                "set it to true"
            )
        self.latents = nn.Parameter(torch.randn(_positive(num_latents, "num_latents"), hidden_size) * 0.02)
        self.map = nn.Linear(image_size, hidden_size) if maps else nn.Identity()
        options = (head_size, qk_norm, activation, bias)
        self.layers = stack(num_layers, lambda _: PerceiverLayer(hidden_size, num_heads, dropout, *options))
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, image: Tokens) -> tuple[Tensor, Tensor | None]:
        states, latents = self.map(image.embeds), self.latents.expand(image.embeds.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, states, image.mask)
        return self.norm(latents), None

    def count(self, image_tokens: int) -> int:
        return len(self.latents)


def _mlp(
    size: int, hidden_size: int, depth: int, bias: bool = True, activation: Callable[[], nn.Module] = nn.GELU
) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(size, hidden_size, bias=bias)]
    for _ in range(depth - 1):
        layers += [activation(), nn.Linear(hidden_size, hidden_size, bias=bias)]
    return nn.Sequential(*layers)


def _positive(number: int, name: str) -> int:
    if number < 1:
        raise ConfigError(f"fusion.projector.{name} is {number}, but has to be at least 1")
    return number
