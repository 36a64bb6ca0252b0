"""One stream: text and image tokens side by side in one transformer (UNITER, ViLT, VisualBERT)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fusionkit.fusion.layers import PreNormBlock, seen_by_image
from fusionkit.types import Fused, Tokens


def joint_mask(text: Tokens, image: Tokens) -> Tensor:
    """The mask over [text; image] tokens: (T, L + N), or (T, L + N, L + N) where the text mask is causal.

    An image token sees the text that the first text token sees, and nothing more (``seen_by_image``).
    """
    (rows, length), size, mask = text.embeds.shape[:2], image.embeds.shape[1], text.mask
    assert mask is not None
    image_mask = mask.new_ones(rows, size) if image.mask is None else image.mask.to(mask.dtype)
    if mask.dim() == 2:
        return torch.cat([mask, image_mask], dim=1)
    text_rows = torch.cat([mask, seen_by_image(mask)[:, None].expand(-1, size, -1)], dim=1)  # (T, L + N, L)
    image_columns = image_mask[:, None].expand(-1, length + size, -1)
    return torch.cat([text_rows, image_columns], dim=2)


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
        self.blocks = nn.ModuleList(block(self.hidden_size, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(self.hidden_size)

    def prepare(self, image: Tokens) -> Tokens:
        return image._replace(embeds=self.project_image(image.embeds) + self.type_embeddings[1])

    def forward(self, memory: Tokens, text: Tokens, image_index: Tensor) -> Fused:
        length = text.embeds.shape[1]
        image_mask = None if memory.mask is None else memory.mask[image_index]
        image = memory._replace(embeds=memory.embeds[image_index], mask=image_mask)
        states = torch.cat([self.project_text(text.embeds) + self.type_embeddings[0], image.embeds], dim=1)
        mask = joint_mask(text, image)
        for block in self.blocks:
            states = block(states, mask)
        states = self.norm(states)
        return Fused(pooled=states[:, 0], text=states[:, :length], image=states[:, length:])
