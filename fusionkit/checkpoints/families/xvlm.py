"""X-VLM (Zeng et al. 2022): Swin or CLIP's ViT with regions as views, BERT split into text layers and fusion layers.

Checkpoints of github.com/zengyan-97/X-VLM: pre-training, retrieval, grounding (by boxes or weakly), VQA, NLVR2 and captioning;
which one it is shows in its parts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan, reshaped
from fusionkit.checkpoints.families.albef import shared_pairs
from fusionkit.checkpoints.families.bert import (
    POSITION_IDS,
    answer_decoder,
    cross_attention_config,
    decoder_config,
    fusion_layers,
    lm_head,
    text_config,
    text_encoder,
)
from fusionkit.checkpoints.families.clip import block_keys, image_tower, resize_table
from fusionkit.checkpoints.families.swin import swin_buffers, swin_keys, swin_sizes
from fusionkit.checkpoints.source import Source

Sizes = Mapping[str, Any]
TEXTS = (
    "text_encoder.bert.",
    "text_encoder.",
    "text_decoder.bert.",
)  # where BERT's layers stand: the first that is there
HEADS = {  # by task, what only a checkpoint with it has
    "itc": "vision_proj.",
    "itm": "itm_head.",
    "mlm": "text_encoder.cls.",
    "grounding": "bbox_head.",
    "nlvr2": "cls_head.",
}
CLASSES = {"itm": ("mismatch", "match"), "nlvr2": ("False", "True")}  # models/xvlm.py, dataset/nlvr_dataset.py
NORM_GELU = {"_target_": "fusionkit.tasks.heads.norm_gelu", "_partial_": True}
VIEW_ENCODER = {"_target_": "fusionkit.encoders.region_encoder.ViewEncoder"}


def plan(
    source: Source,
    image_size: int,
    patch_size: int,
    swin: Sizes,
    clip: Sizes,
    bert: Sizes,
    embed_dim: int,
    ids: Mapping[str, int],
    prompt: str,
    answers: str | None = None,
) -> Plan:
    """What a checkpoint is, with sizes as in its own configs; ``embed_dim`` is the contrastive width.

    ``answers`` is a file of those that VQA ranks.
    """
    tasks = tasks_of(source)
    is_clip = source.has("vision_encoder.class_embedding")
    lower, upper = bert["fusion_layer"], bert["num_hidden_layers"] - bert["fusion_layer"]
    fusion = cross_attention_config(bert, upper)
    if "nlvr2" in tasks:
        fusion["_target_"] = "fusionkit.fusion.alternating_cross_attention.AlternatingCrossAttention"
    swin_tower = VIEW_ENCODER | {"mean_token": True} | swin_sizes(swin, image_size)
    return Plan(
        family="xvlm",
        release="github.com/zengyan-97/X-VLM",
        groups=runs.groups_of(tasks),
        config=runs.run_of(tasks, bert["max_position_embeddings"], clean=runs.CLEAN, image_size=image_size)
        | {
            "name": "xvlm",
            "image_encoder": clip_config(clip, image_size, patch_size) if is_clip else swin_tower,
            "text_encoder": text_config(bert, lower, ids["pad"]),
            "fusion": fusion,
            "model": {"embed_size": embed_dim},
            "evaluation": {"options": {"reranking": {"k": 256, "rule": "itm"}}},
            "task": {name: task_config(name, bert, ids["pad"], prompt) for name in tasks},
        },
        keys=[
            *(clip_keys(clip["num_hidden_layers"]) if is_clip else swin_keys(swin["depths"], "vision_encoder.")),
            *text_keys(next(filter(source.has, TEXTS), TEXTS[0]), lower, upper, is_paired="nlvr2" in tasks),
            Key("vision_proj.", "model.image_projection."),
            Key("text_proj.", "model.text_projection."),
            Key("temp", "model.temperature"),
            *head_keys(tasks, upper),
        ],
        left_out=POSITION_IDS | swin_buffers("vision_encoder."),
        added={} if "itc" in tasks else runs.no_contrast("model"),
        classes=CLASSES,
        ids=ids,
        answers=runs.listed_answers(source, answers, can_say="vqa_decoder" in tasks),
    )


def tasks_of(source: Source) -> list[str]:
    """The tasks whose heads a checkpoint has."""
    if source.has("text_decoder."):
        return ["vqa_decoder" if source.has("text_encoder.") else "captioning"]
    return [task for task, head in HEADS.items() if source.has(head)] or ["itm"]


def task_config(task: str, bert: Sizes, pad: int, prompt: str) -> dict[str, Any]:
    """What lies over the configuration of a task."""
    head: dict[str, Any] = {"head": NORM_GELU | {"hidden_size": 2 * bert["hidden_size"]}}
    if task == "nlvr2":
        return {"_target_": "fusionkit.tasks.nlvr2.JointNLVR2", "_partial_": True} | head
    if task == "vqa_decoder":
        decoder = decoder_config(bert, bert["num_hidden_layers"] - bert["fusion_layer"], pad)
        return {"decoder": decoder, "eps": bert["layer_norm_eps"]}
    if task in ("mlm", "captioning"):
        return {"eps": bert["layer_norm_eps"]} | ({"prompt": prompt} if task == "captioning" else {})
    return head if task == "itm" else {}


def head_keys(tasks: Sequence[str], upper: int) -> list[Key]:
    """What the tasks have; a decoder of answers has as many layers as the fusion."""
    if "vqa_decoder" in tasks:
        return answer_decoder("text_decoder.", "tasks.vqa_decoder.head.", upper)
    if "captioning" in tasks:
        return lm_head("text_decoder.cls.", "tasks.captioning.head.", "model.text_encoder.")
    plain = [Key(HEADS[task], f"tasks.{task}.head.") for task in ("itm", "grounding", "nlvr2")]
    return [*plain, *lm_head(HEADS["mlm"], "tasks.mlm.head.", "model.text_encoder.")]


def text_keys(theirs: str, lower: int, upper: int, is_paired: bool) -> list[Key]:
    """Text layers and fusion layers; the paired ones of NLVR2 share keys and values."""
    return [
        *text_encoder(theirs, "model.text_encoder.", lower),
        *fusion_layers(f"{theirs}encoder.", "model.fusion.", upper, first=lower),
        *(shared_pairs(theirs, "model.", lower, upper) if is_paired else []),
    ]


def clip_config(clip: Sizes, image_size: int, patch_size: int) -> dict[str, Any]:
    """CLIP's vision transformer, by whose names X-VLM calls its sizes but for two."""
    named = {**clip, "hidden_size": clip["vision_width"], "layer_norm_eps": 1e-5}
    tower = image_tower(named | {"image_size": image_size, "patch_size": patch_size})
    return tower | VIEW_ENCODER | {"view_blocks": clip["local_attn_depth"]}


def clip_keys(count: int) -> list[Key]:
    """timm's names, with query, key and value in one."""
    theirs, tower = "vision_encoder.", "model.image_encoder.backbone."
    return [
        Key(f"{theirs}class_embedding", f"{tower}cls_token", change=reshaped),
        Key(f"{theirs}patch_embed.weight", f"{tower}patch_embed.proj.weight"),
        Key(f"{theirs}pos_embed.weight", f"{tower}pos_embed", change=resize_table),
        Key(f"{theirs}pre_layrnorm.", f"{tower}norm_pre."),
        Key(f"{theirs}post_layernorm.", f"{tower}norm."),
        *block_keys(count, f"{theirs}encoder."),
    ]
