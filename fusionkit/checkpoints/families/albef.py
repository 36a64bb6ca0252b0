"""ALBEF (Li et al. 2021): ViT, BERT split into text layers and fusion layers, momentum copies of all of it.

Checkpoints of github.com/salesforce/ALBEF: pretrain, retrieval (and weak grounding), ve (SNLI-VE), text assignment, nlvr, vqa;
which one it is shows in its parts.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan, invert, reshaped, transposed
from fusionkit.checkpoints.classes import to_theirs
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
from fusionkit.checkpoints.families.vit import timm_vit, vit_keys
from fusionkit.checkpoints.source import Source
from fusionkit.errors import ConfigError

Sizes = Mapping[str, Any]
RELU_HEAD = {"_target_": "fusionkit.tasks.heads.relu", "_partial_": True}
TEACHER = {"_target_": "fusionkit.model.momentum.MomentumTeacher", "_partial_": True}


class Kind(NamedTuple):
    """One of the published models."""

    tasks: tuple[str, ...]
    options: Mapping[str, Any]  # of the tasks, over those of conf/task


CLASSES = {  # dataset/ve_dataset.py, nlvr_dataset.py; models/model_pretrain.py gives 1 to a true pair
    "itm": ("mismatch", "match"),
    "entailment": ("contradiction", "neutral", "entailment"),
    "nlvr2": ("False", "True"),
}
PAIRED = {"nlvr2": {"_target_": "fusionkit.tasks.nlvr2.JointNLVR2", "_partial_": True, "head": RELU_HEAD}}
KINDS = {
    "pretrain": Kind(("itc", "itm", "mlm"), {}),
    "retrieval": Kind(("itc", "itm"), {}),
    "vqa": Kind(("vqa_decoder",), {}),
    "ve": Kind(("entailment",), {"entailment": {"head": RELU_HEAD}}),
    "nlvr": Kind(("nlvr2",), PAIRED),
    "assignment": Kind(("nlvr2",), PAIRED),  # text assignment, between pre-training and NLVR2
}
STARTS = ("vqa", "nlvr")  # whose fine-tuning begins with more than the network of pre-training
OLD_TASKS = r"itm_head\..*|(image|text)_queue|queue_ptr"
LEFT_OUT = {  # by kind, and by what is started
    "assignment": {r"ta_head\..*": "which image a text is of, a task that is not ours"},
    "start of vqa": {OLD_TASKS: "of the tasks of pre-training"},
    "start of nlvr": {rf"{OLD_TASKS}|text_encoder(_m)?\.cls\..*": "of the tasks of pre-training"},
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
    start: str | None = None,
    answers: str | None = None,
) -> Plan:
    """What a checkpoint is, with sizes as in its own configs; ``embed_dim`` is the contrastive width.

    ``start`` makes of one of pre-training what its fine-tuning begins with: for VQA the answer decoder is the fusion and the LM
    head (``VQA.py``), for NLVR2 each fusion layer stands twice (``Pretrain_nlvr.py``). ``answers`` is a file of those to rank.
    """
    shown = kind_of(source)
    name = shown if start is None else runs.require_start(source, start, shown, STARTS)
    kind, lower, copies = KINDS[name], bert["fusion_layer"], 2 if start == "nlvr" else 1
    fusion = cross_attention_config(bert, copies * (bert["num_hidden_layers"] - lower))
    if "nlvr2" in kind.tasks:
        fusion["_target_"] = "fusionkit.fusion.alternating_cross_attention.AlternatingCrossAttention"
    task = dict(kind.options)
    if name == "vqa":
        speaker = decoder_config(bert, decoder["num_layers"], ids["pad"])
        task["vqa_decoder"] = {"decoder": speaker, "eps": bert["layer_norm_eps"]}
    if name == "pretrain":
        task["mlm"] = {"eps": bert["layer_norm_eps"]}
    if "itc" in kind.tasks:
        task["itc"] = {"queue_size": queue_size}
    is_taught = source.has("visual_encoder_m.")  # fine-tuned models without distillation are not
    return Plan(
        family="albef",
        release="github.com/salesforce/ALBEF",
        groups=runs.groups_of(kind.tasks),
        config=runs.run_of(kind.tasks, bert["max_position_embeddings"], clean=runs.CLEAN, image_size=image_size)
        | {
            "name": f"albef_{name}",
            "image_encoder": timm_vit(vit, image_size, patch_size),
            "text_encoder": text_config(bert, lower, ids["pad"]),
            "fusion": fusion,
            "model": {"embed_size": embed_dim},
            **({"teacher": TEACHER | {"momentum": momentum, "alpha": alpha}} if is_taught else {}),
            "negatives": {"by_teacher": "itc" in kind.tasks},
            "evaluation": {"options": {"reranking": {"k": 256, "rule": "itm"}}},
            "task": task,
        },
        keys=start_keys(name, lower, fusion["num_layers"])
        if start
        else keys(name, lower, fusion["num_layers"], decoder["num_layers"]),
        left_out=POSITION_IDS | LEFT_OUT.get(f"start of {start}" if start else name, {}),
        added=added(name, has_contrast=source.has("vision_proj."), has_head=source.has("cls_head.")),
        classes=CLASSES,
        ids=ids,
        answers=runs.listed_answers(source, answers, can_say=name == "vqa"),
    )


def kind_of(source: Source) -> str:
    """Which of the published models it is."""
    if source.has("cls_head."):
        return "ve" if runs.rows(source, "cls_head.2.weight") == len(CLASSES["entailment"]) else "nlvr"
    signs = {"text_decoder.": "vqa", "ta_head.": "assignment", "idx_queue": "retrieval"}
    return next((name for sign, name in signs.items() if source.has(sign)), "pretrain")


def keys(name: str, lower: int, upper: int, decoder: int) -> list[Key]:
    """All names of a kind: student, moving averages and queues; the student first, which an export takes what is one from.

    ``lower`` text layers, ``upper`` fusion layers, ``decoder`` layers of an answer decoder.
    """
    text = "text_encoder{}.bert." if name == "pretrain" else "text_encoder{}."  # with and without an LM head
    return [
        Key("itm_head.", "tasks.itm.head."),
        Key("temp", "model.temperature"),
        *network("", text, "model.", lower, upper),
        *(shared_pairs(text.format(""), "model.", lower, upper) if name in ("nlvr", "assignment") else []),
        *heads(name, "", "tasks.{}.head.", "model.", decoder),
        *network("_m", text, "teacher.model.", lower, upper),
        *(shared_pairs(text.format("_m"), "teacher.model.", lower, upper) if name == "nlvr" else []),
        *heads(name, "_m", "teacher.heads.{}.", "teacher.model.", decoder),
        Key("itm_head.", "teacher.heads.itm."),  # matching does not listen to the teacher: there is no copy of its head
        Key("temp", "teacher.model.temperature"),  # one for both
        *queue("image", name),
        *queue("text", name),
    ]


def start_keys(name: str, lower: int, upper: int) -> list[Key]:
    """What the fine-tuning of a kind takes from pre-training."""
    found = [Key("temp", "model.temperature"), Key("temp", "teacher.model.temperature")]
    places = (("", "model.", "tasks.{}.head."), ("_m", "teacher.model.", "teacher.heads.{}."))
    for m, model, head in places:
        found += network(m, "text_encoder{}.bert.", model, lower, upper, copies=2 if name == "nlvr" else 1)
        if name == "vqa":
            found += answer_decoder(f"text_encoder{m}.", head.format("vqa_decoder"), upper, first=lower)
    return found


def network(m: str, text: str, ours: str, lower: int, upper: int, copies: int = 1) -> list[Key]:
    """Towers, fusion and projections; ``m`` is "_m" for the moving averages. ``copies`` as in ``fusion_layers``."""
    return [
        *vit_keys(f"visual_encoder{m}.", ours),
        *text_encoder(text.format(m), f"{ours}text_encoder.", lower),
        *fusion_layers(f"{text.format(m)}encoder.", f"{ours}fusion.", upper, first=lower, copies=copies),
        Key(f"vision_proj{m}.", f"{ours}image_projection."),
        Key(f"text_proj{m}.", f"{ours}text_projection."),
    ]


def shared_pairs(text: str, ours: str, lower: int, upper: int) -> list[Key]:
    """Fusion layers that share their keys and values two by two (NLVR2): the published ones have to be equal."""
    return [
        Key(
            f"{text}encoder.layer.{lower + number}.crossattention.self.{part}",
            f"{ours}fusion.layers.{number - 1}.cross_attention.{part}",
        )
        for number in range(1, upper, 2)
        for part in ("key.", "value.")
    ]


def heads(name: str, m: str, ours: str, model: str, decoder: int) -> list[Key]:
    """What the tasks have; ``ours`` is the place of a task's head, by its name."""
    if name == "pretrain":
        return lm_head(f"text_encoder{m}.cls.", ours.format("mlm"), f"{model}text_encoder.")
    if name in ("ve", "nlvr"):
        return [Key(f"cls_head{m}.", ours.format("entailment" if name == "ve" else "nlvr2"))]
    return answer_decoder(f"text_decoder{m}.", ours.format("vqa_decoder"), decoder) if name == "vqa" else []


