"""No interaction but the product of two pooled vectors (CLIP's towers under a joint head)."""

import torch
from torch import Tensor, nn

from fusionkit.types import Fused, Tokens


class Late(nn.Module):
    """Both pooled vectors, projected and normalised to one width, and their product: [image; text; image * text].

    Image and text meet in one vector each. So it provides "pooled" alone: matching and question answering can be read from
    it; a task that needs token states which have seen the image, such as grounding, is refused.
    """

    provides = frozenset({"pooled"})

    def __init__(self, image_size: int, text_size: int, hidden_size: int | None = None) -> None:
        super().__init__()
        self.hidden_size = hidden_size or text_size
        self.pooled_size = 3 * self.hidden_size
        self.project_image = nn.Sequential(nn.Linear(image_size, self.hidden_size), nn.LayerNorm(self.hidden_size))
        self.project_text = nn.Sequential(nn.Linear(text_size, self.hidden_size), nn.LayerNorm(self.hidden_size))

    def prepare(self, image: Tokens) -> Tensor:
        projected: Tensor = self.project_image(image.pooled)
        return projected

    def forward(self, memory: Tensor, text: Tokens, image_index: Tensor) -> Fused:
        seen, told = memory[image_index], self.project_text(text.pooled)
        return Fused(pooled=torch.cat([seen, told, seen * told], dim=1), text=None)
