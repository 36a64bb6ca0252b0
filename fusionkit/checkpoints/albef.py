"""ALBEF (Li et al. 2021): ViT, BERT split into text layers and fusion layers, momentum copies of all of it.

Checkpoints of github.com/salesforce/ALBEF: pretrain, retrieval, ve (SNLI-VE), nlvr, vqa; which one it is shows in its parts.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusionkit.checkpoints.base import Key, Plan, constant, fresh_weight, reshaped, transposed
from fusionkit.checkpoints.bert import (
    POSITION_IDS,
    cross_attention_config,
    decoder_config,
    fusion_layers,
    lm_head,
    text_config,
    text_encoder,
)
from fusionkit.checkpoints.source import Source
from fusionkit.checkpoints.vit import timm_vit, vit_keys

Sizes = Mapping[str, Any]
RELU_HEAD = {"_target_": "hydra.utils.get_object", "path": "fusionkit.tasks.heads.relu_head"}
TEACHER = {"_target_": "fusionkit.momentum.MomentumTeacher", "_partial_": True}


class Kind(NamedTuple):
    """One of the published models."""

    sign: str  # how a name begins that only it has
    groups: tuple[str, ...]
    task: Mapping[str, Any]  # settings over those of conf/task


KINDS = {
    "vqa": Kind("text_decoder.", ("data=vqa_v2", "task=vqa_decoder", "+objectives.vqa.vqa_decoder=1"), {}),
    "nlvr": Kind(
        "text_encoder.encoder.layer.17.",
        ("data=nlvr2", "task=nlvr2", "+objectives.nlvr2.nlvr2=1"),
        {"nlvr2": {"_target_": "fusionkit.tasks.nlvr2.JointNLVR2", "_partial_": True, "head": RELU_HEAD}},
    ),
    "ve": Kind(
        "cls_head.",
        ("data=snli_ve", "task=entailment", "+objectives.snli_ve.entailment=1"),
        {"entailment": {"head": RELU_HEAD}},
    ),
    "retrieval": Kind("idx_queue", ("data=coco_captions", "task=[itc,itm]", "+objectives.coco={itc:1,itm:1}"), {}),
    "pretrain": Kind("", ("data=coco_captions", "task=[itc,itm,mlm]", "+objectives.coco={itc:1,itm:1,mlm:1}"), {}),
}


def plan(
    source: Source,
    image_size: int,
    patch_size: int,
    vit: Sizes,
    bert: Sizes,
    decoder: Sizes,
    embed_dim: int,
    queue_size: int,
    momentum: float,
    alpha: float,
    ids: Mapping[str, int],
) -> Plan:
    """What a checkpoint is, with sizes as in its own configs; ``embed_dim`` is the contrastive width."""
    name, kind = next((name, kind) for name, kind in KINDS.items() if source.has(kind.sign))
    fusion = cross_attention_config(bert, bert["num_hidden_layers"] - bert["fusion_layer"])
    if name == "nlvr":
        fusion["_target_"] = "fusionkit.fusion.alternating_cross_attention.AlternatingCrossAttention"
    task = dict(kind.task)
    if name == "vqa":
        task["vqa_decoder"] = {"decoder": decoder_config(bert, decoder["num_layers"])}
    if name in ("pretrain", "retrieval"):
        task["itc"] = {"queue_size": queue_size}
    return Plan(
        family="albef",
        release="github.com/salesforce/ALBEF",
        groups=["objectives=none", *kind.groups],
        config={
            "name": f"albef_{name}",
            "data": {"image_size": image_size},
            "image_encoder": timm_vit(vit, image_size, patch_size),
            "text_encoder": text_config(bert, bert["fusion_layer"]),
            "fusion": fusion,
            "model": {"embed_size": embed_dim},
            "teacher": TEACHER | {"momentum": momentum, "alpha": alpha},
            "task": task,
        },
        keys=keys(bert, decoder),
        left_out=POSITION_IDS,
        added=added(name),
        ids=ids,
    )


def keys(bert: Sizes, decoder: Sizes) -> list[Key]:
    """All names of all kinds: student, moving averages and queues."""
    return [
        *network("", "model.", bert),
        *network("_m", "teacher.model.", bert),
        *heads("", "tasks.{}.head.", "model.", decoder),
        *heads("_m", "teacher.heads.{}.", "teacher.model.", decoder),
        Key("itm_head.", "tasks.itm.head."),
        Key(
            "itm_head.", "teacher.heads.itm."
        ),  # matching does not listen to the teacher, which has no copy of its head
        Key("temp", "model.temperature"),
        Key("temp", "teacher.model.temperature"),  # one for both
        *queue("image"),
        *queue("text"),
    ]


def network(m: str, ours: str, bert: Sizes) -> list[Key]:
    """Towers, fusion and projections; ``m`` is "_m" for the moving averages."""
    found = vit_keys(f"visual_encoder{m}.", ours)
    upper = bert["num_hidden_layers"] - bert["fusion_layer"]
    for text in (f"text_encoder{m}.", f"text_encoder{m}.bert."):  # without and with an LM head
        found += text_encoder(text, f"{ours}text_encoder.", bert["fusion_layer"])
        found += fusion_layers(f"{text}encoder.", f"{ours}fusion.", upper, first=bert["fusion_layer"])
    return [
        *found,
        Key(f"vision_proj{m}.", f"{ours}image_projection."),
        Key(f"text_proj{m}.", f"{ours}text_projection."),
    ]


def heads(m: str, ours: str, model: str, decoder: Sizes) -> list[Key]:
    """What the tasks have; ``ours`` is the place of a task's head, by its name."""
    answers = f"{ours.format('vqa_decoder')}reader."
    return [
        *lm_head(f"text_encoder{m}.cls.", ours.format("mlm"), f"{model}text_encoder."),
        Key(f"cls_head{m}.", ours.format("entailment")),
        Key(f"cls_head{m}.", ours.format("nlvr2")),
        *text_encoder(f"text_decoder{m}.bert.", f"{answers}text_encoder.", 0),
        *fusion_layers(f"text_decoder{m}.bert.encoder.", f"{answers}fusion.", decoder["num_layers"]),
        *lm_head(f"text_decoder{m}.cls.", f"{ours.format('vqa_decoder')}words.", f"{answers}text_encoder."),
    ]


