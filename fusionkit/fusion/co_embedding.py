"""Both modalities in one shared space, read by a [CLS] token of the fusion's own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.fusion.layers import Attention, PreNormBlock, stack
from fusionkit.fusion.merged_attention import joint_mask
from fusionkit.types import Fused, Tokens


class CoEmbedding(nn.Module):
    """A pre-norm transformer over [CLS; image; text], each projected to ``hidden_size`` and given its type embedding.

    The pooled vector is the fusion's [CLS], which belongs to neither encoder. It counts as an image token: under a causal
    mask it sees what the first text token sees.
    """

    provides = frozenset({"pooled", "text", "image", "causal", "attention"})

    def __init__(
        self,
        image_size: int,
        text_size: int,
        num_layers: int = 6,
        num_heads: int = 12,
        hidden_size: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.hidden_size = self.pooled_size = hidden_size or text_size
        self.project_image = nn.Linear(image_size, self.hidden_size)
        self.project_text = nn.Linear(text_size, self.hidden_size)
        self.cls_embedding = nn.Parameter(torch.randn(self.hidden_size) * 0.02)
        self.type_embeddings = nn.Parameter(torch.randn(2, self.hidden_size) * 0.02)
        self.blocks = stack(num_layers, lambda _: PreNormBlock(self.hidden_size, num_heads, dropout))
        self.norm = nn.LayerNorm(self.hidden_size)

    def prepare(self, image: Tokens) -> Tokens:
        """[CLS; image] tokens (I, 1 + N, D)."""
        states = self.project_image(image.embeds) + self.type_embeddings[1]
        states = torch.cat([self.cls_embedding.expand(states.shape[0], 1, -1).to(states.dtype), states], dim=1)
        mask = None if image.mask is None else F.pad(image.mask, (1, 0), value=1)
        return Tokens(states, mask, image.pooled)

    def forward(self, memory: Tokens, text: Tokens, image_index: Tensor) -> Fused:
        size, image = memory.embeds.shape[1], memory.take(image_index)
        states = torch.cat([image.embeds, self.project_text(text.embeds) + self.type_embeddings[0]], dim=1)
        mask = joint_mask(text, image)
        for block in self.blocks:
            states = block(states, mask)
        states = self.norm(states)
        return Fused(pooled=states[:, 0], text=states[:, size:], image=states[:, 1:size])

    def cross_attentions(self) -> list[Attention]:
        """Each block's one attention, of which text to image is a part."""
        return [block.attention for block in self.blocks]
