"""Gates in place of attention: each dimension is mixed from image and text, at a cost linear in their tokens."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusionkit.fusion.layers import FeedForward, stack
from fusionkit.types import Fused, Tokens


class ImageHalf(NamedTuple):
    """A gated unit's share of the image."""

    gate: Tensor  # (B, N, D), added to the text's before the sigmoid
    value: Tensor  # (B, N, D)


class GatedUnit(nn.Module):
    """z * tanh(V v) + (1 - z) * tanh(T t), z = sigmoid(G [v; t]) by dimension (Arevalo et al. 2017, arXiv 1702.01992)."""

    def __init__(self, image_size: int, hidden_size: int) -> None:
        super().__init__()
        self.image_gate, self.image_value = nn.Linear(image_size, hidden_size), nn.Linear(image_size, hidden_size)
        self.text_gate = nn.Linear(hidden_size, hidden_size, bias=False)  # the bias is the image half's
        self.text_value = nn.Linear(hidden_size, hidden_size)

    def read_image(self, image: Tensor) -> ImageHalf:
        return ImageHalf(self.image_gate(image), self.image_value(image).tanh())

    def forward(self, image: ImageHalf, text: Tensor) -> tuple[Tensor, Tensor]:
        """Image half (B, N, D) and text (B, L, D), one of them with a single token -> mixed tokens and their gates z."""
        gate = (image.gate + self.text_gate(text)).sigmoid()
        return torch.lerp(self.text_value(text).tanh(), image.value, gate), gate


class GatedLayer(nn.Module):
    """Image tokens gated by the text, summed by a learnt weight into one vector, which gates the text tokens; feed-forward."""

    def __init__(self, hidden_size: int, image_size: int, intermediate_size: int, dropout: float) -> None:
        super().__init__()
        self.look, self.tell = GatedUnit(image_size, hidden_size), GatedUnit(hidden_size, hidden_size)
        self.weigh = nn.Linear(hidden_size, 1, bias=False)  # a bias would cancel in the softmax
        self.norm_aligned = nn.LayerNorm(hidden_size)  # a mean of bounded values is small beside the text
        self.norm_gated = nn.LayerNorm(hidden_size)
        self.feed_forward = FeedForward(hidden_size, intermediate_size)
        self.norm_feed_forward = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, image: ImageHalf, image_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Text states (T, L, D) with the image half (T, N, D) and mask (T, N) of each -> states and gates (T, L, D)."""
        # the first text token looks for all: a later one may not touch what an earlier one reads
        seen, _ = self.look(image, states[:, :1])
        weights = self.weigh(seen)  # (T, N, 1)
        if image_mask is not None:
            weights = weights.masked_fill(~image_mask.bool()[..., None], float("-inf"))
        aligned = (weights.softmax(dim=1) * seen).sum(dim=1, keepdim=True)
        mixed, gate = self.tell(self.tell.read_image(self.norm_aligned(aligned)), states)
        states = self.norm_gated(self.dropout(mixed))  # no residual: the gate decides what of the text goes on
        return self.norm_feed_forward(states + self.dropout(self.feed_forward(states))), gate


class Gated(nn.Module):
    """``num_layers`` gated layers over the text; time and memory grow with (text tokens + image tokens), not their product."""

    provides = frozenset({"pooled", "text", "causal"})

    def __init__(
        self,
        image_size: int,
        text_size: int,
        num_layers: int = 6,
        intermediate_size: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.hidden_size = self.pooled_size = text_size
        width = intermediate_size or 4 * text_size
        self.layers = stack(num_layers, lambda _: GatedLayer(text_size, image_size, width, dropout))
        self._gate: Tensor | None = None

    def prepare(self, image: Tokens) -> tuple[list[ImageHalf], Tensor | None]:
        return [layer.look.read_image(image.embeds) for layer in self.layers], image.mask

    def forward(self, memory: tuple[list[ImageHalf], Tensor | None], text: Tokens, image_index: Tensor) -> Fused:
        assert text.mask is not None
        halves, image_mask = memory
        mask = None if image_mask is None else image_mask[image_index]
        states, gates = text.embeds, []
        for layer, half in zip(self.layers, halves, strict=True):
            states, gate = layer(states, ImageHalf(half.gate[image_index], half.value[image_index]), mask)
            gates.append(gate.detach().float().mean(dim=-1))
        real = text.mask if text.mask.dim() == 2 else text.mask.diagonal(dim1=1, dim2=2)
        self._gate = (torch.stack(gates).mean(dim=0) * real).sum() / real.sum()
        return Fused(pooled=states[:, 0], text=states)

    def metrics(self) -> dict[str, Tensor]:
        """``gate``: how much of a text token came from the image in the latest pass, the mean over its dimensions, 0 to 1."""
        return {} if self._gate is None else {"gate": self._gate}
