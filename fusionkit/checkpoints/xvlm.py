"""X-VLM (Zeng et al. 2022): Swin or CLIP's ViT with regions as views, BERT split into text layers and fusion layers.

Pre-training checkpoints of github.com/zengyan-97/X-VLM, and fine-tuned ones that lack some of the heads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor

from fusionkit.checkpoints.base import Key, Plan, reshaped, resize_positions
from fusionkit.checkpoints.bert import (
    POSITION_IDS,
    cross_attention_config,
    fusion_layers,
    lm_head,
    text_config,
    text_encoder,
)
from fusionkit.checkpoints.source import Source

Sizes = Mapping[str, Any]
HEADS = {"mlm": "text_encoder.cls.", "grounding": "bbox_head."}  # by task: what a checkpoint without it lacks
SWIN_BUFFERS = {
    r"vision_encoder\..*\.relative_position_index": "follows from the window size",
    r"vision_encoder\..*\.attn_mask": "follows from the window and image sizes",
}
NORM_GELU = {"_target_": "fusionkit.tasks.heads.norm_gelu", "_partial_": True}
VIEW_ENCODER = {"_target_": "fusionkit.encoders.views.ViewEncoder"}


def plan(
    source: Source,
    image_size: int,
    patch_size: int,
    swin: Sizes,
    clip: Sizes,
    bert: Sizes,
    embed_dim: int,
    ids: Mapping[str, int],
) -> Plan:
    """What a checkpoint is, with sizes as in its own configs; ``embed_dim`` is the contrastive width."""
    tasks = ["itc", "itm", *(name for name, head in HEADS.items() if source.has(head))]
    is_clip = source.has("vision_encoder.class_embedding")
    objectives = {"coco": {name: 1.0 for name in tasks if name != "grounding"}}
    if "grounding" in tasks:
        objectives["refcoco"] = {"grounding": 1.0}
    lower = bert["fusion_layer"]
    return Plan(
        family="xvlm",
        release="github.com/zengyan-97/X-VLM",
        groups=[
            f"data={'real_small' if 'grounding' in tasks else 'coco_captions'}",
            "objectives=none",
            f"task=[{','.join(tasks)}]",
        ],
        config={
            "name": "xvlm",
            "data": {"image_size": image_size},
            "objectives": objectives,
            "image_encoder": clip_config(clip, image_size, patch_size) if is_clip else swin_config(swin, image_size),
            "text_encoder": text_config(bert, lower, ids["pad"]),
            "fusion": cross_attention_config(bert, bert["num_hidden_layers"] - lower),
            "model": {"embed_size": embed_dim},
            "task": {
                "itm": {"head": NORM_GELU | {"hidden_size": 2 * bert["hidden_size"]}},
                **({"mlm": {"eps": bert["layer_norm_eps"]}} if "mlm" in tasks else {}),
            },
        },
        keys=[
            *(clip_keys(clip["num_hidden_layers"]) if is_clip else swin_keys(swin["depths"])),
            *text_encoder("text_encoder.bert.", "model.text_encoder.", lower),
            *fusion_layers(
                "text_encoder.bert.encoder.", "model.fusion.", bert["num_hidden_layers"] - lower, first=lower
            ),
            *lm_head("text_encoder.cls.", "tasks.mlm.head.", "model.text_encoder."),
            Key("vision_proj.", "model.image_projection."),
            Key("text_proj.", "model.text_projection."),
            Key("temp", "model.temperature"),
            Key("itm_head.", "tasks.itm.head."),
            Key("bbox_head.", "tasks.grounding.head."),
        ],
        left_out=POSITION_IDS | SWIN_BUFFERS,
        ids=ids,
    )


def swin_config(swin: Sizes, image_size: int) -> dict[str, Any]:
    """A Swin whose first token is the mean of the others."""
    name = {"_convert_": "all", "name": "swin_base_patch4_window7_224", "mean_token": True, "img_size": image_size}
    return VIEW_ENCODER | name | dict(swin)


def clip_config(clip: Sizes, image_size: int, patch_size: int) -> dict[str, Any]:
    """CLIP's vision transformer, which is normalised before its blocks too and after them at every token."""
    return VIEW_ENCODER | {
        "name": "vit_base_patch16_224",
        "view_blocks": clip["local_attn_depth"],
        "img_size": image_size,
        "patch_size": patch_size,
        "embed_dim": clip["vision_width"],
        "depth": clip["num_hidden_layers"],
        "num_heads": clip["num_attention_heads"],
        "mlp_ratio": clip["intermediate_size"] / clip["vision_width"],
        "act_layer": clip["hidden_act"],
        "pre_norm": True,
        "norm_layer": {"_target_": "torch.nn.LayerNorm", "_partial_": True, "eps": 1e-5},
    }


def swin_keys(depths: Sequence[int]) -> list[Key]:
    """timm's names: a stage begins, and does not end, with the merging of its patches."""
    theirs, tower, table = "vision_encoder.", "model.image_encoder.backbone.", "attn.relative_position_bias_table"
    found = [Key(theirs, tower)]
    for stage, depth in enumerate(depths):
        found.append(Key(f"{theirs}layers.{stage}.downsample.", f"{tower}layers.{stage + 1}.downsample."))
        blocks = [f"layers.{stage}.blocks.{number}.{table}" for number in range(depth)]
        found += [Key(f"{theirs}{block}", f"{tower}{block}", change=resized_bias) for block in blocks]
    return found


def resized_bias(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Relative positions ((2 W - 1)^2, heads) for another window: interpolated on a grid that is finer at the centre (BEiT)."""
    side = round(shape[0] ** 0.5)
    return resize_rel_pos_bias_table(tensor, ((side + 1) // 2, (side + 1) // 2), tuple(shape))


def clip_keys(layers: int) -> list[Key]:
    """timm's names, with query, key and value in one."""
    theirs, tower = "vision_encoder.", "model.image_encoder.backbone."
    found = [
        Key(f"{theirs}class_embedding", f"{tower}cls_token", change=reshaped),
        Key(f"{theirs}patch_embed.weight", f"{tower}patch_embed.proj.weight"),
        Key(f"{theirs}pos_embed.weight", f"{tower}pos_embed", change=resized_table),
        Key(f"{theirs}pre_layrnorm.", f"{tower}norm_pre."),
        Key(f"{theirs}post_layernorm.", f"{tower}norm."),
    ]
    names = {"layer_norm1": "norm1", "self_attn.out_proj": "attn.proj", "layer_norm2": "norm2", "mlp": "mlp"}
    for number in range(layers):
        layer, block = f"{theirs}encoder.layers.{number}.", f"{tower}blocks.{number}."
        found += [Key(f"{layer}{their_part}.", f"{block}{our_part}.") for their_part, our_part in names.items()]
        found += [Key(f"{layer}self_attn.{part}_proj.", f"{block}attn.qkv.", part=n) for n, part in enumerate("qkv")]
    return found


def resized_table(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Positions that are stored as a table (1 + N, D)."""
    return resize_positions(tensor[None], shape)
