"""One vector for a fused pair."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fusionkit.errors import ConfigError, suggest


def dense_tanh(hidden_size: int) -> nn.Sequential:
    """BERT's pooler."""
    return nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.Tanh())


class Streams(NamedTuple):
    """The fused states of P pairs, and what is real of them."""

    text: Tensor  # (P, L, D)
    image: Tensor  # (P, N, D)
    text_mask: Tensor  # (P, L) or (P, L, L)
    image_mask: Tensor | None  # (P, N)


class Pooling(Protocol):
    """Built as ``pool(hidden_size)``."""

    size: int
    """Width of the vector."""
    reads: frozenset[str]
    """The streams it reads, of {"text", "image"}."""

    def __call__(self, fused: Streams) -> Tensor:
        """(P, size)."""
        ...


class FirstText(nn.Module):
    """The first text state, as it is."""

    reads = frozenset({"text"})

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.size = hidden_size

    def forward(self, fused: Streams) -> Tensor:
        """(P, size)."""
        return fused.text[:, 0]


class LastWord(FirstText):
    """The text state before the closing [SEP] (VisualBERT's VQA, whose questions end in [MASK] [SEP])."""

    def forward(self, fused: Streams) -> Tensor:
        real = fused.text_mask if fused.text_mask.dim() == 2 else fused.text_mask.diagonal(dim1=1, dim2=2)
        rows = torch.arange(real.shape[0], device=real.device)
        return fused.text[rows, (real.sum(dim=1) - 2).clamp(min=0)]


class DenseText(FirstText):
    """The first text state through a linear layer and tanh (BERT, UNITER, ViLT, VisualBERT, LXMERT)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.dense = dense_tanh(hidden_size)

    def forward(self, fused: Streams) -> Tensor:
        pooled: Tensor = self.dense(fused.text[:, 0])
        return pooled


class DenseImage(nn.Module):
    """The first image state through a linear layer and tanh (FLAVA, whose first is the class token of its fusion)."""

    reads = frozenset({"image"})

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.size = hidden_size
        self.dense = dense_tanh(hidden_size)

    def forward(self, fused: Streams) -> Tensor:
        pooled: Tensor = self.dense(fused.image[:, 0])
        return pooled


class DenseBoth(nn.Module):
    """The first text state and one of the image, each through its own linear layer and tanh, one after the other.

    ``image`` "first" takes the class token (METER with a CLIP tower, BridgeTower), "mean" the mean over the tokens.
    """

    reads = frozenset({"text", "image"})

    def __init__(self, hidden_size: int, image: str = "mean") -> None:
        super().__init__()
        if image not in ("first", "mean"):
            raise ConfigError(f"fusion.pool.image is '{image}'; {suggest(image, ['first', 'mean'])}")
        self.size, self.is_first = 2 * hidden_size, image == "first"
        self.dense_text, self.dense_image = dense_tanh(hidden_size), dense_tanh(hidden_size)

    def forward(self, fused: Streams) -> Tensor:
        seen = fused.image[:, 0] if self.is_first else masked_mean(fused.image, fused.image_mask)
        return torch.cat([self.dense_text(fused.text[:, 0]), self.dense_image(seen)], dim=1)


def masked_mean(states: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the tokens (B, N, D) that the mask (B, N) keeps -> (B, D)."""
    if mask is None:
        return states.mean(dim=1)
    weights = mask.to(states.dtype)[..., None]
    return (states * weights).sum(dim=1) / weights.sum(dim=1)
