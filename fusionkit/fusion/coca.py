"""CoCa's multimodal half: causal text layers, each followed by one that attends to the image (Yu et al. 2022)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fusionkit.fusion.layers import Attention, FeedForward, Grouping, KeyValue, PreNormBlock, stack
from fusionkit.types import Fused, Tokens, no_later


class CrossPreNormBlock(nn.Module):
    """Attention to the image and feed-forward, each on normalised states and added to the residual stream."""

    def __init__(
        self,
        hidden_size: int,
        image_size: int,
        num_heads: int,
        dropout: float,
        eps: float,
        intermediate_size: int,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(hidden_size, eps=eps)
        self.norm_image = nn.LayerNorm(image_size, eps=eps)
        self.attention = Attention(hidden_size, num_heads, context_size=image_size, dropout=dropout)
        self.norm_feed_forward = nn.LayerNorm(hidden_size, eps=eps)
        self.feed_forward = FeedForward(hidden_size, intermediate_size, activation)
        self.dropout = nn.Dropout(dropout)

    def prepare(self, image: Tokens) -> KeyValue:
        """Keys and values of I images, once for all texts."""
        return self.attention.project(self.norm_image(image.embeds), image.mask)

    def forward(self, states: Tensor, memory: KeyValue, grouping: Grouping) -> Tensor:
        """States (T, L, D) that attend to the images which the grouping names."""
        states = states + self.dropout(self.attention(self.norm_attention(states), memory, grouping))
        out: Tensor = states + self.dropout(self.feed_forward(self.norm_feed_forward(states)))
        return out


class CoCa(nn.Module):
    """``num_layers`` times a layer of the text and one that attends to the image, each with a feed-forward part of its own.

    No token sees later ones, whatever the mask says; pooled is the last token's state. Over a text encoder that is causal by
    itself (``text_encoder=coca_text``, a language model) what was encoded for contrast is what captions are predicted from.
    """

    provides = frozenset({"pooled", "text", "causal", "attention"})
    sees_prefix = False

    def __init__(
        self,
        image_size: int,
        text_size: int,
        num_layers: int = 12,
        num_heads: int = 8,
        intermediate_size: int | None = None,
        dropout: float = 0.0,
        eps: float = 1e-5,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.hidden_size = self.pooled_size = text_size
        inner = intermediate_size or 4 * text_size
        sizes = (num_heads, dropout, eps, inner, activation)
        self.text_layers = stack(num_layers, lambda _: PreNormBlock(text_size, *sizes))
        self.cross_layers = stack(num_layers, lambda _: CrossPreNormBlock(text_size, image_size, *sizes))
        self.norm = nn.LayerNorm(text_size, eps=eps)

    def prepare(self, image: Tokens) -> list[KeyValue]:
        return [layer.prepare(image) for layer in self.cross_layers]

    def forward(self, memory: list[KeyValue], text: Tokens, image_index: Tensor) -> Fused:
        assert text.mask is not None
        states, _ = self.extend(memory, text, image_index, None)
        real = text.mask if text.mask.dim() == 2 else text.mask.diagonal(dim1=1, dim2=2)
        last = (real.sum(dim=1) - 1).clamp(min=0)
        return Fused(pooled=states[torch.arange(last.shape[0], device=last.device), last], text=states)

    def extend(
        self, memory: list[KeyValue], text: Tokens, image_index: Tensor, past: list[KeyValue] | None
    ) -> tuple[Tensor, list[KeyValue]]:
        assert text.mask is not None
        states, mask, kept = text.embeds, causal(text.mask, text.embeds.shape[1]), []
        grouping = Grouping.of(image_index, images=memory[0].key.shape[0])
        pasts: Sequence[KeyValue | None] = past or [None] * len(memory)
        for own, cross, image, earlier in zip(self.text_layers, self.cross_layers, memory, pasts, strict=True):
            states, keys_values = own.extend(states, mask, earlier)
            states = cross(states, image, grouping)
            kept.append(keys_values)
        return self.norm(states), kept

    def cross_attentions(self) -> list[Attention]:
        return [layer.attention for layer in self.cross_layers]


def causal(mask: Tensor, length: int) -> Tensor:
    """Bool (T, L, P + L) of a mask (T, L), or (T, L, P + L) with P earlier tokens: none of them sees later ones."""
    total = mask.shape[-1]
    earlier = no_later(length, total, mask.device)
    return (mask[:, None] if mask.dim() == 2 else mask).bool() & earlier
