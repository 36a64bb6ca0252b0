"""METER (Dou et al. 2022): CLIP's vision tower or Swin, RoBERTa or BERT, and two streams that attend to each other.

Checkpoints of github.com/zdou0830/METER; which tower and which heads they have shows in their parts.
"""

from collections.abc import Mapping
from typing import Any

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan, reshaped
from fusionkit.checkpoints.families.bert import CROSS_ATTENTION, POSITION_IDS, text_config, text_encoder
from fusionkit.checkpoints.families.clip import image_tower, resize_table
from fusionkit.checkpoints.families.swin import swin_buffers, swin_keys, swin_sizes
from fusionkit.checkpoints.runs import image_types
from fusionkit.checkpoints.source import Source
from fusionkit.fusion.bert import BERT_LAYER

NAMES = {  # theirs: ours
    "cross_modal_text_transform.": "model.fusion.entry.project_text.",
    "cross_modal_image_transform.": "model.fusion.entry.project_image.",
    "cross_modal_text_pooler.dense.": "model.fusion.pool.dense_text.0.",
    "cross_modal_image_pooler.dense.": "model.fusion.pool.dense_image.0.",
    "itm_score.fc.": "tasks.itm.head.",
    "vqa_classifier.": "tasks.vqa.head.",
    "nlvr2_classifier.": "tasks.nlvr2.head.",
    "snli_classifier.": "tasks.entailment.head.",
}
TYPES = "token_type_embeddings.weight"
HEADS = {
    "itm": "itm_score.",
    "mlm": "mlm_score.",
    "vqa": "vqa_classifier.",
    "nlvr2": "nlvr2_classifier.",
    "entailment": "snli_classifier.",
}
CLASSES = {  # meter/modules/objectives.py, meter/utils/write_snli.py, write_nlvr2.py
    "itm": ("mismatch", "match"),
    "nlvr2": ("False", "True"),
    "entailment": ("contradiction", "neutral", "entailment"),
}
CLIP_TOWER = {  # OpenAI's names: timm's
    "conv1.": "patch_embed.proj.",
    "ln_pre.": "norm_pre.",
    "ln_post.": "norm.",
}
CLIP_BLOCK = {
    "ln_1.": "norm1.",
    "attn.in_proj_weight": "attn.qkv.weight",
    "attn.in_proj_bias": "attn.qkv.bias",
    "attn.out_proj.": "attn.proj.",
    "ln_2.": "norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
CROSS_LAYER = {f"{theirs}.": f"{ours}." for ours, theirs in (BERT_LAYER | CROSS_ATTENTION).items()}
IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # that Swin reads images by
LEFT_OUT = POSITION_IDS | {
    r"vit_model\.(positional_embedding|ln_final\..*)": "of CLIP's text tower, which METER does not have",
    r"text_transformer\.pooler\..*": "the text's own pooler, which METER does not read",
}


def plan(
    source: Source,
    image_size: int,
    image: Mapping[str, Any],
    swin: Mapping[str, Any],
    text: Mapping[str, Any],
    fusion: Mapping[str, Any],
    ids: Mapping[str, int],
    answers: str | None = None,
    start: str | None = None,
) -> Plan:
    """What a checkpoint of METER is, by the heads it has; sizes of its parts by transformers' names, of Swin by timm's.

    ``start`` nlvr2: with a second type of image, as its fine-tuning begins.
    """
    is_swin = source.has("vit_model.patch_embed.")
    data = IMAGENET if is_swin else {}
    found = runs.heads_of(source, HEADS)
    heads = found or {"itm": ""}
    tasks = {task: task_config(task, source, name) for task, name in heads.items()}
    words = text_config(text, text["num_hidden_layers"])
    words["config"] |= {"model_type": text["model_type"], "pad_token_id": ids["pad"]}
    first = ids["pad"] + 1 if text["model_type"] == "roberta" else 0  # RoBERTa's positions begin behind its padding
    return Plan(
        family="meter",
        release="github.com/zdou0830/METER",
        groups=runs.groups_of(list(heads)),
        config=runs.run_of(
            list(heads), text["max_position_embeddings"] - first, image_size=image_size, fit="crop", **data
        )
        | {
            "name": "meter",
            "image_encoder": swin_tower(swin, image_size)
            if is_swin
            else image_tower({**image, "image_size": image_size}),
            "text_encoder": words,
            "fusion": fusion_config(fusion, image_types(source, TYPES, start), pooled="mean" if is_swin else "first"),
            "task": tasks,
        },
        keys=[
            *(swin_keys(swin["depths"], "vit_model.") if is_swin else clip_keys(image)),
            *keys_of(text, fusion),
        ],
        left_out=LEFT_OUT | swin_buffers("vit_model.") | runs.before_ranking(source, r"itm_score\."),
        added=runs.NO_CONTRAST if found else runs.NO_HEAD,
        classes=CLASSES,
        ids=ids,
        answers=runs.answers_of(source, answers, runs.rows(source, "vqa_classifier.3.weight") if "vqa" in heads else 0),
        tokenizer="roberta-base" if text["model_type"] == "roberta" else "bert-base-uncased",
    )


def keys_of(text: Mapping[str, Any], fusion: Mapping[str, Any]) -> list[Key]:
    """The names of all but the vision tower."""
    streams = [
        key
        for stream in ("text", "image")
        for key in runs.layers(
            CROSS_LAYER,
            fusion["num_hidden_layers"],
            f"cross_modal_{stream}_layers.{{}}.",
            f"model.fusion.layers.{{}}.{stream}.",
        )
    ]
    return [
        *runs.renamed(NAMES),
        *runs.OWN_WORD_HEAD,
        runs.RANKING,
        Key(TYPES, "model.fusion.entry.types", change=runs.repeated),
        *text_encoder("text_transformer.", "model.text_encoder.", text["num_hidden_layers"]),
        *streams,
    ]


def swin_tower(swin: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """A Swin that gives its feature map as it is."""
    return {"_target_": "fusionkit.encoders.image.TimmEncoder", "pool": "mean"} | swin_sizes(swin, image_size)


def clip_keys(image: Mapping[str, Any]) -> list[Key]:
    """OpenAI's names of a CLIP vision tower; its positions are resized to our image size."""
    theirs, ours = "vit_model.visual.", "model.image_encoder.backbone."
    return [
        Key(f"{theirs}class_embedding", f"{ours}cls_token", change=reshaped),
        Key(f"{theirs}positional_embedding", f"{ours}pos_embed", change=resize_table),
        *runs.renamed(CLIP_TOWER, theirs, ours),
        *runs.layers(
            CLIP_BLOCK, image["num_hidden_layers"], f"{theirs}transformer.resblocks.{{}}.", f"{ours}blocks.{{}}."
        ),
    ]


def fusion_config(fusion: Mapping[str, Any], image_types: int, pooled: str) -> dict[str, Any]:
    """Linear maps and types, METER's layers, and a pooler for the first state of the text and the ``pooled`` one of the image."""
    return {
        "_target_": "fusionkit.fusion.co_attention.CoAttention",
        "_partial_": True,
        "num_layers": fusion["num_hidden_layers"],
        "num_heads": fusion["num_attention_heads"],
        "hidden_size": fusion["hidden_size"],
        "intermediate_size": fusion["intermediate_size"],
        "dropout": fusion["hidden_dropout_prob"],
        "eps": fusion["layer_norm_eps"],
        "entry": {
            "_target_": "fusionkit.fusion.input_projection.TypedProjection",
            "_partial_": True,
            "image_types": image_types,
        },
        "pool": {"_target_": "fusionkit.fusion.pooling.DenseBoth", "_partial_": True, "image": pooled},
    }


def task_config(task: str, source: Source, beginning: str) -> dict[str, Any]:
    """What lies over the configuration of a task."""
    if task in ("itm", "mlm"):
        return {"tied": False} if task == "mlm" else {}
    return runs.classifier("norm_gelu", source, beginning)
