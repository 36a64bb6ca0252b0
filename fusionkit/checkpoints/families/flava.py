"""FLAVA (Singh et al. 2022): two pre-norm towers, and a third transformer over the states of both behind its own class token.

The folders that transformers' FlavaModel and FlavaForPreTraining save, and FlavaMultimodalModel, the third transformer alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan, resize_positions
from fusionkit.checkpoints.families.bert import POSITION_IDS, text_config, word_head
from fusionkit.checkpoints.families.vilt import TRANSFORMERS_BLOCK
from fusionkit.checkpoints.families.vit import timm_vit
from fusionkit.checkpoints.source import Source

IMAGE, TEXT = "model.image_encoder.", "model.text_encoder.backbone."
TASKS = {
    "FlavaModel": ["itc"],
    "FlavaForPreTraining": ["itc", "itm", "mlm"],
    "FlavaMultimodalModel": ["itm"],
}  # by class
NAMES = {
    "image_model.embeddings.cls_token": f"{IMAGE}backbone.cls_token",
    "image_model.embeddings.patch_embeddings.projection.": f"{IMAGE}backbone.patch_embed.proj.",
    "image_model.layernorm.": f"{IMAGE}last_norm.",
    "text_model.embeddings.": runs.EMBEDDINGS,
    "text_model.encoder.": f"{TEXT}encoder.",
    "text_model.layernorm.": f"{TEXT}layernorm.",
    "image_projection.": "model.image_projection.",
    "text_projection.": "model.text_projection.",
    "image_to_mm_projection.": "model.fusion.entry.project_image.",
    "text_to_mm_projection.": "model.fusion.entry.project_text.",
    "multimodal_model.cls_token": "model.fusion.entry.class_token",
    "multimodal_model.layernorm.": "model.fusion.norm.",
}
ALONE = {
    "cls_token": "model.fusion.entry.class_token",
    "layernorm.": "model.fusion.norm.",
    "pooler.dense.": "model.fusion.pool.dense.0.",
}
CLASSES = {"itm": ("mismatch", "match")}  # itm_labels: 1 is a text of the image
# what leads images and words into the third transformer where it stands alone: their embeddings, of its width
NEW: Mapping[str, Callable[[torch.Size], Tensor]] = {
    f"{IMAGE}class_token": runs.started,
    f"{IMAGE}positions": runs.started,
    f"{IMAGE}patches.weight": runs.started,
    f"{IMAGE}patches.bias": torch.zeros,
    f"{runs.EMBEDDINGS}LayerNorm.weight": torch.ones,
    f"{runs.EMBEDDINGS}LayerNorm.bias": torch.zeros,
    **{f"{runs.EMBEDDINGS}{kind}_embeddings.weight": runs.started for kind in ("word", "position", "token_type")},
    **{f"model.fusion.entry.project_{side}.weight": lambda shape: torch.eye(*shape) for side in ("image", "text")},
    **{f"model.fusion.entry.project_{side}.bias": torch.zeros for side in ("image", "text")},
}
POOLER = {"multimodal_model.pooler.dense.": "model.fusion.pool.dense.0."}
HEADS = {
    "itm_head.pooler.dense.": "model.fusion.pool.dense.0.",
    "itm_head.seq_relationship.": "tasks.itm.head.",
}
WORD_HEAD = word_head("mmm_text_head.", "tasks.mlm.head.", "tasks.mlm.head.decoder")
IMAGE_BLOCK = {
    "layernorm_before.": "norm1.",
    "attention.output.dense.": "attn.proj.",
    "layernorm_after.": "norm2.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
}
LEFT_OUT = POSITION_IDS | {
    r"(.*\.)?(image_model|text_model)\.pooler\..*": "poolers of the towers, which no task of FLAVA reads",
    r"(.*\.)?image_model\.embeddings\.mask_token": "what stands in for a hidden patch, a task that is not ours",
    r"(mim_head|mmm_image_head|image_codebook)\..*": "visual words told of hidden patches, a task that is not ours",
    r"mlm_head\..*": "masked words without an image, a task that is not ours",
}
OTHER_POOLER = {
    r"flava\.multimodal_model\.pooler\..*": "matching has a pooler of its own, and nothing else reads this one"
}


def plan(
    source: Source,
    projection_dim: int,
    image: Mapping[str, Any],
    text: Mapping[str, Any],
    multimodal: Mapping[str, Any],
    ids: Mapping[str, int],
) -> Plan:
    """What a folder of FLAVA is, by the class that it names; sizes of its three transformers by transformers' names."""
    tasks = runs.of_class(source, TASKS)
    if not source.has("flava.") and not source.has("multimodal_model."):
        return multimodal_plan(source, image, text, multimodal, ids)
    seen, words = runs.sizes_of(image, source, "image_config"), runs.sizes_of(text, source, "text_config")
    both = runs.sizes_of(multimodal, source, "multimodal_config")
    is_bare = "itm" not in tasks
    prefix = "" if is_bare else "flava."
    return Plan(
        family="flava",
        release="transformers' FLAVA",
        groups=runs.groups_of(tasks),
        config=runs.run_of(tasks, words["max_position_embeddings"], image_size=seen["image_size"])
        | {
            "name": "flava",
            "image_encoder": image_tower(seen),
            "text_encoder": {
                "_target_": "fusionkit.encoders.flava.FLAVATextEncoder",
                "config": {"model_type": "flava_text_model", **words},
                "before_norm": True,
            },
            "fusion": fusion_config(both),
            "model": {"embed_size": runs.sizes_of({"projection_dim": projection_dim}, source)["projection_dim"]},
            "task": {}
            if is_bare
            else {"mlm": {"tied": False, "eps": words["layer_norm_eps"]} | runs.activation(words["hidden_act"])},
        },
        keys=[*keys_of(prefix, seen, both), *(runs.renamed(POOLER) if is_bare else runs.renamed(HEADS) + WORD_HEAD)],
        left_out=LEFT_OUT if is_bare else LEFT_OUT | OTHER_POOLER,
        classes=CLASSES,
        ids=ids,
    )


