"""One stream: text and image tokens side by side in one transformer (UNITER, ViLT, VisualBERT)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fusionkit.fusion.layers import KeyValue, PreNormBlock, stack
from fusionkit.types import Fused, Tokens


def joint_mask(text: Tokens, image: Tokens) -> Tensor:
    """The mask over [image; text] tokens: (T, N + L), or (T, N + L, N + L) where the text mask is causal.

    An image token sees the text that the first text token sees, and nothing more: a later caption token that it read
    would reach the earlier ones through it.
    """
    assert text.mask is not None
    size = image.embeds.shape[1]
    if text.mask.dim() == 2:
        return torch.cat([image_mask(text.mask, image), text.mask], dim=1)
    text_columns = torch.cat([text.mask[:, :1].expand(-1, size, -1), text.mask], dim=1)  # (T, N + L, L)
    image_columns = image_mask(text.mask, image)[:, None].expand(-1, text_columns.shape[1], -1)
    return torch.cat([image_columns, text_columns], dim=2)


def image_mask(like: Tensor, image: Tokens) -> Tensor:
    """The image's mask (T, N), of ones where it has none, in the type of another mask."""
    return like.new_ones(image.embeds.shape[:2]) if image.mask is None else image.mask.to(like.dtype)


class MergedAttention(nn.Module):
    """A transformer over the concatenated tokens; each modality has a projection, a norm and a type embedding.

    ``block`` makes a layer of (hidden_size, num_heads, dropout): ``PreNormBlock`` as in ViLT, or as in UNITER and VisualBERT
    ``fusionkit.fusion.bert.PostNormBlock``.
    """

    provides = frozenset({"pooled", "text", "image", "causal"})

    def __init__(
        self,
        image_size: int,
        text_size: int,
        num_layers: int = 6,
        num_heads: int = 12,
        hidden_size: int | None = None,
        dropout: float = 0.1,
        block: Callable[..., nn.Module] = PreNormBlock,
    ) -> None:
        super().__init__()
        self.hidden_size = self.pooled_size = hidden_size or text_size
        self.project_image = nn.Sequential(nn.Linear(image_size, self.hidden_size), nn.LayerNorm(self.hidden_size))
        self.project_text = nn.Sequential(nn.Linear(text_size, self.hidden_size), nn.LayerNorm(self.hidden_size))
        self.type_embeddings = nn.Parameter(torch.randn(2, self.hidden_size) * 0.02)
        self.blocks = stack(num_layers, lambda _: block(self.hidden_size, num_heads, dropout))
        self.norm = nn.LayerNorm(self.hidden_size)

    def prepare(self, image: Tokens) -> Tokens:
        return image._replace(embeds=self.project_image(image.embeds) + self.type_embeddings[1])

    def forward(self, memory: Tokens, text: Tokens, image_index: Tensor) -> Fused:
        states, _ = self._run_both(memory, text, image_index)
        size = memory.embeds.shape[1]
        return Fused(pooled=states[:, size], text=states[:, size:], image=states[:, :size])

    def extend(
        self, memory: Tokens, text: Tokens, image_index: Tensor, past: list[KeyValue] | None
    ) -> tuple[Tensor, list[KeyValue]]:
        """The image tokens run with the first text tokens and stay as they are: they see nothing of what comes later."""
        if past is None:
            states, kept = self._run_both(memory, text, image_index)
            return states[:, memory.embeds.shape[1] :], kept
        assert text.mask is not None
        image = self._take(memory, image_index)
        image_columns = image_mask(text.mask, image)[:, None].expand(-1, text.embeds.shape[1], -1)
        return self._run(self._embed(text), torch.cat([image_columns, text.mask], dim=2), past)

    def _run_both(self, memory: Tokens, text: Tokens, image_index: Tensor) -> tuple[Tensor, list[KeyValue]]:
        image = self._take(memory, image_index)
        return self._run(torch.cat([image.embeds, self._embed(text)], dim=1), joint_mask(text, image), None)

    def _take(self, memory: Tokens, image_index: Tensor) -> Tokens:
        mask = None if memory.mask is None else memory.mask[image_index]
        return memory._replace(embeds=memory.embeds[image_index], mask=mask)

    def _embed(self, text: Tokens) -> Tensor:
        return self.project_text(text.embeds) + self.type_embeddings[0]

    def _run(self, states: Tensor, mask: Tensor, past: list[KeyValue] | None) -> tuple[Tensor, list[KeyValue]]:
        """States (T, M, D) after the blocks and the norm, and the keys and values of each block."""
        kept: list[KeyValue] = []
        pasts: Sequence[KeyValue | None] = past or [None] * len(self.blocks)
        for block, earlier in zip(self.blocks, pasts, strict=True):
            states, own = block.extend(states, mask, earlier)
            kept.append(own)
        return self.norm(states), kept
