"""BLIP (Li et al. 2022): ViT, and BERT layers with cross-attention that read texts alone, with an image, and as a decoder.

Checkpoints of github.com/salesforce/BLIP (pretrain, retrieval, vqa, caption), and folders that transformers' BLIP models for
retrieval, question answering, captioning and contrast (``blip_contrast.py``) saved; which one it is shows in its parts. Its model
for NLVR2 is not imported.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan, constant, reshaped
from fusionkit.checkpoints.families import blip_contrast
from fusionkit.checkpoints.families.albef import TEACHER, foreign_keys, queue
from fusionkit.checkpoints.families.bert import (
    LAYER,
    POSITION_IDS,
    answer_decoder,
    cross_attention_config,
    decoder_config,
    fusion_layers,
    lm_head,
    text_config,
    text_encoder,
)
from fusionkit.checkpoints.families.blip_contrast import VISION
from fusionkit.checkpoints.families.vit import timm_vit, transformers_vit_keys, vit_keys
from fusionkit.checkpoints.source import Source
from fusionkit.errors import ConfigError, DataError

Sizes = Mapping[str, Any]
MIXED = "fusionkit.fusion.mixed_cross_attention"
TASKS = {  # by kind
    "pretrain": ("itc", "itm", "captioning"),
    "retrieval": ("itc", "itm"),
    "vqa": ("vqa_decoder",),
    "caption": ("captioning",),
}
CLASSES = {"itm": ("mismatch", "match")}  # models/blip_pretrain.py gives 1 to a true pair
STARTS = ("vqa", "caption")  # whose fine-tuning begins with the decoder of pre-training
MOMENTUM = r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\..*|(image|text)_queue|queue_ptr|itm_head\..*"
NOT_STARTED = {  # by kind
    "vqa": {MOMENTUM: "of the tasks of pre-training"},
    "caption": {
        rf"{MOMENTUM}|text_encoder\..*": "of the tasks of pre-training; captions are told by the decoder alone"
    },
}
MARKS = '.!"()*#:;~'
CLEAN = {"_target_": "fusionkit.data.cleaning.Clean", "words": 30, "removed": "", "spaced": MARKS}
CLEAN_QUESTIONS = CLEAN | {"words": 50, "removed": MARKS, "spaced": ""}
SAVED = {  # by class of transformers
    "BlipForImageTextRetrieval": "retrieval",
    "BlipForQuestionAnswering": "vqa",
    "BlipForConditionalGeneration": "caption",
}
SHARED = {
    ours: theirs for ours, theirs in LAYER.items() if ours.startswith(("cross", "norm_cross", "feed", "norm_feed"))
}


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
    ids: Mapping[str, Any],
    prompt: str,
    start: str | None = None,
    answers: str | None = None,
) -> Plan:
    """What a checkpoint is, with sizes as in its own configs; ``embed_dim`` is the contrastive width.

    ``start`` makes of one of pre-training what its fine-tuning begins with: for captions the decoder alone, for VQA both.
    ``answers`` is a file of those that VQA ranks.
    """
    if ((source.config or {}).get("architectures") or [None])[0] == "BlipModel":
        return blip_contrast.plan(source, bert, ids)
    appended = {"bos_DEC": bert["vocab_size"], "ENC": bert["vocab_size"] + 1}
    ids = appended | {token: number for token, number in ids.items() if number is not None}
    bert = dict(bert) | {"vocab_size": bert["vocab_size"] + len(appended), "type_vocab_size": 0}
    tower: dict[str, str] = {}
    if source.config is not None:
        runs.of_class(source, {**SAVED, "BlipModel": None})
        sizes = saved_sizes(source, bert, embed_dim)
        tower = runs.tower_activation(sizes["hidden_act"])
        image_size, patch_size, embed_dim = sizes["image_size"], sizes["patch_size"], sizes["embed_dim"]
        vit, bert, ids = sizes["vit"], bert | sizes["bert"], ids | sizes["ids"]
    if foreign := [token for token in appended if (ids[token] or 0) >= bert["vocab_size"]]:
        raise ConfigError(
            f"ids.{foreign[0]} is {ids[foreign[0]]}, but the text encoder embeds {bert['vocab_size']} tokens"
        )
    shown = kind_of(source)
    name = shown if start is None else runs.require_start(source, start, shown, STARTS)
    is_taught = source.has("visual_encoder_m.") and start is None
    clean = CLEAN_QUESTIONS if name == "vqa" else CLEAN
    fusion = cross_attention_config(bert, bert["num_hidden_layers"])
    if name in ("pretrain", "retrieval"):
        fusion["_target_"] = f"{MIXED}.MixedCrossAttention"
    first_token_id = ids["bos_DEC" if name == "caption" else "ENC"]
    config = runs.run_of(TASKS[name], bert["max_position_embeddings"], clean=clean, image_size=image_size) | {
        "name": f"blip_{name}",
        "image_encoder": {**timm_vit(vit, image_size, patch_size), **tower},
        "text_encoder": text_config(bert, 0, ids["pad"])
        | {
            "_target_": "fusionkit.encoders.blip.BLIPTextEncoder",
            "token_types": False,
            "first_token_id": first_token_id,
        },
        "fusion": fusion,
        "model": {"embed_size": embed_dim},
        "evaluation": {"options": {"reranking": {"k": 256, "rule": "itm+cosine"}}},
        "task": tasks(name, bert, ids, queue_size if is_taught else 0, prompt),
    }
    if is_taught:
        config["teacher"] = TEACHER | {"momentum": momentum, "alpha": alpha}
        config["negatives"] = {"by_teacher": name == "pretrain"}
    return Plan(
        family="blip",
        release="transformers' BLIP" if source.config is not None else "github.com/salesforce/BLIP",
        groups=runs.groups_of(TASKS[name]),
        config=config,
        keys=keys(name, bert["num_hidden_layers"]) + transformers_vit_keys("vision_model.", "model.", vit["depth"]),
        left_out=POSITION_IDS | (NOT_STARTED[name] if start else {}),
        added={} if start else added(name, is_taught),
        classes=CLASSES,
        ids={token: number for token, number in ids.items() if number is not None},
        answers=runs.listed_answers(source, answers, can_say=name == "vqa"),
    )


def kind_of(source: Source) -> str:
    """Which of the published models it is; raises DataError for the one that is not imported."""
    if source.has("text_encoder.encoder.layer.0.crossattention.self0."):
        raise DataError(
            f"{source.path} is BLIP's model for NLVR2, with two cross-attentions a layer, one an image; no fusion here is so"
        )
    if not source.has("text_encoder."):
        return "caption"
    if not source.has("text_decoder."):
        return "retrieval"
    return "pretrain" if source.has("itm_head.") else "vqa"


def saved_sizes(source: Source, bert: Sizes, embed_dim: int) -> dict[str, Any]:
    """The sizes in a configuration of transformers; its models give [ENC] no place: a text begins as it is written."""
    vision = runs.sizes_of(VISION, source, "vision_config")
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    more = ("max_position_embeddings", "layer_norm_eps", "hidden_act")
    text = runs.sizes_of(
        {name: bert[name] for name in (*names, *more)} | {"bos_token_id": 30522}, source, "text_config"
    )
    return {
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "hidden_act": vision["hidden_act"],
        "embed_dim": runs.sizes_of({"image_text_hidden_size": embed_dim}, source)["image_text_hidden_size"],
        "vit": {
            "embed_dim": vision["hidden_size"],
            "depth": vision["num_hidden_layers"],
            "num_heads": vision["num_attention_heads"],
            "intermediate_size": vision["intermediate_size"],
            "qkv_bias": True,
            "layer_norm_eps": vision["layer_norm_eps"],
        },
        "bert": {name: text[name] for name in (*names, *more)},
        "ids": {"bos_DEC": text["bos_token_id"], "ENC": None},
    }


def tasks(name: str, bert: Sizes, ids: Mapping[str, Any], queue_size: int, prompt: str) -> dict[str, Any]:
    """Settings of the tasks, over those of conf/task; ``prompt`` begins each caption."""
    begin, eps = ids["bos_DEC"], bert["layer_norm_eps"]
    if name == "vqa":
        decoder = decoder_config(bert, bert["num_hidden_layers"], ids["pad"]) | {"first_token_id": begin}
        answering = {"_target_": "fusionkit.tasks.answering.RankAnswers", "score": "blip", "label_smoothing": 0.1}
        return {"vqa_decoder": {"decoder": decoder, "label_smoothing": 0.1, "answering": answering, "eps": eps}}
    if name == "caption":
        return {"captioning": {"prompt": prompt, "eps": eps}}
    settings: dict[str, Any] = {"itc": {"queue_size": queue_size}}
    if name == "pretrain":
        settings["captioning"] = {
            "_target_": "fusionkit.tasks.captioning_shared.SharedCaptioning",
            "_partial_": True,
            "first_token_id": begin,
            "eps": eps,
            "decoder": {
                "_target_": f"{MIXED}.SelfAttentionLayers",
                "_partial_": True,
                "num_layers": bert["num_hidden_layers"],
                "num_heads": bert["num_attention_heads"],
                "dropout": bert["hidden_dropout_prob"],
                "eps": eps,
            },
        }
    return settings


def keys(name: str, layers: int) -> list[Key]:
    """All names of a kind."""
    return [
        *network("", "model.", layers),
        *network("_m", "teacher.model.", layers),
        *DECODERS[name](layers),
        Key("itm_head.", "tasks.itm.head."),
        Key("itm_head.", "teacher.heads.itm."),  # neither matching nor captioning listens to the teacher
        Key("temp", "model.temperature"),
        Key("temp", "teacher.model.temperature"),
        *queue("image", name),
        *queue("text", name),
        *(Key("ptr_queue", f"tasks.itc.{side}_queue.pointer", change=reshaped) for side in ("image", "text")),
    ]


def network(m: str, ours: str, layers: int) -> list[Key]:
    """Towers and projections; ``m`` is "_m" for the moving averages."""
    return [
        *vit_keys(f"visual_encoder{m}.", ours),
        *text_layers(f"text_encoder{m}.", ours, layers),
        Key(f"vision_proj{m}.", f"{ours}image_projection."),
        Key(f"text_proj{m}.", f"{ours}text_projection."),
    ]


def text_layers(theirs: str, ours: str, layers: int, names: Mapping[str, str] = LAYER) -> list[Key]:
    """Embeddings and all layers, which are the fusion's."""
    return [
        *text_encoder(theirs, f"{ours}text_encoder.", 0),
        *fusion_layers(f"{theirs}encoder.", f"{ours}fusion.", layers, names=names),
    ]


