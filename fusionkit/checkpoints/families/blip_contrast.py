"""BLIP as transformers' BlipModel saves it: two towers, a pooler of each, and a contrastive space."""

from collections.abc import Mapping
from typing import Any

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan
from fusionkit.checkpoints.families.bert import (
    POSITION_IDS,
    cross_attention_config,
    fusion_layers,
    text_config,
    text_encoder,
)
from fusionkit.checkpoints.families.vit import timm_vit, transformers_vit_keys
from fusionkit.checkpoints.folder import OPENAI, completed, images_of
from fusionkit.checkpoints.source import Source

VISION = {  # of transformers' BlipVisionConfig
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 384,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
TEXT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "max_position_embeddings",
    "layer_norm_eps",
    "hidden_act",
)


def plan(source: Source, bert: Mapping[str, Any], ids: Mapping[str, Any]) -> Plan:
    """What a folder of BlipModel is; ``bert`` are the published sizes, and those that a folder does not name."""
    source = completed(source, "BlipConfig")
    image, text = (
        runs.sizes_of(sizes, source, part)
        for sizes, part in ((VISION, "vision_config"), ({name: bert[name] for name in TEXT}, "text_config"))
    )
    words = {**bert, **text, "type_vocab_size": 0}
    width = runs.sizes_of({"projection_dim": 512}, source)["projection_dim"]
    tower = {
        "embed_dim": image["hidden_size"],
        "depth": image["num_hidden_layers"],
        "num_heads": image["num_attention_heads"],
        "intermediate_size": image["intermediate_size"],
        "qkv_bias": True,
        "layer_norm_eps": image["layer_norm_eps"],
    }
    images = images_of(source, image["image_size"], **OPENAI)
    fusion = cross_attention_config(words, text["num_hidden_layers"])
    return Plan(
        family="blip",
        release="transformers' BLIP",
        groups=runs.groups_of(["itc"]),
        config=runs.run_of(["itc"], text["max_position_embeddings"], **images)
        | {
            "name": "blip",
            "image_encoder": timm_vit(tower, image["image_size"], image["patch_size"])
            | runs.tower_activation(image["hidden_act"])
            | {"norm_pooled": True},
            "text_encoder": text_config(words, 0, ids["pad"])
            | {"_target_": "fusionkit.encoders.blip.BLIPTextEncoder", "token_types": False},
            "fusion": fusion
            | {"_target_": "fusionkit.fusion.mixed_cross_attention.MixedCrossAttention", "text_pool": True},
            "model": {"embed_size": width, "projection_bias": False, "temperature_range": [0.001, 100.0]},
        },
        keys=[
            *transformers_vit_keys("vision_model.", "model.", image["num_hidden_layers"]),
            *text_encoder("text_model.", "model.text_encoder.", 0),
            *fusion_layers("text_model.encoder.", "model.fusion.", text["num_hidden_layers"]),
            Key("text_model.pooler.dense.", "model.fusion.text_pool.0."),
            Key("visual_projection.", "model.image_projection."),
            Key("text_projection.", "model.text_projection."),
            Key("logit_scale", "model.temperature", change=runs.inverse),
        ],
        left_out=POSITION_IDS,
        ids={token: number for token, number in ids.items() if number is not None},
    )
