"""An image as its patches alone, for a fusion that is the whole transformer (ViLT)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.encoders.image import PixelEncoder
from fusionkit.errors import ConfigError
from fusionkit.types import Pixels, Tokens


class PatchEncoder(PixelEncoder):
    """A class token and linearly embedded patches with their positions; images of any shape, side by side on padded canvases.

    ``image_size``  what the position grid is for; an image of other rows and columns gets the grid resized to its own,
                    bilinearly with aligned corners, as ViLT does.
    ``max_patches`` in training, keep a random subset of so many patches of an image; None keeps all (ViLT's pre-training: 200).

    Nothing here mixes the tokens, so what stands for an image alone (``pooled``) is the mean of them.
    A patch is padding, and masked, where the mask of its first pixel says so or, of pixels without a mask, where all its channels
    sum to 0, as ViLT's code does: what padding on the right and below leaves.
    """

    num_prefix_tokens = 1
    reads_canvases = True

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

    def forward(self, pixel_values: Tensor | Pixels) -> Tokens:
        """(I, 3, H, W) -> tokens (I, 1 + N, hidden_size), the class token first, patches row by row."""
        is_patch = self._is_patch(pixel_values)
        values = pixel_values.values if isinstance(pixel_values, Pixels) else pixel_values
        patches = self.patches(values) + self._positions(is_patch)
        return self.join(patches.flatten(2).transpose(1, 2), is_patch.flatten(1))

    def join(self, patches: Tensor, is_patch: Tensor) -> Tokens:
        """Patches (I, N, D) with positions and whether they are any (I, N) -> tokens behind the class token."""
        if self.training and self.max_patches is not None and self.max_patches < patches.shape[1]:
            chosen = random_subset(is_patch, self.max_patches)
            patches, is_patch = take(patches, chosen), is_patch.gather(1, chosen)
        first = (self.class_token + self.positions[:, :1]).expand(len(patches), -1, -1)
        mask = F.pad(is_patch, (1, 0), value=True)
        tokens = torch.cat([first, patches], dim=1)
        kept = mask[..., None].to(tokens.dtype)
        return Tokens(tokens, mask.long(), (tokens * kept).sum(dim=1) / kept.sum(dim=1))

    def hide(self, pixel_values: Any, chosen: Tensor, filling: Tensor) -> Pixels:
        """As of any encoder; a patch that is painted black is one still."""
        values = pixel_values.values if isinstance(pixel_values, Pixels) else pixel_values
        is_patch = self._is_patch(pixel_values)
        grid = chosen[:, self.num_prefix_tokens :].unflatten(1, is_patch.shape[1:])
        hidden, mask = (F.interpolate(part[:, None].float(), size=values.shape[2:]).bool() for part in (grid, is_patch))
        return Pixels(torch.where(hidden, filling[:, None, None].to(values.dtype), values), mask[:, 0])

    def corners(self, pixel_values: Any, tokens: Tokens) -> Tensor:
        """As of any encoder; zeros for padding too. Raises ConfigError where a subset of the patches is kept."""
        is_patch = self._is_patch(pixel_values)
        found = is_patch.new_zeros(*is_patch.shape, 4, dtype=torch.float)
        for row, (high, wide) in enumerate(_shapes(is_patch)):
            down = torch.arange(high, device=found.device)[:, None].expand(high, wide) / high
            across = torch.arange(wide, device=found.device)[None].expand(high, wide) / wide
            found[row, :high, :wide] = torch.stack([across, down, across + 1 / wide, down + 1 / high], dim=2)
        flat = F.pad(found.flatten(1, 2), (0, 0, self.num_prefix_tokens, 0))
        if flat.shape[1] != tokens.embeds.shape[1]:
            raise ConfigError("image_encoder.max_patches leaves out where an image's tokens lie; set it to null")
        return flat

    def grids(self, pixel_values: Any, image_index: Tensor, maps: Tensor) -> list[Tensor]:
        """As of any encoder, of each image its own rows and columns."""
        is_patch = self._is_patch(pixel_values)[image_index]
        canvases = maps[:, self.num_prefix_tokens :].unflatten(1, is_patch.shape[1:])
        return [canvas[:high, :wide] for canvas, (high, wide) in zip(canvases, _shapes(is_patch), strict=True)]

    def _is_patch(self, pixel_values: Tensor | Pixels) -> Tensor:
        """(I, 3, H, W) -> bool (I, rows, columns)."""
        is_seen = pixel_values.mask if isinstance(pixel_values, Pixels) else pixel_values.sum(dim=1) != 0
        shape = [size // self.patch_size for size in is_seen.shape[1:]]
        return F.interpolate(is_seen[:, None].float(), size=shape)[:, 0].bool()

    def _positions(self, is_patch: Tensor) -> Tensor:
        """(I, D, rows, columns), the grid resized to each image's own rows and columns, zeros beside it."""
        grid = self.positions[:, 1:].transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size))
        rows, columns = is_patch.shape[1:]
        shapes = _shapes(is_patch)
        resized = {
            (high, wide): F.pad(
                F.interpolate(grid, size=(high, wide), mode="bilinear", align_corners=True),
                (0, columns - wide, 0, rows - high),
            )
            for high, wide in set(shapes)
        }
        return torch.cat([resized[shape] for shape in shapes])


def _shapes(is_patch: Tensor) -> list[tuple[int, int]]:
    """Rows and columns of each image: it is as high as its first column of patches, and as wide as its first row."""
    sides = torch.stack([is_patch[:, :, 0].sum(dim=1), is_patch[:, 0].sum(dim=1)], dim=1).tolist()
    return [(high, wide) for high, wide in sides]


def random_subset(is_patch: Tensor, count: int) -> Tensor:
    """Numbers (I, count) of patches: of the real ones of an image a random subset in random order, then padding."""
    return (torch.rand(is_patch.shape, device=is_patch.device) + ~is_patch).topk(count, largest=False).indices


def take(rows: Tensor, chosen: Tensor) -> Tensor:
    """(I, N, D) and numbers (I, M) -> (I, M, D)."""
    return rows.gather(1, chosen[..., None].expand(-1, -1, rows.shape[2]))
