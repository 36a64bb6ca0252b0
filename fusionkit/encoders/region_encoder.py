"""Image towers that also give views of an image: regions of it, as if each were an image (X-VLM)."""

from typing import Any

import torch
from torch import Tensor

from fusionkit.encoders.image import TimmEncoder
from fusionkit.errors import ConfigError
from fusionkit.internals import with_positions
from fusionkit.types import Tokens


class ViewEncoder(TimmEncoder):
    """A timm tower whose first token stands for the whole, and for a view of it, for the region alone.

    ``mean_token``   puts the mean of the tokens before them, as that first token (Swin has none); of a view, the mean of its
                     region. All else is computed once an image.
    ``view_blocks``  of a vision transformer: the last blocks run once more for each view, on the region's tokens only.
    Other options are those of ``TimmEncoder``.
    """

    def __init__(self, name: str, mean_token: bool = False, view_blocks: int = 0, **options: Any) -> None:
        super().__init__(name, pool="mean" if mean_token else "cls", **options)
        self.mean_token, self.view_blocks = mean_token, view_blocks
        if mean_token and view_blocks:
            raise ConfigError(
                "image_encoder: mean_token is for towers whose blocks do not run for views; give one of them"
            )
        depth = 0 if mean_token else len(self.backbone.blocks)
        if not 0 <= view_blocks <= depth:
            raise ConfigError(f"image_encoder.view_blocks is {view_blocks}, but {name} has {depth} such blocks")

    def tokens(self, states: Tensor) -> Tokens:
        """States (I, N, width) -> tokens (I, 1 + N, hidden_size), all of them attendable."""
        tokens = super().tokens(states)
        if not self.mean_token:
            return tokens
        return tokens._replace(embeds=torch.cat([tokens.pooled[:, None], tokens.embeds], dim=1))

    def views(self, pixel_values: Tensor, image_index: Tensor, mask: Tensor) -> tuple[Tokens, Tokens]:
        """Tokens of I whole images, and of V views: image_index (V,) names the image of each, mask (V, 1 + N) its region.

        The mask is 1 at the first token and at the patches of the region; a view's other tokens are not to be attended.
        """
        if self.mean_token:
            whole = self(pixel_values)
            patches, inside = whole.embeds[image_index, 1:], mask[:, 1:, None].to(whole.embeds.dtype)
            mean = (patches * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)
            return whole, Tokens(torch.cat([mean[:, None], patches], dim=1), mask, mean)
        whole_states, states = self._upper_blocks(pixel_values, image_index, mask)
        return Tokens(whole_states, None, whole_states[:, 0]), Tokens(states, mask, states[:, 0])

    def _upper_blocks(self, pixel_values: Tensor, image_index: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.takes_gradients):
            tower = self.backbone
            states = tower.norm_pre(tower.patch_drop(with_positions(tower, tower.patch_embed(pixel_values))))
            shared = len(tower.blocks) - self.view_blocks
            for block in tower.blocks[:shared]:
                states = block(states)
            views = states[image_index]
            hidden = (1.0 - mask[:, None, None].to(states.dtype)) * torch.finfo(states.dtype).min  # (V, 1, 1, 1 + N)
            for block in tower.blocks[shared:]:
                states, views = block(states), block(views, attn_mask=hidden)
            return tower.norm(states), tower.norm(views)
