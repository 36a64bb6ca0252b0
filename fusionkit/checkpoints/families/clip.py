"""CLIP (Radford et al. 2021): two towers and a contrastive space, under late fusion.

The folders that transformers' CLIPModel saves.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan, reshaped, resize_positions
from fusionkit.checkpoints.families.bert import POSITION_IDS
from fusionkit.checkpoints.source import Source

IMAGE, TEXT = "model.image_encoder.backbone.", "model.text_encoder.backbone."
NAMES = {
    "text_model.": TEXT,
    "text_projection.": "model.text_projection.",
    "visual_projection.": "model.image_projection.",
}
TOWER = {
    "embeddings.patch_embedding.": f"{IMAGE}patch_embed.proj.",
    "pre_layrnorm.": f"{IMAGE}norm_pre.",
    "post_layernorm.": f"{IMAGE}norm.",
}
BLOCK = {"layer_norm1.": "norm1.", "self_attn.out_proj.": "attn.proj.", "layer_norm2.": "norm2.", "mlp.": "mlp."}
TOWERS = {"quick_gelu": "vit_base_patch16_clip_quickgelu_224", "gelu": "vit_base_patch16_clip_224"}
FUSION = {  # CLIP has none: late fusion is there to be trained
    f"model.fusion.project_{side}.{name}": make
    for side in ("image", "text")
    for name, make in (
        ("0.weight", runs.started),
        ("0.bias", torch.zeros),
        ("1.weight", torch.ones),
        ("1.bias", torch.zeros),
    )
}


def plan(
    source: Source, projection_dim: int, vision: Mapping[str, Any], text: Mapping[str, Any], ids: Mapping[str, int]
) -> Plan:
    """What a folder of CLIP is; sizes of its two towers by transformers' names."""
    runs.of_class(source, {"CLIPModel": None})
    image, words = runs.sizes_of(vision, source, "vision_config"), runs.sizes_of(text, source, "text_config")
    width = runs.sizes_of({"projection_dim": projection_dim}, source)["projection_dim"]
    return Plan(
        family="clip",
        release="transformers' CLIP",
        groups=[*runs.groups_of(["itc"]), "fusion=late"],
        config=runs.run_of(["itc"], words["max_position_embeddings"], image_size=image["image_size"], fit="crop")
        | {
            "name": "clip",
            "image_encoder": image_tower(image),
            "text_encoder": {
                "_target_": "fusionkit.encoders.text.HFTextEncoder",
                "config": {"model_type": "clip_text_model", **words},
                "pool": "last",
            },
            "model": {"embed_size": width, "projection_bias": False, "temperature_range": [0.01, 1.0]},
        },
        keys=keys_of(image),
        left_out=POSITION_IDS,
        added=FUSION,
        ids=ids,
        tokenizer="openai/clip-vit-base-patch32",
    )


def keys_of(image: Mapping[str, Any]) -> list[Key]:
    """The names of both towers."""
    return [
        *runs.renamed(NAMES),
        *tower_keys("vision_model.", image["num_hidden_layers"]),
        Key("logit_scale", "model.temperature", change=runs.inverse),
    ]


def tower_keys(theirs: str, layers: int) -> list[Key]:
    """The names of the vision tower."""
    return [
        *runs.renamed(TOWER, theirs),
        *block_keys(layers, f"{theirs}encoder."),
        Key(f"{theirs}embeddings.class_embedding", f"{IMAGE}cls_token", change=reshaped),
        Key(f"{theirs}embeddings.position_embedding.weight", f"{IMAGE}pos_embed", change=resize_table),
    ]


def block_keys(count: int, theirs: str) -> list[Key]:
    """The blocks of a vision tower as transformers names them; queries, keys and values are packed in ours."""
    places = f"{theirs}layers.{{}}.", f"{IMAGE}blocks.{{}}."
    packed = [
        Key(f"{places[0].format(n)}self_attn.{kind}_proj.", f"{places[1].format(n)}attn.qkv.", part=part)
        for n in range(count)
        for part, kind in enumerate("qkv")
    ]
    return [*runs.layers(BLOCK, count, *places), *packed]


def resize_table(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Positions (1 + N, D), resized as in ``resize_positions``."""
    return resize_positions(tensor[None], shape)


def image_tower(image: Mapping[str, Any]) -> dict[str, Any]:
    """CLIP's vision tower, with a norm before its blocks too."""
    return {
        "_target_": "fusionkit.encoders.image.TimmEncoder",
        "name": TOWERS.get(image["hidden_act"], TOWERS["gelu"]),
        "img_size": image["image_size"],
        "patch_size": image["patch_size"],
        "embed_dim": image["hidden_size"],
        "depth": image["num_hidden_layers"],
        "num_heads": image["num_attention_heads"],
        "intermediate_size": image["intermediate_size"],
        "norm_layer": {"_target_": "torch.nn.LayerNorm", "_partial_": True, "eps": image["layer_norm_eps"]},
    } | (
        {} if image["hidden_act"] in TOWERS else runs.tower_activation(image["hidden_act"], "vision_config.hidden_act")
    )
