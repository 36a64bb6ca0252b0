"""Attention and the blocks that fusions share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.types import own_places


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention; query (B, H, L, d), key and value (B, H, N, d), mask bool, broadcastable to (B, H, L, N).

    torch's fused kernel, except where gradients are wanted on a CPU: there its backward pass is the slower one (several
    times in bf16, and at text lengths in fp32 too).
    """
    if query.device.type == "cpu" and torch.is_grad_enabled():
        return F.dropout(attention_weights(query, key, mask), dropout).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """What each query gives to each key, (B, H, L, N), sum 1; arguments as in ``attend``."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights: Tensor = scores.softmax(dim=-1)
    return weights


def key_mask(mask: Tensor | None) -> Tensor | None:
    """(B, N) or (B, L, N), 1 = may be attended -> bool (B, 1, 1, N) or (B, 1, L, N); None stays None (all may)."""
    if mask is None:
        return None
    return mask.bool()[:, None, None, :] if mask.dim() == 2 else mask.bool()[:, None]


def seen_by_image(text_mask: Tensor) -> Tensor:
    """The text that image tokens may see, (T, L): all of it, or under a causal mask (T, L, L) what the first token sees.

    A later token that an image token read would reach the earlier ones through it.
    """
    return text_mask if text_mask.dim() == 2 else text_mask[:, 0]


def stack(count: int, make: Callable[[int], nn.Module]) -> Any:
    """The ``num_layers`` layers of a fusion, made from their numbers (a ModuleList; untyped, as each has its own methods)."""
    if count < 1:
        raise ConfigError(f"fusion.num_layers is {count}, but has to be at least 1")
    return nn.ModuleList(make(number) for number in range(count))


_row_by_row: ContextVar[bool] = ContextVar("_row_by_row", default=False)


@contextmanager
def row_by_row() -> Iterator[None]:
    """Within it text t is about image t, and padding is computed along: what a graph needs, whose shapes hang on no numbers.

    ``Grouping`` and ``Packing`` save work by where texts and padding stand; here neither moves anything. Texts that grow all
    start with nothing said and grow by one token a step.
    """
    token = _row_by_row.set(True)
    try:
        yield
    finally:
        _row_by_row.reset(token)


def is_row_by_row() -> bool:
    """Whether this is within ``row_by_row``."""
    return _row_by_row.get()


class KeyValue(NamedTuple):
    """The keys and values of I images in one layer, projected once for all their texts."""

    key: Tensor  # (I, H, N, d)
    value: Tensor  # (I, H, N, d)
    mask: Tensor | None  # (I, N)

    def after(self, past: "KeyValue | None") -> "KeyValue":
        """These keys and values put after those of earlier tokens; the mask, of these, already covers both."""
        if past is None:
            return self
        return KeyValue(torch.cat([past.key, self.key], dim=2), torch.cat([past.value, self.value], dim=2), self.mask)


@dataclass(frozen=True)
class Grouping:
    """Where each of T text rows stands when the rows of one image are put side by side, ``slots`` to an image.

    Queries of all texts of an image then attend to its keys in one product, and no image is copied.
    """

    place: Tensor  # (T,) = image row * slots + position among the image's texts
    images: int
    slots: int

    @classmethod
    def of(cls, image_index: Tensor, images: int) -> "Grouping":
        if is_row_by_row():
            return OwnImage(image_index, images, 1)
        order = image_index.argsort(stable=True)
        counts = torch.bincount(image_index, minlength=images)
        first = counts.cumsum(0) - counts
        slot = torch.empty_like(order)
        slot[order] = torch.arange(len(order), device=order.device) - first[image_index[order]]
        slots = int(counts.max())  # the one synchronisation of a fusion pass
        return cls(image_index * slots + slot, images, slots)

    def gather(self, rows: Tensor) -> Tensor:
        """(T, H, L, d) -> (I, H, slots * L, d), zeros where an image has fewer texts."""
        _, heads, length, width = rows.shape
        table = rows.new_zeros(self.images * self.slots, heads, length, width).index_copy(0, self.place, rows)
        grouped: Tensor = table.unflatten(0, (self.images, self.slots)).transpose(1, 2).flatten(2, 3)
        return grouped

    def scatter(self, table: Tensor) -> Tensor:
        """(I, H, slots * L, d) -> (T, H, L, d)."""
        rows: Tensor = table.unflatten(2, (self.slots, -1)).transpose(1, 2).flatten(0, 1)[self.place]
        return rows


class OwnImage(Grouping):
    """The grouping of texts each of which has an image row of its own, its number: all stand where they are."""

    def gather(self, rows: Tensor) -> Tensor:
        return rows

    def scatter(self, table: Tensor) -> Tensor:
        return table


@dataclass(frozen=True)
class Packing:
    """Where the M real tokens of T padded texts stand, so that linear layers and norms skip the padding."""

    place: Tensor  # (M,), = row * length + position
    rows: int
    length: int

    @classmethod
    def of(cls, mask: Tensor) -> "Packing":
        """From a text mask (T, L), or (T, L, P + L) with P earlier tokens, in which a real token attends at least to itself."""
        real = mask if mask.dim() == 2 else own_places(mask)
        if is_row_by_row():
            return Padded(real, *real.shape)
        return cls(real.flatten().nonzero().squeeze(1), *real.shape)

    def pack(self, states: Tensor) -> Tensor:
        """(T, L, D) -> (M, D)."""
        return states.flatten(0, 1)[self.place]

    def unpack(self, tokens: Tensor) -> Tensor:
        """(M, D) -> (T, L, D), zeros at the padding."""
        table = tokens.new_zeros(self.rows * self.length, tokens.shape[1])
        padded: Tensor = table.index_copy(0, self.place, tokens).unflatten(0, (self.rows, self.length))
        return padded


class Padded(Packing):
    """The packing that leaves padding where it is; its ``place`` is the mask (T, L)."""

    def pack(self, states: Tensor) -> Tensor:
        return states

    def unpack(self, tokens: Tensor) -> Tensor:
        return tokens * self.place[..., None].to(tokens.dtype)


class Attention(nn.Module):
    """Multi-head attention of states of width ``hidden_size`` over a context of width ``context_size`` (default: the same).

    States may be padded (T, L, D), or packed (M, D) with the packing that unpacks them. A head is ``head_size`` wide (default:
    its part of the width); ``qk_norm`` makes a norm of that width for the queries of each head, and one for its keys.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        context_size: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        head_size: int | None = None,
        qk_norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or (head_size is None and hidden_size % num_heads):
            raise ConfigError(
                f"fusion.num_heads is {num_heads}, which does not divide the width {hidden_size} of the fusion; "
                f"give one of {', '.join(str(n) for n in range(1, min(hidden_size, 16) + 1) if hidden_size % n == 0)}"
            )
        self.num_heads, self.dropout = num_heads, dropout
        self.attend = attend  # fusionkit.model.saliency takes its place to see the weights
        width = hidden_size if head_size is None else num_heads * head_size
        self.query = nn.Linear(hidden_size, width, bias=bias)
        self.key = nn.Linear(context_size or hidden_size, width, bias=bias)
        self.value = nn.Linear(context_size or hidden_size, width, bias=bias)
        self.output = nn.Linear(width, hidden_size, bias=bias)
        self.norm_query, self.norm_key = (None if qk_norm is None else qk_norm(width // num_heads) for _ in range(2))

    def _heads(self, states: Tensor, packing: Packing | None) -> Tensor:
        padded = states if packing is None else packing.unpack(states)
        heads: Tensor = padded.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, N, D) -> (B, H, N, d)
        return heads

    def project(self, context: Tensor, mask: Tensor | None, packing: Packing | None = None) -> KeyValue:
        """Keys and values of a context (I, N, context_size), or packed."""
        key = _normed(self._heads(self.key(context), packing), self.norm_key)
        return KeyValue(key, self._heads(self.value(context), packing), mask)

    def forward(
        self, states: Tensor, memory: KeyValue, grouping: Grouping | None = None, packing: Packing | None = None
    ) -> Tensor:
        """The states' shape; memory has one row a text or, with a grouping, one row an image."""
        query = _normed(self._heads(self.query(states), packing), self.norm_query)
        if grouping is not None:
            query = grouping.gather(query)
        dropout = self.dropout if self.training else 0.0
        mixed = self.attend(query, memory.key, memory.value, key_mask(memory.mask), dropout)
        if grouping is not None:
            mixed = grouping.scatter(mixed)
        mixed = mixed.transpose(1, 2).flatten(2)
        attended: Tensor = self.output(mixed if packing is None else packing.pack(mixed))
        return attended


def _normed(heads: Tensor, norm: nn.Module | None) -> Tensor:
    return heads if norm is None else norm(heads).to(heads.dtype)


class FeedForward(nn.Sequential):
    """Linear, ``activation``, linear."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: Callable[[], nn.Module] = nn.GELU,
        bias: bool = True,
    ) -> None:
        super().__init__(
            nn.Linear(hidden_size, intermediate_size, bias=bias),
            activation(),
            nn.Linear(intermediate_size, hidden_size, bias=bias),
        )


class PreNormBlock(nn.Module):
    """Self-attention and feed-forward, each on normalised states and added to the residual stream (ViT, ViLT)."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        dropout: float = 0.0,
        eps: float = 1e-6,
        intermediate_size: int | None = None,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(hidden_size, eps=eps)
        self.attention = Attention(hidden_size, num_heads, dropout=dropout)
        self.norm_feed_forward = nn.LayerNorm(hidden_size, eps=eps)
        self.feed_forward = FeedForward(hidden_size, intermediate_size or 4 * hidden_size, activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """states (B, N, D), mask (B, N) or (B, N, N) -> (B, N, D)."""
        return self.extend(states, mask, None)[0]

    def extend(self, states: Tensor, mask: Tensor | None, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """States (B, N, D) after those of P earlier tokens, mask (B, N, P + N), and the keys and values of all P + N."""
        normed = self.norm_attention(states)
        own = self.attention.project(normed, mask).after(past)
        states = states + self.dropout(self.attention(normed, own))
        return states + self.dropout(self.feed_forward(self.norm_feed_forward(states))), own._replace(mask=None)