def multimodal_plan(
    source: Source,
    image: Mapping[str, Any],
    text: Mapping[str, Any],
    multimodal: Mapping[str, Any],
    ids: Mapping[str, int],
) -> Plan:
    """The third transformer alone, as a fusion that is to be trained: patches and words are embedded anew at its width."""
    both = runs.sizes_of(multimodal, source)
    own = {"hidden_size": both["hidden_size"]}
    patches = {name: image[name] for name in ("image_size", "patch_size")}
    words = {**text, **own, "num_attention_heads": both["num_attention_heads"]}
    return Plan(
        family="flava",
        release="transformers' FLAVA",
        groups=runs.groups_of(["itm"]),
        config=runs.run_of(["itm"], text["max_position_embeddings"], image_size=image["image_size"])
        | {
            "name": "flava_multimodal",
            "image_encoder": {"_target_": "fusionkit.encoders.patches.PatchEncoder", **own, **patches},
            "text_encoder": text_config(words, num_layers=0),
            "fusion": fusion_config(both),
        },
        keys=[
            *runs.renamed(ALONE),
            *runs.layers(TRANSFORMERS_BLOCK, both["num_hidden_layers"], "encoder.layer.{}.", "model.fusion.blocks.{}."),
        ],
        left_out={},
        added={**NEW, **runs.NO_HEAD},
        classes=CLASSES,
        ids=ids,
    )


def keys_of(prefix: str, image: Mapping[str, Any], both: Mapping[str, Any]) -> list[Key]:
    """The names of the three transformers; the image tower's queries, keys and values are packed in ours."""
    theirs, ours = f"{prefix}image_model.encoder.layer.{{}}.", f"{IMAGE}backbone.blocks.{{}}."
    packed = [
        Key(f"{theirs.format(n)}attention.attention.{kind}.", f"{ours.format(n)}attn.qkv.", part=part)
        for n in range(image["num_hidden_layers"])
        for part, kind in enumerate(("query", "key", "value"))
    ]
    fusion = f"{prefix}multimodal_model.encoder.layer.{{}}.", "model.fusion.blocks.{}."
    positions = f"{prefix}image_model.embeddings.position_embeddings", f"{IMAGE}backbone.pos_embed"
    return [
        *runs.renamed(NAMES, prefix),
        *runs.layers(IMAGE_BLOCK, image["num_hidden_layers"], theirs, ours),
        *packed,
        Key(*positions, change=resize_positions),
        *runs.layers(TRANSFORMERS_BLOCK, both["num_hidden_layers"], *fusion),
        Key(f"{prefix}logit_scale", "model.temperature", change=runs.inverse),
    ]


def image_tower(image: Mapping[str, Any]) -> dict[str, Any]:
    """A plain vision transformer, of which the fusion reads the states before the last norm."""
    sizes = {
        "embed_dim": image["hidden_size"],
        "depth": image["num_hidden_layers"],
        "num_heads": image["num_attention_heads"],
        "intermediate_size": image["intermediate_size"],
        "qkv_bias": image["qkv_bias"],
        "layer_norm_eps": image["layer_norm_eps"],
    }
    tower = timm_vit(sizes, image["image_size"], image["patch_size"])
    return tower | runs.tower_activation(image["hidden_act"]) | {"before_norm": True}


def fusion_config(both: Mapping[str, Any]) -> dict[str, Any]:
    """Pre-norm blocks over a class token and linear maps of both towers' states, a norm, and a pooler on the class token."""
    return {
        "_target_": "fusionkit.fusion.merged_attention.MergedAttention",
        "_partial_": True,
        "hidden_size": both["hidden_size"],
        "num_layers": both["num_hidden_layers"],
        "num_heads": both["num_attention_heads"],
        "dropout": both["hidden_dropout_prob"],
        "block": {
            "_target_": "fusionkit.fusion.layers.PreNormBlock",
            "_partial_": True,
            "eps": both["layer_norm_eps"],
            "intermediate_size": both["intermediate_size"],
            **runs.activation(both["hidden_act"]),
        },
        "norm_eps": both["layer_norm_eps"],
        "entry": {"_target_": "fusionkit.fusion.input_projection.ClassToken", "_partial_": True},
        "pool": {"_target_": "fusionkit.fusion.pooling.DenseImage", "_partial_": True},
    }
