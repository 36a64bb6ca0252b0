"""An image as its patches alone, for a fusion that is the whole transformer (ViLT)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.encoders.image import PixelEncoder
from fusionkit.errors import ConfigError
from fusionkit.types import Tokens


class PatchEncoder(PixelEncoder):
    """A class token and linearly embedded patches with their positions; images of any shape, side by side on padded canvases.

    ``image_size``  what the position grid is for; an image of other rows and columns gets the grid resized to its own,
                    bilinearly with aligned corners, as ViLT does.
    ``max_patches`` in training, keep a random subset of so many patches of an image; None keeps all (ViLT's pre-training: 200).

    A patch is padding, and masked, where all channels of its first pixel sum to 0: what padding on the right and below leaves.
    """

    num_prefix_tokens = 1

    def __init__(self, hidden_size: int, patch_size: int, image_size: int, max_patches: int | None = None) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ConfigError(
                f"image_encoder.image_size is {image_size}, no multiple of image_encoder.patch_size {patch_size}; change either"
            )
        self.hidden_size, self.patch_size, self.max_patches = hidden_size, patch_size, max_patches
        self.grid_size = image_size // patch_size
        self.patches = nn.Conv2d(3, hidden_size, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.randn(1, 1, hidden_size) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 1 + self.grid_size**2, hidden_size) * 0.02)

    def forward(self, pixel_values: Tensor) -> Tokens:
        """(I, 3, H, W) -> tokens (I, 1 + N, hidden_size), the class token first, patches row by row."""
        is_patch = self._is_patch(pixel_values)
        patches = self.patches(pixel_values) + self._positions(is_patch)
        return self.join(patches.flatten(2).transpose(1, 2), is_patch.flatten(1))

    def join(self, patches: Tensor, is_patch: Tensor) -> Tokens:
        """Patches (I, N, D) with positions and whether they are any (I, N) -> tokens behind the class token."""
        if self.training and self.max_patches is not None and self.max_patches < patches.shape[1]:
            chosen = random_subset(is_patch, self.max_patches)
            patches, is_patch = take(patches, chosen), is_patch.gather(1, chosen)
        first = (self.class_token + self.positions[:, :1]).expand(len(patches), -1, -1)
        mask = F.pad(is_patch, (1, 0), value=True)
        return Tokens(torch.cat([first, patches], dim=1), mask.long(), first[:, 0])

    def _is_patch(self, pixel_values: Tensor) -> Tensor:
        """(I, 3, H, W) -> bool (I, rows, columns)."""
        is_seen = (pixel_values.sum(dim=1, keepdim=True) != 0).float()
        shape = [size // self.patch_size for size in pixel_values.shape[2:]]
        return F.interpolate(is_seen, size=shape)[:, 0].bool()

    def _positions(self, is_patch: Tensor) -> Tensor:
        """(I, D, rows, columns), the grid resized to each image's own rows and columns, zeros beside it."""
        grid = self.positions[:, 1:].transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size))
        rows, columns = is_patch.shape[
            1:
        ]  # an image is as high as its first column of patches, as wide as its first row
        shapes = torch.stack([is_patch[:, :, 0].sum(dim=1), is_patch[:, 0].sum(dim=1)], dim=1).tolist()
        resized = {
            (high, wide): F.pad(
                F.interpolate(grid, size=(high, wide), mode="bilinear", align_corners=True),
                (0, columns - wide, 0, rows - high),
            )
            for high, wide in {tuple(shape) for shape in shapes}
        }
        return torch.cat([resized[tuple(shape)] for shape in shapes])


def random_subset(is_patch: Tensor, count: int) -> Tensor:
    """Numbers (I, count) of patches: of the real ones of an image a random subset in random order, then padding."""
    return (torch.rand(is_patch.shape, device=is_patch.device) + ~is_patch).topk(count, largest=False).indices


def take(rows: Tensor, chosen: Tensor) -> Tensor:
    """(I, N, D) and numbers (I, M) -> (I, M, D)."""
    return rows.gather(1, chosen[..., None].expand(-1, -1, rows.shape[2]))
