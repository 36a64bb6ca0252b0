"""SigLIP and SigLIP 2 (Zhai et al. 2023, Tschannen et al. 2025): two towers and a contrastive space told by pairs.

The folders that transformers' SiglipModel saves, of images of one size.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan, reshaped, resize_positions
from fusionkit.checkpoints.families.bert import POSITION_IDS
from fusionkit.checkpoints.families.clip import FUSION, block_keys
from fusionkit.checkpoints.folder import images_of
from fusionkit.checkpoints.source import Source
from fusionkit.errors import DataError

IMAGE, TEXT = "model.image_encoder.backbone.", "model.text_encoder.backbone."
IMAGES: dict[str, Any] = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
TOWER = {"embeddings.patch_embedding.": f"{IMAGE}patch_embed.proj.", "post_layernorm.": f"{IMAGE}norm."}
POOL = {
    "probe": f"{IMAGE}attn_pool.latent",
    "attention.out_proj.": f"{IMAGE}attn_pool.proj.",
    "layernorm.": f"{IMAGE}attn_pool.norm.",
    "mlp.": f"{IMAGE}attn_pool.mlp.",
}


def plan(source: Source, vision: Mapping[str, Any], text: Mapping[str, Any], ids: Mapping[str, int]) -> Plan:
    """What a folder of SigLIP is; sizes of its two towers by transformers' names."""
    runs.of_class(source, {"SiglipModel": None})
    image, words = runs.sizes_of(vision, source, "vision_config"), runs.sizes_of(text, source, "text_config")
    width = runs.sizes_of({"projection_size": words["hidden_size"]}, source, "text_config")["projection_size"]
    if (source.config or {}).get("vision_config", {}).get("vision_use_head") is False:
        raise DataError(
            f"{source.path}: vision_config.vision_use_head is false, so that no image has a vector; take a model with it"
        )
    if width != image["hidden_size"]:
        raise DataError(
            f"{source.path}: text_config.projection_size is {width}, but images have vectors of {image['hidden_size']}; "
            "correct config.json"
        )
    positions, pad = (
        words["max_position_embeddings"],
        runs.sizes_of({"pad_token_id": ids["pad"]}, source, "text_config"),
    )
    return Plan(
        family="siglip",
        release="transformers' SigLIP",
        groups=[*runs.groups_of(["itc"]), "fusion=late"],
        config=runs.run_of(["itc"], positions + 1, **images_of(source, image["image_size"], **IMAGES))
        | {
            "name": "siglip",
            "image_encoder": image_tower(image, is_pooled=True),
            "text_encoder": {
                "_target_": "fusionkit.encoders.siglip.SigLIPTextEncoder",
                "config": {"model_type": "siglip_text_model", **words, **pad},
            },
            "model": {"embed_size": width, "temperature_range": [1e-4, 100.0]},
            "task": {"itc": {"loss": "sigmoid"}},
        },
        keys=[
            *tower_keys("vision_model.", image["num_hidden_layers"]),
            *pool_keys("vision_model.head."),
            Key("text_model.", TEXT),
            Key("text_model.head.", "model.text_projection."),
            Key("logit_scale", "model.temperature", change=runs.inverse),
            Key("logit_bias", "tasks.itc.bias", change=reshaped),
        ],
        left_out=POSITION_IDS,
        added=FUSION
        | {
            "model.image_projection.weight": lambda shape: torch.eye(*shape),
            "model.image_projection.bias": torch.zeros,
        },
        ids=ids,
        tokenizer="google/siglip-base-patch16-224",
    )


def image_tower(image: Mapping[str, Any], is_pooled: bool = False) -> dict[str, Any]:
    """SigLIP's vision tower, without a class token; where it is not ``is_pooled`` by attention of its own, by a mean."""
    pool = {"pool": "map"} if is_pooled else {"pool": "mean", "global_pool": "avg", "fc_norm": False}
    return pool | {
        "_target_": "fusionkit.encoders.image.TimmEncoder",
        "name": "vit_base_patch16_siglip_224",
        "img_size": image["image_size"],
        "patch_size": image["patch_size"],
        "embed_dim": image["hidden_size"],
        "depth": image["num_hidden_layers"],
        "num_heads": image["num_attention_heads"],
        "intermediate_size": image["intermediate_size"],
        "norm_layer": {"_target_": "torch.nn.LayerNorm", "_partial_": True, "eps": image["layer_norm_eps"]},
        "act_layer": runs.tower_activation(image["hidden_act"], "vision_config.hidden_act").get("act_layer", "gelu"),
    }


def tower_keys(theirs: str, layers: int) -> list[Key]:
    """The vision tower without its pooling."""
    return [
        *runs.renamed(TOWER, theirs),
        *block_keys(layers, f"{theirs}encoder."),
        Key(f"{theirs}embeddings.position_embedding.weight", f"{IMAGE}pos_embed", change=resize_grid),
    ]


def pool_keys(theirs: str) -> list[Key]:
    """The attention that pools; its queries, keys and values are packed in theirs."""
    return [
        *runs.renamed(POOL, theirs),
        *(
            Key(f"{theirs}attention.in_proj_{kind}", f"{IMAGE}attn_pool.{part}.{kind}", change=change)
            for kind in ("weight", "bias")
            for part, change in (("q", first_rows), ("kv", last_rows))
        ),
    ]


def first_rows(tensor: Tensor, shape: torch.Size) -> Tensor:
    """As many first rows as ours has."""
    return tensor[: shape[0]] if 3 * shape[0] == len(tensor) else tensor


def last_rows(tensor: Tensor, shape: torch.Size) -> Tensor:
    """As many last rows as ours has."""
    return tensor[-shape[0] :] if 3 * shape[0] == 2 * len(tensor) else tensor


def resize_grid(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Positions (N, D) of patches alone, resized as in ``resize_positions``."""
    return resize_positions(tensor[None], shape, num_prefix_tokens=0)
