"""Two streams in turn: the image attends to the text, then the text to the image that has seen it."""

from collections.abc import Set
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusionkit.fusion.cross_attention import CrossAttentionLayer
from fusionkit.fusion.layers import Attention, seen_by_image, stack
from fusionkit.types import Fused, Tokens


class ImageStart(NamedTuple):
    """The image states after the first layer's self-attention, which no text has touched."""

    states: Tensor  # (I, N, D)
    mask: Tensor | None  # (I, N)


class SequentialLayer(nn.Module):
    """An image layer that reads the text, then a text layer that reads the *updated* image; each self, cross, feed-forward."""

    def __init__(self, hidden_size: int, num_heads: int, intermediate_size: int, dropout: float, eps: float) -> None:
        super().__init__()
        sizes = (hidden_size, hidden_size, num_heads, intermediate_size, dropout, eps)
        self.image, self.text = CrossAttentionLayer(*sizes), CrossAttentionLayer(*sizes)

    def start_image(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """Image states (B, N, D) after their self-attention, as far as they come without the text."""
        return self.image.attend_self(image, self.image.self_attention.project(image, mask))

    def forward(self, text: Tensor, mask: Tensor, image: Tensor, image_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Text (T, L, D) and started image states (T, N, D) -> both after the layer."""
        image = self.image.attend_memory(image, self.image.cross_attention.project(text, seen_by_image(mask)))
        own = self.text.self_attention.project(text, mask)
        return self.text(text, own, self.text.cross_attention.project(image, image_mask)), image


class DualStreamSequential(nn.Module):
    """``num_layers`` sequential layers over two streams, each projected to ``hidden_size`` and given its type embedding."""

    provides = frozenset({"pooled", "text", "image", "causal", "attention"})

    def __init__(
        self,
        image_size: int,
        text_size: int,
        num_layers: int = 6,
        num_heads: int = 12,
        hidden_size: int | None = None,
        intermediate_size: int | None = None,
        dropout: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.hidden_size = self.pooled_size = size = hidden_size or text_size
        self.project_image, self.project_text = nn.Linear(image_size, size), nn.Linear(text_size, size)
        self.type_embeddings = nn.Parameter(torch.randn(2, size) * 0.02)
        width = intermediate_size or 4 * size
        self.layers = stack(num_layers, lambda _: SequentialLayer(size, num_heads, width, dropout, eps))

    def prepare(self, image: Tokens) -> ImageStart:
        states = self.project_image(image.embeds) + self.type_embeddings[1]
        return ImageStart(self.layers[0].start_image(states, image.mask), image.mask)

    def forward(self, memory: ImageStart, text: Tokens, image_index: Tensor) -> Fused:
        image = memory.states[image_index]
        image_mask = None if memory.mask is None else memory.mask[image_index]
        states = self.project_text(text.embeds) + self.type_embeddings[0]
        for number, layer in enumerate(self.layers):
            if number:
                image = layer.start_image(image, image_mask)
            states, image = layer(states, text.mask, image, image_mask)
        return Fused(pooled=states[:, 0], text=states, image=image)

    def cross_attentions(self) -> list[Attention]:
        return [layer.text.cross_attention for layer in self.layers]

    def freeze_unused(self, needs: Set[str]) -> None:
        """The last text layer serves nobody who reads the image states alone."""
        if not needs & {"pooled", "text"}:
            self.layers[-1].text.requires_grad_(False)
