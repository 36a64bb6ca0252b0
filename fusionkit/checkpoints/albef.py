"""ALBEF (Li et al. 2021): ViT, BERT split into text layers and fusion layers, momentum copies of all of it.

Checkpoints of github.com/salesforce/ALBEF: pretrain, retrieval, ve (SNLI-VE), nlvr, vqa; which one it is shows in its parts.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusionkit.checkpoints.base import Key, Plan, constant, fresh_weight, invert, reshaped, transposed
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
from fusionkit.errors import ConfigError

Sizes = Mapping[str, Any]
RELU_HEAD = {"_target_": "fusionkit.tasks.heads.relu", "_partial_": True}
TEACHER = {"_target_": "fusionkit.momentum.MomentumTeacher", "_partial_": True}


class Kind(NamedTuple):
    """One of the published models."""

    sign: str  # how a name begins that only it has
    source: str  # of the choice of data
    data: str
    tasks: tuple[str, ...]
    options: Mapping[str, Any]  # of the tasks, over those of conf/task


KINDS = {
    "vqa": Kind("text_decoder.", "vqa", "vqa_v2", ("vqa_decoder",), {}),
    "nlvr": Kind(
        "text_encoder.encoder.layer.17.",
        "nlvr2",
        "nlvr2",
        ("nlvr2",),
        {"nlvr2": {"_target_": "fusionkit.tasks.nlvr2.JointNLVR2", "_partial_": True, "head": RELU_HEAD}},
    ),
    "ve": Kind("cls_head.", "snli_ve", "snli_ve", ("entailment",), {"entailment": {"head": RELU_HEAD}}),
    "retrieval": Kind("idx_queue", "coco", "coco_captions", ("itc", "itm"), {}),
    "pretrain": Kind("", "coco", "coco_captions", ("itc", "itm", "mlm"), {}),
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
    task = dict(kind.options)
    if name == "vqa":
        answers = decoder_config(bert, decoder["num_layers"], ids["pad"])
        task["vqa_decoder"] = {"decoder": answers, "eps": bert["layer_norm_eps"]}
    if name == "pretrain":
        task["mlm"] = {"eps": bert["layer_norm_eps"]}
    if name in ("pretrain", "retrieval"):
        task["itc"] = {"queue_size": queue_size}
    is_taught = source.has("visual_encoder_m.")  # fine-tuned models without distillation are not
    return Plan(
        family="albef",
        release="github.com/salesforce/ALBEF",
        groups=[f"data={kind.data}", "objectives=none", f"task=[{','.join(kind.tasks)}]"],
        config={
            "name": f"albef_{name}",
            "data": {"image_size": image_size},
            "objectives": {kind.source: dict.fromkeys(kind.tasks, 1.0)},
            "image_encoder": timm_vit(vit, image_size, patch_size),
            "text_encoder": text_config(bert, bert["fusion_layer"], ids["pad"]),
            "fusion": fusion,
            "model": {"embed_size": embed_dim},
            **({"teacher": TEACHER | {"momentum": momentum, "alpha": alpha}} if is_taught else {}),
            "negatives": {"by_teacher": name in ("pretrain", "retrieval")},
            "task": task,
        },
        keys=keys(name, bert["fusion_layer"], fusion["num_layers"], decoder["num_layers"]),
        left_out=POSITION_IDS,
        added=added(name),
        ids=ids,
    )


def keys(name: str, lower: int, upper: int, decoder: int) -> list[Key]:
    """All names of a kind: student, moving averages and queues; the student first, which an export takes what is one from.

    ``lower`` text layers, ``upper`` fusion layers, ``decoder`` layers of an answer decoder.
    """
    text = "text_encoder{}.bert." if name == "pretrain" else "text_encoder{}."  # with and without an LM head
    return [
        Key("itm_head.", "tasks.itm.head."),
        Key("temp", "model.temperature"),
        *network("", text, "model.", lower, upper, name == "nlvr"),
        *heads(name, "", "tasks.{}.head.", "model.", decoder),
        *network("_m", text, "teacher.model.", lower, upper, name == "nlvr"),
        *heads(name, "_m", "teacher.heads.{}.", "teacher.model.", decoder),
        Key("itm_head.", "teacher.heads.itm."),  # matching does not listen to the teacher: there is no copy of its head
        Key("temp", "teacher.model.temperature"),  # one for both
        *queue("image", name),
        *queue("text", name),
    ]


def network(m: str, text: str, ours: str, lower: int, upper: int, is_paired: bool) -> list[Key]:
    """Towers, fusion and projections; ``m`` is "_m" for the moving averages.

    ``is_paired`` fusion layers share their keys and values two by two (NLVR2): the published ones have to be equal.
    """
    pairs = [(number, part) for number in range(1, upper, 2) for part in ("key.", "value.")] if is_paired else []
    return [
        *(
            Key(
                f"{text.format(m)}encoder.layer.{lower + number}.crossattention.self.{part}",
                f"{ours}fusion.layers.{number - 1}.cross_attention.{part}",
            )
            for number, part in pairs
        ),
        *vit_keys(f"visual_encoder{m}.", ours),
        *text_encoder(text.format(m), f"{ours}text_encoder.", lower),
        *fusion_layers(f"{text.format(m)}encoder.", f"{ours}fusion.", upper, first=lower),
        Key(f"vision_proj{m}.", f"{ours}image_projection."),
        Key(f"text_proj{m}.", f"{ours}text_projection."),
    ]


def heads(name: str, m: str, ours: str, model: str, decoder: int) -> list[Key]:
    """What the tasks have; ``ours`` is the place of a task's head, by its name."""
    if name == "pretrain":
        return lm_head(f"text_encoder{m}.cls.", ours.format("mlm"), f"{model}text_encoder.")
    if name in ("ve", "nlvr"):
        return [Key(f"cls_head{m}.", ours.format("entailment" if name == "ve" else "nlvr2"))]
    if name == "retrieval":
        return []
    head, theirs = ours.format("vqa_decoder"), f"text_decoder{m}."
    return [
        *text_encoder(f"{theirs}bert.", f"{head}reader.text_encoder.", 0),
        *fusion_layers(f"{theirs}bert.encoder.", f"{head}reader.fusion.", decoder),
        *lm_head(f"{theirs}cls.", f"{head}words.", f"{head}reader.text_encoder."),
    ]


