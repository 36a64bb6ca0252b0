"""ALBEF (Li et al. 2021): ViT, BERT split into text layers and fusion layers, momentum copies of all of it.

Checkpoints of github.com/salesforce/ALBEF, five kinds: pretrain, retrieval, ve, vqa, nlvr.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusionkit.checkpoints.base import Key, Plan, reshaped, transposed
from fusionkit.checkpoints.bert import (
    POSITION_IDS,
    cross_attention_config,
    fusion_layers,
    lm_head,
    text_config,
    text_encoder,
)
from fusionkit.checkpoints.source import Source
from fusionkit.checkpoints.vit import timm_vit, vit_keys

RELEASE = "github.com/salesforce/ALBEF"
GROUPS = {
    "pretrain": ["data=coco_captions", "objectives=captions", "task=[itc,itm,mlm]"],
    "retrieval": ["data=coco_captions", "objectives=captions", "task=[itc,itm]", "~objectives.coco.mlm"],
}
Sizes = Mapping[str, Any]


def plan(
    source: Source,
    image_size: int,
    patch_size: int,
    vit: Sizes,
    bert: Sizes,
    embed_dim: int,
    queue_size: int,
    momentum: float,
    alpha: float,
    ids: Mapping[str, int],
) -> Plan:
    """What a checkpoint of ALBEF is, by the parts it has; sizes as in its own configs, ``embed_dim`` the contrastive width."""
    kind = kind_of(source)
    upper = bert["num_hidden_layers"] - bert["fusion_layer"]
    return Plan(
        family="albef",
        release=RELEASE,
        groups=GROUPS[kind],
        config={
            "name": f"albef_{kind}",
            "data": {"image_size": image_size},
            "image_encoder": timm_vit(vit, image_size, patch_size),
            "text_encoder": text_config(bert, bert["fusion_layer"]),
            "fusion": cross_attention_config(bert, upper),
            "model": {"embed_size": embed_dim},
            "teacher": {
                "_target_": "fusionkit.momentum.MomentumTeacher",
                "_partial_": True,
                "momentum": momentum,
                "alpha": alpha,
            },
            "task": {"itc": {"queue_size": queue_size}},
        },
        keys=[*student_keys(bert), *momentum_keys(bert), *queue_keys()],
        left_out=POSITION_IDS,
        added={f"tasks.itc.{side}_queue.keys": foreign_keys for side in ("image", "text")}
        if kind == "pretrain"
        else {},
        ids=ids,
    )


def kind_of(source: Source) -> str:
    """Which of the published models it is, by what only that one has."""
    return "retrieval" if source.has("idx_queue") else "pretrain"


def network_keys(bert: Sizes, m: str, ours: str) -> list[Key]:
    """Towers, fusion and projections; ``m`` is "_m" for the momentum copies."""
    keys = [*vit_keys(f"visual_encoder{m}.", ours)]
    for text in (f"text_encoder{m}.", f"text_encoder{m}.bert."):  # with an LM head, and without one
        keys += text_encoder(text, ours, bert["fusion_layer"])
        layers = (bert["num_hidden_layers"] - bert["fusion_layer"], bert["fusion_layer"])
        keys += fusion_layers(f"{text}encoder.", f"{ours}fusion.", *layers)
    keys += [Key(f"vision_proj{m}.", f"{ours}image_projection."), Key(f"text_proj{m}.", f"{ours}text_projection.")]
    return keys


def student_keys(bert: Sizes) -> list[Key]:
    """What is trained."""
    words = "model.text_encoder.backbone.embeddings.word_embeddings.weight"
    return [
        *network_keys(bert, "", "model."),
        *lm_head("text_encoder.cls.", "tasks.mlm.head.", words),
        Key("itm_head.", "tasks.itm.head."),
        Key("temp", "model.temperature"),
    ]


def momentum_keys(bert: Sizes) -> list[Key]:
    """The moving averages; there is one temperature for both."""
    words = "teacher.model.text_encoder.backbone.embeddings.word_embeddings.weight"
    return [
        *network_keys(bert, "_m", "teacher.model."),
        *lm_head("text_encoder_m.cls.", "teacher.heads.mlm.", words),
        Key("itm_head.", "teacher.heads.itm."),
        Key("temp", "teacher.model.temperature"),
    ]


def queue_keys() -> list[Key]:
    """The features of past batches, with the numbers of their images where there are such (retrieval)."""
    sides = [(side, f"tasks.itc.{side}_queue.") for side in ("image", "text")]
    return [
        *(Key(f"{side}_queue", f"{ours}feats", change=transposed) for side, ours in sides),
        *(Key("idx_queue", f"{ours}keys", change=reshaped) for _, ours in sides),
        *(Key("queue_ptr", f"{ours}pointer", change=reshaped) for _, ours in sides),
    ]


def foreign_keys(shape: torch.Size) -> Tensor:
    """Image numbers of a queue that has none: each its own, and none that a data set of ours gives."""
    return -1 - torch.arange(shape.numel())
