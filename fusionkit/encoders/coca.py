"""CoCa's two towers (Yu et al. 2022): a causal text with a token of its own for contrast, and images pooled by attention."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.encoders.base import unsupported
from fusionkit.encoders.image import TimmEncoder
from fusionkit.errors import ConfigError
from fusionkit.types import Tokens, no_later, own_places

KeyValue = tuple[Tensor, Tensor]  # of one layer, (T, heads, tokens, width)


class TextBlock(nn.Module):
    """Self-attention and feed-forward, each on normalised states and added to the residual stream; it can be read on."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        dropout: float,
        eps: float,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(hidden_size, eps=eps)
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.norm_feed_forward = nn.LayerNorm(hidden_size, eps=eps)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, intermediate_size), activation(), nn.Linear(intermediate_size, hidden_size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor, past: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        """States (T, L, D) after those of P earlier tokens, bool mask (T, L, P + L), and the keys and values of all P + L."""
        packed = self.query_key_value(self.norm_attention(states)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4)  # each (T, heads, L, width)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])
        states = states + self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))
        return states + self.dropout(self.feed_forward(self.norm_feed_forward(states))), (key, value)


class CausalTextEncoder(nn.Module):
    """Pre-norm layers in which no word sees later ones, whatever the mask says, so that one reading serves contrast and captions.

    A learnt token stands behind all words, at a position of its own: it sees the words, no word sees it, and its last state,
    normalised, is the text's vector. The words' states are not normalised, as a decoder of pre-norm layers follows.

    ``vocab_size``    of the tokenizer.
    ``max_length``    the most words of a text, its start and end included.
    ``table_size``    rows of the table of words, of weights that have more than the tokenizer; None: ``vocab_size``.
    ``sees_padding``  for parity with open_clip's published weights, whose mask was shifted by one: the id of the padding that
                      the learnt token sees behind a text, in place of itself (there 0); None: it sees the words and itself.
    """

    is_incremental = True
    is_causal = True

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 512,
        num_layers: int = 12,
        num_heads: int = 8,
        intermediate_size: int | None = None,
        max_length: int = 76,
        table_size: int | None = None,
        sees_padding: int | None = None,
        dropout: float = 0.0,
        eps: float = 1e-5,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        for name, number in (("num_layers", num_layers), ("max_length", max_length)):
            if number < 1:
                raise ConfigError(f"text_encoder.{name} is {number}, but has to be at least 1")
        if num_heads < 1 or hidden_size % num_heads:
            raise ConfigError(f"text_encoder.num_heads is {num_heads}, which does not divide hidden_size {hidden_size}")
        rows = vocab_size if table_size is None else table_size
        if rows < vocab_size:
            raise ConfigError(
                f"tokenizer: has {vocab_size} tokens, but the text encoder embeds {rows}; give the tokenizer that belongs to it"
            )
        if sees_padding is not None and not 0 <= sees_padding < rows:
            raise ConfigError(f"text_encoder.sees_padding is {sees_padding}; give the id of a token, or null")
        self.hidden_size, self.sees_padding = hidden_size, sees_padding
        self.words = nn.Embedding(rows, hidden_size)
        self.positions = nn.Parameter(torch.empty(max_length + 1, hidden_size))  # the last is the learnt token's
        self.appended = nn.Parameter(torch.empty(hidden_size))
        for weight, spread in ((self.words.weight, 0.02), (self.positions, 0.01), (self.appended, 0.01)):
            nn.init.normal_(weight, std=spread)  # as open_clip starts them
        sizes = (hidden_size, num_heads, intermediate_size or 4 * hidden_size, dropout, eps, activation)
        self.layers = nn.ModuleList(TextBlock(*sizes) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size, eps=eps)

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The table that decoders are tied to."""
        return self.words

    @property
    def max_length(self) -> int:
        """The most words of a text."""
        return len(self.positions) - 1

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """input_ids (T, L), mask (T, L) or (T, L, L) -> word states (T, L, hidden_size), and pooled the learnt token's.

        With a mask (T, L, L), as of a text that is only continued, there is no learnt token: pooled is the last word's state.
        """
        length = input_ids.shape[1]
        if attention_mask.dim() == 3:
            return self.extend(input_ids, attention_mask, torch.arange(length, device=input_ids.device), None)[0]
        self._require_room(length)
        states, mask = self._with_appended(input_ids, attention_mask.bool())
        for layer in self.layers:
            states, _ = layer(states, mask)
        return Tokens(states[:, :length], attention_mask, self.norm(states[:, -1]))

    def extend(
        self, input_ids: Tensor, mask: Tensor, positions: Tensor, past: Sequence[KeyValue] | None
    ) -> tuple[Tokens, list[KeyValue]]:
        """Tokens of L ids (T, L) at positions (T, L) after P earlier ones, mask (T, L, P + L); without the learnt token."""
        length, total = mask.shape[1:]
        self._require_room(total)
        seen = mask.bool() & no_later(length, total, mask.device)
        states, kept = self.words(input_ids) + self.positions[positions], []
        pasts: Sequence[KeyValue | None] = past or [None] * len(self.layers)
        for layer, before in zip(self.layers, pasts, strict=True):
            states, own = layer(states, seen, before)
            kept.append(own)
        last = (own_places(mask).sum(dim=1) - 1).clamp(min=0)
        return Tokens(states, mask, states[torch.arange(last.shape[0], device=last.device), last]), kept

    def freeze_pooling(self) -> None:
        """Freeze what the text's vector alone is made with."""
        self.appended.requires_grad_(False)
        self.norm.requires_grad_(False)

    def _with_appended(self, input_ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (T, L + 1 or 2, D) of words, of the padding that is seen, if any, and of the learnt token; who sees whom."""
        texts, length = input_ids.shape
        causal = no_later(length, length, real.device) & real[:, None]
        words = self.words(input_ids) + self.positions[:length]
        appended = (self.appended + self.positions[-1]).expand(texts, 1, -1)
        yes = torch.ones(texts, 1, dtype=torch.bool, device=real.device)
        if self.sees_padding is None:
            below = torch.cat([real, yes], dim=1)[:, None]
            return torch.cat([words, appended], dim=1), torch.cat([_widened(causal, 1), below], dim=1)
        count = real.sum(dim=1, keepdim=True)
        is_full = count == self.max_length  # without padding the learnt token sees itself
        padding = self.words.weight[self.sees_padding] + self.positions[count.clamp(max=self.max_length - 1)]
        of_padding = torch.cat([real, yes, ~yes], dim=1)[:, None]
        of_appended = torch.cat([real, ~is_full, is_full], dim=1)[:, None]
        mask = torch.cat([_widened(causal, 2), of_padding, of_appended], dim=1)
        return torch.cat([words, padding, appended], dim=1), mask

    def _require_room(self, length: int) -> None:
        """Raise ConfigError for texts that there are no positions for: what a task says comes behind what was given."""
        if length > self.max_length:
            raise ConfigError(
                f"text_encoder: a text has come to {length} tokens with what a task says, but the encoder reads "
                f"{self.max_length} at most; lower the max_length of the data's sources or of the task, or raise "
                "text_encoder.max_length"
            )


class AttentionPooledEncoder(TimmEncoder):
    """Learnt queries take an image's tokens from a timm tower's: the first is the image's vector, the others its tokens.

    This is open_clip's CoCa. In the paper the vector is another query's over the tokens; open_clip has that untested.

    ``num_queries``  1 for the vector, and as many more as there shall be tokens.
    ``query_size``   width of the tokens; None: the tower's.
    ``query_heads``  of the attention by which the queries read the tower's tokens.
    ``query_eps``    of its norms.
    Other options are those of ``TimmEncoder``; a tower needs no last norm of its own (``final_norm: false``).
    """

    def __init__(
        self,
        name: str,
        num_queries: int = 256,
        query_size: int | None = None,
        query_heads: int = 8,
        query_eps: float = 1e-5,
        **options: Any,
    ) -> None:
        super().__init__(name, **{"pool": "mean", **options})
        if num_queries < 2:
            raise ConfigError(
                f"image_encoder.num_queries is {num_queries}; give 2 at least: the first is the image's vector, the others tokens"
            )
        width, self.hidden_size = self.hidden_size, query_size or self.hidden_size
        if query_heads < 1 or self.hidden_size % query_heads:
            raise ConfigError(
                f"image_encoder.query_heads is {query_heads}, which does not divide the width {self.hidden_size}"
            )
        self.queries = nn.Parameter(torch.randn(num_queries, self.hidden_size))
        self.norm_queries = nn.LayerNorm(self.hidden_size, eps=query_eps)
        self.norm_tower = nn.LayerNorm(width, eps=query_eps)
        self.read = nn.MultiheadAttention(self.hidden_size, query_heads, kdim=width, vdim=width, batch_first=True)
        self.norm_read = nn.LayerNorm(self.hidden_size, eps=query_eps)

    def tokens(self, states: Tensor) -> Tokens:
        """States (I, N, width) of the tower -> tokens (I, num_queries - 1, hidden_size)."""
        tower = self.norm_tower(super().tokens(states).embeds)
        queries = self.norm_queries(self.queries).expand(len(tower), -1, -1)
        read = self.norm_read(self.read(queries, tower, tower, need_weights=False)[0])
        return Tokens(read[:, 1:], None, read[:, 0])

    def hide(self, pixel_values: Any, chosen: Tensor, filling: Tensor) -> Any:
        raise unsupported(self, "tokens that stand for places", "hiding parts of an image")

    def corners(self, pixel_values: Tensor, tokens: Tokens) -> Tensor:
        raise unsupported(self, "tokens that stand for places", "finding tokens in an image")

    def grids(self, pixel_values: Any, image_index: Tensor, maps: Tensor) -> list[Tensor]:
        raise unsupported(self, "tokens that stand for places", "a map over an image")


def _widened(mask: Tensor, more: int) -> Tensor:
    """A mask (T, L, L) with ``more`` tokens behind it that none of these sees."""
    return nn.functional.pad(mask, (0, more))