def queue(side: str, name: str) -> list[Key]:
    """The features of past batches, with the numbers of their images where there are such (retrieval)."""
    ours = f"tasks.itc.{side}_queue."
    found = [
        Key(f"{side}_queue", f"{ours}feats", change=transposed),
        Key("queue_ptr", f"{ours}pointer", change=reshaped),
    ]
    return [*found, Key("idx_queue", f"{ours}keys", change=reshaped)] if name == "retrieval" else found


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


def to_published(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict that ALBEF's own code loads, from the state and the configuration of a checkpoint of ours.

    Raises ConfigError where the checkpoint is no ALBEF: other parts, or another choice of tasks.
    """
    tasks = config["task"]
    signs = {"vqa_decoder": "vqa", "nlvr2": "nlvr", "entailment": "ve", "mlm": "pretrain", "itc": "retrieval"}
    name = next((kind for task, kind in signs.items() if task in tasks), None)
    if name is None:
        raise ConfigError(f"layout=albef: ALBEF has no model for {', '.join(tasks)}; its tasks are {', '.join(signs)}")
    decoder = tasks["vqa_decoder"]["decoder"]["num_layers"] if name == "vqa" else 0
    lower, upper = config["text_encoder"]["config"]["num_hidden_layers"], config["fusion"].get("num_layers", 0)
    published, foreign = invert(state, keys(name, lower, upper, decoder))
    ours_alone = added(name).keys() | {f"tasks.itc.{side}_queue.keys" for side in ("image", "text")}
    if more := [part for part in foreign if part not in ours_alone]:
        raise ConfigError(
            f"layout=albef: ALBEF has nothing like {', '.join(more[:3])}; only its own architecture fits it"
        )
    tables = {part: tensor for part, tensor in published.items() if part.endswith("position_embeddings.weight")}
    counters = {
        part.replace("position_embeddings.weight", "position_ids"): torch.arange(len(tensor))[None]
        for part, tensor in tables.items()
    }
    return published | counters
