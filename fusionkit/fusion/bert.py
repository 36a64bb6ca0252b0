"""BERT's layer, and how the layers of a fusion start from those of a text encoder."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.fusion.layers import Attention, FeedForward, KeyValue, Packing

# our name in a layer -> the name in a transformers BertLayer; cross-attention has no counterpart there
BERT_LAYER = {
    "self_attention.query": "attention.self.query",
    "self_attention.key": "attention.self.key",
    "self_attention.value": "attention.self.value",
    "self_attention.output": "attention.output.dense",
    "norm_self": "attention.output.LayerNorm",
    "feed_forward.0": "intermediate.dense",
    "feed_forward.2": "output.dense",
    "norm_feed_forward": "output.LayerNorm",
}


class PostNormBlock(nn.Module):
    """Self-attention and feed-forward, each normalised after its residual (BERT, UNITER, VisualBERT)."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        dropout: float = 0.0,
        eps: float = 1e-12,
        intermediate_size: int | None = None,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.self_attention = Attention(hidden_size, num_heads, dropout=dropout)
        self.norm_self = nn.LayerNorm(hidden_size, eps=eps)
        self.feed_forward = FeedForward(hidden_size, intermediate_size or 4 * hidden_size, activation)
        self.norm_feed_forward = nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor | None, packing: Packing | None = None) -> Tensor:
        """states (B, N, D), or packed (M, D); mask (B, N) or (B, N, N) -> the states' shape."""
        return self.extend(states, mask, None, packing)[0]

    def extend(
        self, states: Tensor, mask: Tensor | None, past: KeyValue | None, packing: Packing | None = None
    ) -> tuple[Tensor, KeyValue]:
        """States after those of P earlier tokens, mask (B, N, P + N), and the keys and values of all P + N."""
        own = self.self_attention.project(states, mask, packing).after(past)
        return self.feed_forward_block(self.attend_self(states, own, packing)), own._replace(mask=None)

    def attend_self(self, states: Tensor, own: KeyValue, packing: Packing | None = None) -> Tensor:
        """The first part, self-attention."""
        out: Tensor = self.norm_self(states + self.dropout(self.self_attention(states, own, packing=packing)))
        return out

    def feed_forward_block(self, states: Tensor) -> Tensor:
        """The second part, feed-forward."""
        out: Tensor = self.norm_feed_forward(states + self.dropout(self.feed_forward(states)))
        return out


def copy_bert_layers(layers: Sequence[nn.Module], text_layers: Sequence[nn.Module]) -> None:
    """Copy self-attention and feed-forward of a text encoder's BERT layers into as many layers of a fusion.

    Raises ConfigError where their number, heads or sizes differ.
    """
    if len(text_layers) != len(layers):
        raise ConfigError(
            f"fusion.num_layers is {len(layers)}, but the text encoder leaves {len(text_layers)} upper layers to start "
            f"from; set fusion.num_layers={len(text_layers)} or text_encoder.give_upper_layers=false"
        )
    for layer, source in zip(layers, text_layers, strict=True):
        heads: Any = layer.get_submodule("self_attention").num_heads
        theirs: Any = source.get_submodule("attention.self").num_attention_heads
        if heads != theirs:
            raise ConfigError(
                f"fusion.num_heads is {heads}, but the text encoder's layers have {theirs}; set fusion.num_heads={theirs}"
            )
        for ours, name in BERT_LAYER.items():
            own: Any = layer.get_submodule(ours)
            given: Any = source.get_submodule(name)
            if own.weight.shape != given.weight.shape:
                raise ConfigError(
                    f"fusion: {ours} is {tuple(own.weight.shape)}, but the text encoder's layers have "
                    f"{tuple(given.weight.shape)}; set fusion.intermediate_size to theirs"
                )
            own.load_state_dict(given.state_dict())
