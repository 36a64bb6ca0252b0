"""Text layers that attend to the image (ALBEF, X-VLM, BLIP)."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from fusionkit.fusion.bert import copy_bert_layers
from fusionkit.fusion.layers import Attention, FeedForward, Grouping, KeyValue, Packing, stack
from fusionkit.types import Fused, Tokens


class CrossAttentionLayer(nn.Module):
    """A BERT layer with cross-attention between self-attention and feed-forward; each normalised after its residual."""

    def __init__(
        self,
        hidden_size: int,
        image_size: int,
        num_heads: int,
        intermediate_size: int,
        dropout: float,
        eps: float,
        activation: Callable[[], nn.Module] = nn.GELU,
    ):
        super().__init__()
        self.self_attention = Attention(hidden_size, num_heads, dropout=dropout)
        self.norm_self = nn.LayerNorm(hidden_size, eps=eps)
        self.cross_attention = Attention(hidden_size, num_heads, context_size=image_size, dropout=dropout)
        self.norm_cross = nn.LayerNorm(hidden_size, eps=eps)
        self.feed_forward = FeedForward(hidden_size, intermediate_size, activation)
        self.norm_feed_forward = nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        states: Tensor,
        own: KeyValue,
        memory: KeyValue,
        grouping: Grouping | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """States (T, L, D), or packed (M, D), that attend to their own text's keys and values, then to ``memory``."""
        return self.attend_memory(self.attend_self(states, own, packing), memory, grouping, packing)

    def extend(
        self,
        states: Tensor,
        mask: Tensor | None,
        memory: KeyValue,
        grouping: Grouping | None = None,
        packing: Packing | None = None,
        past: KeyValue | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """As ``forward``, of states after those of P earlier tokens, mask (T, P + L); and the keys and values of all P + L."""
        own = self.self_attention.project(states, mask, packing).after(past)
        return self(states, own, memory, grouping, packing), own._replace(mask=None)

    def read_alone(self, states: Tensor, mask: Tensor, packing: Packing) -> Tensor:
        """Packed states (M, D) of texts, mask (T, L), after all but the cross-attention."""
        own = self.self_attention.project(states, mask, packing)
        return self.feed_forward_block(self.attend_self(states, own, packing))

    def attend_self(self, states: Tensor, own: KeyValue, packing: Packing | None = None) -> Tensor:
        """The first part, self-attention: it needs no memory."""
        out: Tensor = self.norm_self(states + self.dropout(self.self_attention(states, own, packing=packing)))
        return out

    def attend_memory(
        self, states: Tensor, memory: KeyValue, grouping: Grouping | None = None, packing: Packing | None = None
    ) -> Tensor:
        """The second part, cross-attention and feed-forward."""
        seen = self.cross_attention(states, memory, grouping, packing)
        return self.feed_forward_block(self.norm_cross(states + self.dropout(seen)))

    def feed_forward_block(self, states: Tensor) -> Tensor:
        """The last part, feed-forward: alone it follows self-attention in a text that sees no image."""
        out: Tensor = self.norm_feed_forward(states + self.dropout(self.feed_forward(states)))
        return out


class CrossAttention(nn.Module):
    """ALBEF's multimodal encoder: ``num_layers`` text layers, each attending to the image tokens.

    Keys and values of an image are projected once a layer (``prepare``), however many texts and tasks read them.
    ``eps`` 1e-12 and the order of the norms are BERT's, so that the layers can start from a text encoder's upper layers.
    """

    provides = frozenset({"pooled", "text", "causal", "attention"})

    def __init__(
        self,
        image_size: int,
        text_size: int,
        num_layers: int = 6,
        num_heads: int = 12,
        intermediate_size: int | None = None,
        dropout: float = 0.1,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.hidden_size = self.pooled_size = text_size
        sizes = (text_size, image_size, num_heads, intermediate_size or 4 * text_size, dropout, eps)
        self.layers = stack(num_layers, lambda _: CrossAttentionLayer(*sizes))

    def prepare(self, image: Tokens) -> list[KeyValue]:
        return [layer.cross_attention.project(image.embeds, image.mask) for layer in self.layers]

    def forward(self, memory: list[KeyValue], text: Tokens, image_index: Tensor) -> Fused:
        states, _ = self.extend(memory, text, image_index, None)
        return Fused(pooled=states[:, 0], text=states)

    def extend(
        self, memory: list[KeyValue], text: Tokens, image_index: Tensor, past: list[KeyValue] | None
    ) -> tuple[Tensor, list[KeyValue]]:
        assert text.mask is not None
        packing, groupings = Packing.of(text.mask), self.groupings(image_index, images=memory[0].key.shape[0])
        tokens, kept = packing.pack(text.embeds), []
        pasts: Sequence[KeyValue | None] = past or [None] * len(memory)
        for layer, keys_values, grouping, earlier in zip(self.layers, memory, groupings, pasts, strict=True):
            tokens, own = layer.extend(tokens, text.mask, keys_values, grouping, packing, earlier)
            kept.append(own)
        return packing.unpack(tokens), kept

    def groupings(self, image_index: Tensor, images: int) -> list[Grouping]:
        """Which image each text reads, layer by layer."""
        return [Grouping.of(image_index, images)] * len(self.layers)

    def cross_attentions(self) -> list[Attention]:
        return [layer.cross_attention for layer in self.layers]

    def start_from(self, text_layers: Sequence[nn.Module]) -> None:
        """Copy self-attention and feed-forward from the BERT layers that the text encoder left over, as ALBEF does."""
        copy_bert_layers(self.layers, text_layers)
