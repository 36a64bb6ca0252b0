"""Vision transformers in published checkpoints, as timm names and builds them."""

from collections.abc import Mapping
from typing import Any

from fusionkit.checkpoints.base import Key, resize_positions


def timm_vit(vit: Mapping[str, Any], image_size: int, patch_size: int) -> dict[str, Any]:
    """The configuration of our image encoder for a plain vision transformer (cls token, norm before each part)."""
    return {
        "_target_": "fusionkit.encoders.image.TimmEncoder",
        "name": "vit_base_patch16_224",
        "img_size": image_size,
        "patch_size": patch_size,
        "norm_layer": {"_target_": "torch.nn.LayerNorm", "_partial_": True, "eps": vit["layer_norm_eps"]},
    } | {name: vit[name] for name in ("embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias")}


def vit_keys(theirs: str, ours: str) -> list[Key]:
    """A tower that is named as timm names it; its positions are resized to our image size."""
    tower = f"{ours}image_encoder.backbone."
    return [Key(theirs, tower), Key(f"{theirs}pos_embed", f"{tower}pos_embed", change=resize_positions)]