def queue(side: str, name: str) -> list[Key]:
    """The features of past batches, with the numbers of their images where there are such (retrieval)."""
    ours = f"tasks.itc.{side}_queue."
    found = [
        Key(f"{side}_queue", f"{ours}feats", change=transposed),
        Key("queue_ptr", f"{ours}pointer", change=reshaped),
    ]
    return [*found, Key("idx_queue", f"{ours}keys", change=reshaped)] if name == "retrieval" else found


def added(name: str, has_contrast: bool = False, has_head: bool = True) -> dict[str, Callable[[torch.Size], Tensor]]:
    """What the published model does not have: image numbers in the queue of pre-training, elsewhere a contrastive space.

    The head of NLVR2 is new where its fine-tuning starts.
    """
    if name == "pretrain":
        return {f"tasks.itc.{side}_queue.keys": foreign_keys for side in ("image", "text")}
    found = {} if name == "retrieval" or has_contrast else runs.no_contrast("model", "teacher.model")
    for place in ("tasks.nlvr2.head.", "teacher.heads.nlvr2.") if not has_head else ():
        found |= {f"{place}{layer}.weight": runs.started for layer in (0, 2)}
        found |= {f"{place}{layer}.bias": torch.zeros for layer in (0, 2)}
    return found


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
    ours_alone = added(name)
    theirs = {part: tensor for part, tensor in state.items() if part not in ours_alone}
    published, foreign = invert(to_theirs(theirs, CLASSES), keys(name, lower, upper, decoder))
    if foreign:
        raise ConfigError(
            f"layout=albef: ALBEF has nothing like {', '.join(foreign[:3])}; only its own architecture fits it"
        )
    tables = {part: tensor for part, tensor in published.items() if part.endswith("position_embeddings.weight")}
    counters = {
        part.replace("position_embeddings.weight", "position_ids"): torch.arange(len(tensor))[None]
        for part, tensor in tables.items()
    }
    return published | counters
