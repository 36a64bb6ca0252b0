"""Vision transformers in published checkpoints, as timm names and builds them."""

from collections.abc import Mapping
from typing import Any

from fusionkit.checkpoints.base import Key, resize_positions


def timm_vit(vit: Mapping[str, Any], image_size: int, patch_size: int) -> dict[str, Any]:
    """The configuration of our image encoder for a plain vision transformer (cls token, norm before each part).

    ``vit`` has timm's names; an ``intermediate_size`` stands in place of a ratio to the width, which a division may round.
    """
    inner = "intermediate_size" if "intermediate_size" in vit else "mlp_ratio"
    return {
        "_target_": "fusionkit.encoders.image.TimmEncoder",
        "name": "vit_base_patch16_224",
        "img_size": image_size,
        "patch_size": patch_size,
        "norm_layer": {"_target_": "torch.nn.LayerNorm", "_partial_": True, "eps": vit["layer_norm_eps"]},
    } | {name: vit[name] for name in ("embed_dim", "depth", "num_heads", inner, "qkv_bias")}


def vit_keys(theirs: str, ours: str) -> list[Key]:
    """A tower that is named as timm names it; its positions are resized to our image size."""
    tower = f"{ours}image_encoder.backbone."
    return [Key(theirs, tower), Key(f"{theirs}pos_embed", f"{tower}pos_embed", change=resize_positions)]


def transformers_vit_keys(theirs: str, ours: str, layers: int) -> list[Key]:
    """A tower with a packed qkv that transformers saved (``BlipVisionModel``)."""
    tower, embeddings = f"{ours}image_encoder.backbone.", f"{theirs}embeddings."
    found = [
        Key(f"{embeddings}class_embedding", f"{tower}cls_token"),
        Key(f"{embeddings}position_embedding", f"{tower}pos_embed", change=resize_positions),
        Key(f"{embeddings}patch_embedding.", f"{tower}patch_embed.proj."),
        Key(f"{theirs}post_layernorm.", f"{tower}norm."),
    ]
    names = {
        "layer_norm1": "norm1",
        "self_attn.qkv": "attn.qkv",
        "self_attn.projection": "attn.proj",
        "layer_norm2": "norm2",
        "mlp": "mlp",
    }
    return found + [
        Key(f"{theirs}encoder.layers.{n}.{their_part}.", f"{tower}blocks.{n}.{our_part}.")
        for n in range(layers)
        for their_part, our_part in names.items()
    ]