def queue(side: str) -> list[Key]:
    """The features of past batches, with the numbers of their images where there are such (retrieval)."""
    ours = f"tasks.itc.{side}_queue."
    return [
        Key(f"{side}_queue", f"{ours}feats", change=transposed),
        Key("idx_queue", f"{ours}keys", change=reshaped),
        Key("queue_ptr", f"{ours}pointer", change=reshaped),
    ]


def added(name: str) -> dict[str, Callable[[torch.Size], Tensor]]:
    """What the published model does not have: image numbers in the queue of pre-training, a contrastive space elsewhere."""
    if name == "pretrain":
        return {f"tasks.itc.{side}_queue.keys": foreign_keys for side in ("image", "text")}
    return {} if name == "retrieval" else no_contrast("model", "teacher.model")


def no_contrast(*models: str) -> dict[str, Callable[[torch.Size], Tensor]]:
    """Projections and a temperature for checkpoints of models that have none."""
    parts: dict[str, Callable[[torch.Size], Tensor]] = {"temperature": constant(0.07)}
    for side in ("image", "text"):
        parts |= {f"{side}_projection.weight": fresh_weight, f"{side}_projection.bias": constant(0.0)}
    return {f"{model}.{name}": make for model in models for name, make in parts.items()}


def foreign_keys(shape: torch.Size) -> Tensor:
    """Image numbers of a queue that has none: each its own, and none that a data set of ours gives."""
    return -1 - torch.arange(shape.numel())