def caption_decoder(layers: int) -> list[Key]:
    """The decoder is the model's own fusion."""
    return [
        *text_layers("text_decoder.bert.", "model.", layers),
        *lm_head("text_decoder.cls.", "tasks.captioning.head.", "model.text_encoder."),
    ]


def shared_decoder(layers: int) -> list[Key]:
    """The decoder shares all but self-attention and prediction with the fusion; the teacher's copy of it is not published."""
    found = text_layers("text_decoder.bert.", "model.", layers, SHARED)
    for ours in ("tasks.captioning.head.", "teacher.heads.captioning."):
        for number in range(layers):
            theirs = f"text_decoder.bert.encoder.layer.{number}.attention."
            place = f"{ours}layers.attentions.{number}."
            found += [Key(f"{theirs}self.{part}.", f"{place}{part}.") for part in ("query", "key", "value")]
            found += [Key(f"{theirs}output.dense.", f"{place}output.")]
            found += [Key(f"{theirs}output.LayerNorm.", f"{ours}layers.norms.{number}.")]
        found += lm_head("text_decoder.cls.", f"{ours}words.", "model.text_encoder.")
    return found


DECODERS: dict[str, Callable[[int], list[Key]]] = {
    "pretrain": shared_decoder,
    "retrieval": lambda layers: [],
    "vqa": lambda layers: answer_decoder("text_decoder.", "tasks.vqa_decoder.head.", layers),
    "caption": caption_decoder,
}


def added(name: str, is_taught: bool) -> dict[str, Callable[[torch.Size], Tensor]]:
    """What the published model does not have: image numbers in the queue of pre-training, a contrastive space, a temperature."""
    if name == "pretrain":
        return {f"tasks.itc.{side}_queue.keys": foreign_keys for side in ("image", "text")}
    if name == "retrieval":
        return {} if is_taught else {"model.temperature": constant(0.07)}
    return runs.no_contrast("model")
