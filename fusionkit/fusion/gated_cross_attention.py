"""Text layers with gated cross-attention between them, which starts as if it were not there (Flamingo, Idefics)."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.fusion.bert import PostNormBlock, copy_bert_layers
from fusionkit.fusion.layers import Attention, Grouping, KeyValue, Packing, stack
from fusionkit.types import Fused, Tokens


class GatedLinearUnit(nn.Module):
    """down(silu(gate(x)) * up(x)), no biases (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(states)) * self.up(states))
        return out


class GatedCrossAttentionBlock(nn.Module):
    """Cross-attention and feed-forward, pre-norm, each added times tanh of a learnt number (Flamingo, fig. 4; Idefics' parts).

    ``gate`` is what these numbers start from: at 0 the block is the identity. None: there are none, and all is added.
    ``qk_norm`` normalises the queries and keys of each head of the cross-attention.
    """

    def __init__(
        self,
        hidden_size: int,
        image_size: int,
        num_heads: int,
        intermediate_size: int,
        dropout: float,
        gate: float | None,
        eps: float = 1e-6,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.norm_cross = nn.RMSNorm(hidden_size, eps=eps)
        self.cross_attention = Attention(
            hidden_size,
            num_heads,
            context_size=image_size,
            dropout=dropout,
            bias=False,
            qk_norm=partial(nn.RMSNorm, eps=eps) if qk_norm else None,
        )
        self.norm_feed_forward = nn.RMSNorm(hidden_size, eps=eps)
        self.feed_forward = GatedLinearUnit(hidden_size, intermediate_size)
        self.cross_gate, self.feed_forward_gate = (
            None if gate is None else nn.Parameter(torch.tensor([float(gate)])) for _ in range(2)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        states: Tensor,
        memory: KeyValue,
        grouping: Grouping | None = None,
        packing: Packing | None = None,
        blind: Tensor | None = None,
    ) -> Tensor:
        """Text states (T, L, D), or packed (M, D), that attend to the image; those of ``blind``, bool (M,), see nothing."""
        seen = self.cross_attention(self.norm_cross(states), memory, grouping, packing)
        if blind is not None:
            seen = seen.masked_fill(blind[:, None], 0)
        states = states + _let_in(self.dropout(seen), self.cross_gate)
        thought = self.feed_forward(self.norm_feed_forward(states))
        return states + _let_in(self.dropout(thought), self.feed_forward_gate)


def _let_in(states: Tensor, gate: Tensor | None) -> Tensor:
    return states if gate is None else gate.tanh() * states


def mean_gate(blocks: Iterable[GatedCrossAttentionBlock]) -> dict[str, Tensor]:
    """``gate``: how far the image is let in, the mean over the blocks of |tanh| of the cross-attention's gate, 0 to 1."""
    gates: list[Tensor] = [block.cross_gate for block in blocks if block.cross_gate is not None]
    return {"gate": torch.cat(gates).detach().tanh().abs().mean()} if gates else {}


class GatedCrossAttention(nn.Module):
    """``num_layers`` BERT layers; before each ``cross_every``-th, the first included, stands a gated block that sees the image.

    With ``gate`` 0 an untrained fusion is its text layers alone: what they knew from a text encoder (``start_from``) is kept.
    """

    provides = frozenset({"pooled", "text", "causal", "attention"})

    def __init__(
        self,
        image_size: int,
        text_size: int,
        num_layers: int = 6,
        cross_every: int = 1,
        num_heads: int = 12,
        intermediate_size: int | None = None,
        dropout: float = 0.1,
        gate: float | None = 0.0,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        width = intermediate_size or 4 * text_size
        self.layers = stack(num_layers, lambda _: PostNormBlock(text_size, num_heads, dropout, eps, width))
        if not 0 < cross_every <= num_layers:
            raise ConfigError(f"fusion.cross_every is {cross_every}; give 1 to fusion.num_layers ({num_layers})")
        self.hidden_size = self.pooled_size = text_size
        self.cross_every = cross_every
        self.cross_layers: Any = nn.ModuleList(
            GatedCrossAttentionBlock(text_size, image_size, num_heads, width, dropout, gate)
            for _ in range(0, num_layers, cross_every)
        )

    def prepare(self, image: Tokens) -> list[KeyValue]:
        return [layer.cross_attention.project(image.embeds, image.mask) for layer in self.cross_layers]

    def forward(self, memory: list[KeyValue], text: Tokens, image_index: Tensor) -> Fused:
        states, _ = self.extend(memory, text, image_index, None)
        return Fused(pooled=states[:, 0], text=states)

    def extend(
        self, memory: list[KeyValue], text: Tokens, image_index: Tensor, past: list[KeyValue] | None
    ) -> tuple[Tensor, list[KeyValue]]:
        assert text.mask is not None
        grouping, packing = Grouping.of(image_index, images=memory[0].key.shape[0]), Packing.of(text.mask)
        tokens, kept = packing.pack(text.embeds), []
        pasts: Sequence[KeyValue | None] = past or [None] * len(self.layers)
        for number, (layer, earlier) in enumerate(zip(self.layers, pasts, strict=True)):
            if number % self.cross_every == 0:
                place = number // self.cross_every
                tokens = self.cross_layers[place](tokens, memory[place], grouping, packing)
            tokens, own = layer.extend(tokens, text.mask, earlier, packing)
            kept.append(own)
        return packing.unpack(tokens), kept

    def cross_attentions(self) -> list[Attention]:
        return [layer.cross_attention for layer in self.cross_layers]

    def start_from(self, text_layers: Sequence[nn.Module]) -> None:
        """Copy the BERT layers that the text encoder left over."""
        copy_bert_layers(self.layers, text_layers)

    def metrics(self) -> dict[str, Tensor]:
        """``gate``: how far the image is let in (``mean_gate``)."""
        return mean_gate(self.cross_layers)
