"""A few learnt queries read the image and take it to the text, in the layers of BLIP-2's Q-Former."""

from collections.abc import Set
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.fusion.cross_attention import CrossAttentionLayer
from fusionkit.fusion.layers import Attention, FeedForward, Grouping, KeyValue, stack
from fusionkit.fusion.merged_attention import joint_mask
from fusionkit.types import Fused, Tokens


class Resampled(NamedTuple):
    """What the queries made of each image, and the image for the layers that read it again."""

    queries: Tensor  # (I, Q, D)
    keys_values: list[KeyValue | None]  # by layer


class QFormerLayer(nn.Module):
    """Text and queries attend to both, the queries to the image, and each has a feed-forward of its own; post-norm (BLIP-2)."""

    def __init__(
        self,
        hidden_size: int,
        image_size: int,
        num_heads: int,
        intermediate_size: int,
        dropout: float,
        eps: float,
        reads_image: bool,
    ) -> None:
        super().__init__()
        self.self_attention = Attention(hidden_size, num_heads, dropout=dropout)
        self.norm_self = nn.LayerNorm(hidden_size, eps=eps)
        self.cross_attention = (
            Attention(hidden_size, num_heads, context_size=image_size, dropout=dropout) if reads_image else None
        )
        self.norm_cross = nn.LayerNorm(hidden_size, eps=eps) if reads_image else nn.Identity()
        self.feed_forward = FeedForward(hidden_size, intermediate_size)
        self.norm_feed_forward = nn.LayerNorm(hidden_size, eps=eps)
        self.query_feed_forward = FeedForward(hidden_size, intermediate_size)
        self.norm_query_feed_forward = nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def read_image(self, image: Tokens) -> KeyValue | None:
        return None if self.cross_attention is None else self.cross_attention.project(image.embeds, image.mask)

    def forward(
        self, text: Tensor, queries: Tensor, mask: Tensor, memory: KeyValue | None, grouping: Grouping
    ) -> tuple[Tensor, Tensor]:
        """Text (T, L, D), queries (T, Q, D), mask over [queries; text] -> both after the layer."""
        states = torch.cat([queries, text], dim=1)
        own = self.self_attention.project(states, mask)
        states = self.norm_self(states + self.dropout(self.self_attention(states, own)))
        queries, text = states.split([queries.shape[1], text.shape[1]], dim=1)
        if self.cross_attention is not None:
            assert memory is not None
            seen = self.cross_attention(queries, memory, grouping)
            queries = self.norm_cross(queries + self.dropout(seen))
        text = self.norm_feed_forward(text + self.dropout(self.feed_forward(text)))
        return text, self.norm_query_feed_forward(queries + self.dropout(self.query_feed_forward(queries)))

    def query_end(self) -> list[nn.Module]:
        """The parts after self-attention that only queries pass."""
        parts = [self.cross_attention, self.norm_cross, self.query_feed_forward, self.norm_query_feed_forward]
        return [part for part in parts if part is not None]


class Bottleneck(nn.Module):
    """``num_queries`` learnt tokens read the image alone, once an image, then go on together with each text.

    ``image_layers``  layers in which the queries attend to themselves and to the image, before any text (``prepare``).
    ``num_layers``    layers over text and queries together.
    ``cross_every``   of these, each so many-th, the first included, lets the queries read the image again, now that they know
                      the text: 2 is BLIP-2's; 0: none does, as after a Perceiver resampler, and a text costs the same with
                      any number of image tokens.
    The pooled vector is [first text state; mean query].
    """

    provides = frozenset({"pooled", "text", "causal"})

    def __init__(
        self,
        image_size: int,
        text_size: int,
        num_queries: int = 32,
        image_layers: int = 2,
        num_layers: int = 4,
        cross_every: int = 2,
        num_heads: int = 12,
        intermediate_size: int | None = None,
        dropout: float = 0.1,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        if num_queries < 1:
            raise ConfigError(f"fusion.num_queries is {num_queries}; give at least 1")
        if image_layers < 1 and cross_every < 1:
            raise ConfigError(
                "fusion.image_layers and fusion.cross_every are both 0, so nothing reads the image; set one to 1 or more"
            )
        self.hidden_size = text_size
        self.pooled_size = 2 * text_size
        sizes = (text_size, image_size, num_heads, intermediate_size or 4 * text_size, dropout, eps)
        self.queries = nn.Parameter(torch.randn(num_queries, text_size) * 0.02)
        self.norm_queries = nn.LayerNorm(text_size, eps=eps)
        self.image_layers: Any = nn.ModuleList(CrossAttentionLayer(*sizes) for _ in range(image_layers))
        self.layers = stack(
            num_layers,
            lambda number: QFormerLayer(*sizes, reads_image=cross_every > 0 and number % cross_every == 0),
        )

    def prepare(self, image: Tokens) -> Resampled:
        queries = self.norm_queries(self.queries).expand(image.embeds.shape[0], -1, -1)
        for layer in self.image_layers:
            seen = layer.cross_attention.project(image.embeds, image.mask)
            queries, _ = layer.extend(queries, None, seen)
        return Resampled(queries, [layer.read_image(image) for layer in self.layers])

    def forward(self, memory: Resampled, text: Tokens, image_index: Tensor) -> Fused:
        grouping = Grouping.of(image_index, images=memory.queries.shape[0])
        states, queries = text.embeds, memory.queries[image_index]
        mask = joint_mask(text, Tokens(queries, None, queries[:, 0]))
        for layer, keys_values in zip(self.layers, memory.keys_values, strict=True):
            states, queries = layer(states, queries, mask, keys_values, grouping)
        return Fused(pooled=torch.cat([states[:, 0], queries.mean(dim=1)], dim=1), text=states)

    def freeze_unused(self, needs: Set[str]) -> None:
        """The last layer's queries end in the pooled vector."""
        if "pooled" not in needs:
            for part in self.layers[-1].query_end():
                part.requires_grad_(False)
