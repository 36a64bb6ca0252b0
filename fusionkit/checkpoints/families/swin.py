"""Swin transformers in published checkpoints, as timm names and builds them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor

from fusionkit.checkpoints.base import Key


def swin_sizes(swin: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """The configuration of a Swin of these sizes, but for the encoder that holds it."""
    return {"_convert_": "all", "name": "swin_base_patch4_window7_224", "img_size": image_size} | dict(swin)


def swin_buffers(theirs: str) -> dict[str, str]:
    """What a checkpoint holds of a Swin that is not learnt, with the reason to leave it out."""
    start = theirs.replace(".", r"\.")
    return {
        rf"{start}.*\.relative_position_index": "follows from the window size",
        rf"{start}.*\.attn_mask": "follows from the window and image sizes",
    }


def swin_keys(depths: Sequence[int], theirs: str) -> list[Key]:
    """timm's names: a stage begins, and does not end, with the merging of its patches."""
    tower, table = "model.image_encoder.backbone.", "attn.relative_position_bias_table"
    found = [Key(theirs, tower)]
    for stage, depth in enumerate(depths):
        found.append(Key(f"{theirs}layers.{stage}.downsample.", f"{tower}layers.{stage + 1}.downsample."))
        blocks = [f"layers.{stage}.blocks.{number}.{table}" for number in range(depth)]
        found += [Key(f"{theirs}{block}", f"{tower}{block}", change=resized_bias) for block in blocks]
    return found


def resized_bias(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Relative positions ((2 W - 1)^2, heads) for another window: interpolated on a grid that is finer at the centre (BEiT)."""
    side = round(shape[0] ** 0.5)
    resized: Tensor = resize_rel_pos_bias_table(tensor, ((side + 1) // 2, (side + 1) // 2), tuple(shape))
    return resized
