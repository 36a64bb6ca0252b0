"""Layers that read a text with the image, or alone, or, by another self-attention, as a decoder (BLIP)."""

from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.fusion.cross_attention import CrossAttention
from fusionkit.fusion.layers import Attention, KeyValue, Packing
from fusionkit.types import Fused, Tokens


class MixedCrossAttention(CrossAttention):
    """Cross-attention over all text layers, which also read a text alone: then they skip their cross-attention.

    Its text encoder has no layers (``num_hidden_layers: 0``). With ``first_token_id`` that gives each text by its
    embeddings twice: as ``embeds`` with that first token ([ENC]), for a text with an image, and in ``pooled`` the first
    token as it is written ([CLS]), which begins the text alone. With ``text_pool`` the first token of a text alone goes
    through a linear map and tanh (BERT's pooler); other options are those of ``CrossAttention``.
    """

    def __init__(
        self,
        image_size: int,
        text_size: int,
        num_layers: int = 6,
        num_heads: int = 12,
        intermediate_size: int | None = None,
        dropout: float = 0.1,
        eps: float = 1e-12,
        text_pool: bool = False,
    ) -> None:
        super().__init__(image_size, text_size, num_layers, num_heads, intermediate_size, dropout, eps)
        self.text_pool = nn.Sequential(nn.Linear(text_size, text_size), nn.Tanh()) if text_pool else nn.Identity()

    def encode_unimodal(self, text: Tokens) -> Tokens:
        """Texts that see no image; pooled is their first token."""
        assert text.mask is not None
        packing = Packing.of(text.mask)
        tokens = packing.pack(torch.cat([text.pooled[:, None], text.embeds[:, 1:]], dim=1))
        for layer in self.layers:
            tokens = layer.read_alone(tokens, text.mask, packing)
        states = packing.unpack(tokens)
        return Tokens(states, text.mask, self.text_pool(states[:, 0]))

    def freeze_unused(self, needs: frozenset[str]) -> None:
        """Nothing meets an image where texts are only read alone."""
        if not needs - {"feats"}:
            for layer in self.layers:
                layer.cross_attention.requires_grad_(False)
                layer.norm_cross.requires_grad_(False)


class SelfAttentionLayers(nn.Module):
    """Self-attention for a decoder that shares all other parts with the layers of a cross-attention fusion."""

    def __init__(
        self, hidden_size: int, num_layers: int, num_heads: int, dropout: float = 0.1, eps: float = 1e-12
    ) -> None:
        super().__init__()
        self.attentions: Any = nn.ModuleList(
            Attention(hidden_size, num_heads, dropout=dropout) for _ in range(num_layers)
        )
        self.norms: Any = nn.ModuleList(nn.LayerNorm(hidden_size, eps=eps) for _ in range(num_layers))
        self.dropout = nn.Dropout(dropout)

    def within(self, fusion: CrossAttention) -> "Borrowed":
        """The decoder that these are part of."""
        return Borrowed(self, fusion)


class Borrowed:
    """A fusion of these self-attentions and all else of another's layers, whose memory it reads; it owns no parameters."""

    def __init__(self, own: SelfAttentionLayers, fusion: CrossAttention) -> None:
        self.own, self.fusion = own, fusion
        self.hidden_size, self.pooled_size, self.provides = fusion.hidden_size, fusion.pooled_size, fusion.provides

    def prepare(self, image: Tokens) -> list[KeyValue]:
        return self.fusion.prepare(image)

    def __call__(self, memory: list[KeyValue], text: Tokens, image_index: Tensor) -> Fused:
        states, _ = self.extend(memory, text, image_index, None)
        return Fused(pooled=states[:, 0], text=states)

    def extend(
        self, memory: list[KeyValue], text: Tokens, image_index: Tensor, past: list[KeyValue] | None
    ) -> tuple[Tensor, list[KeyValue]]:
        """As ``CrossAttention.extend``."""
        assert text.mask is not None
        packing, groupings = Packing.of(text.mask), self.fusion.groupings(image_index, memory[0].key.shape[0])
        tokens, kept = packing.pack(text.embeds), []
        pasts: list[Any] = past or [None] * len(memory)
        parts = zip(self.own.attentions, self.own.norms, self.fusion.layers, memory, groupings, pasts, strict=True)
        for attention, norm, layer, keys_values, grouping, earlier in parts:
            keys = attention.project(tokens, text.mask, packing).after(earlier)
            tokens = norm(tokens + self.own.dropout(attention(tokens, keys, packing=packing)))
            tokens = layer.attend_memory(tokens, keys_values, grouping, packing)
            kept.append(keys._replace(mask=None))
        return packing.unpack(tokens), kept
