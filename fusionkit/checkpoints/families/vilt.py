"""ViLT (Kim et al. 2021): the words and the patches of a pair in one pre-norm transformer.

Checkpoints of github.com/dandelin/ViLT, and the folders that transformers' Vilt classes save.
"""

from collections.abc import Mapping
from typing import Any

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan
from fusionkit.checkpoints.classes import named_classes, saved_labels
from fusionkit.checkpoints.families.bert import POSITION_IDS, text_config, word_head
from fusionkit.checkpoints.runs import image_types
from fusionkit.checkpoints.source import Source

TYPES = (  # of the modalities: where they stand, in the release, in a saved bare model, and in one with a head
    "token_type_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
    "vilt.embeddings.token_type_embeddings.weight",
)
NAMES = {  # theirs: ours
    "text_embeddings.": runs.EMBEDDINGS,
    "transformer.cls_token": "model.image_encoder.class_token",
    "transformer.pos_embed": "model.image_encoder.positions",
    "transformer.patch_embed.proj.": "model.image_encoder.patches.",
    "transformer.norm.": "model.fusion.norm.",
    "pooler.dense.": "model.fusion.pool.dense.0.",
    "itm_score.fc.": "tasks.itm.head.",
    "vqa_classifier.": "tasks.vqa.head.",
    "nlvr2_classifier.": "tasks.nlvr2.head.",
}
BLOCK: dict[str, str | tuple[str, ...]] = {
    "norm1.": "norm_attention.",
    "attn.qkv.": ("attention.query.", "attention.key.", "attention.value."),
    "attn.proj.": "attention.output.",
    "norm2.": "norm_feed_forward.",
    "mlp.fc1.": "feed_forward.0.",
    "mlp.fc2.": "feed_forward.2.",
}
HEADS = {"itm": "itm_score.", "mlm": "mlm_score.", "vqa": "vqa_classifier.", "nlvr2": "nlvr2_classifier."}
CLASSES = {"itm": ("mismatch", "match"), "nlvr2": ("False", "True")}  # vilt/modules/objectives.py, write_nlvr2.py

TRANSFORMERS_NAMES = {
    "embeddings.text_embeddings.": runs.EMBEDDINGS,
    "embeddings.cls_token": "model.image_encoder.class_token",
    "embeddings.position_embeddings": "model.image_encoder.positions",
    "embeddings.patch_embeddings.projection.": "model.image_encoder.patches.",
    "layernorm.": "model.fusion.norm.",
    "pooler.dense.": "model.fusion.pool.dense.0.",
}
TRANSFORMERS_BLOCK = {
    "layernorm_before.": "norm_attention.",
    "attention.attention.": "attention.",
    "attention.output.dense.": "attention.output.",
    "layernorm_after.": "norm_feed_forward.",
    "intermediate.dense.": "feed_forward.0.",
    "output.dense.": "feed_forward.2.",
}
TRANSFORMERS_HEADS = {  # by class: the task, and the beginning of the names of its head
    "ViltForMaskedLM": ("mlm", "mlm_score."),
    "ViltForQuestionAnswering": ("vqa", "classifier."),
    "ViltForImagesAndTextClassification": ("nlvr2", "classifier."),
    "ViltForImageAndTextRetrieval": ("itm", ""),
    "ViltForTokenClassification": ("token_classification", "classifier."),
    "ViltModel": ("itm", ""),
}
LEFT_OUT = POSITION_IDS | {r"mpp_score\..*": "masked patch prediction, which no published recipe uses"}


def plan(
    source: Source,
    sizes: Mapping[str, Any],
    ids: Mapping[str, int],
    answers: str | None = None,
    start: str | None = None,
) -> Plan:
    """What a checkpoint of ViLT is; ``sizes`` by transformers' names, ``answers`` a json file with its answer list.

    ``start`` nlvr2: with a second type of image, as its fine-tuning begins.
    """
    types = next(filter(source.state.__contains__, TYPES), TYPES[0])
    is_saved = source.config is not None  # by transformers: one epsilon for all norms, and a tied MLM decoder
    sizes = runs.sizes_of(sizes, source)
    text_eps = sizes["layer_norm_eps"] if is_saved else sizes["text_layer_norm_eps"]
    keys, heads = saved_keys(source, sizes) if is_saved else keys_of(source, sizes)
    words = {"tied": is_saved, "eps": text_eps, **runs.activation(sizes["hidden_act"])}
    tasks = {name: task_config(name, source, beginning, words) for name, beginning in heads.items()}
    return Plan(
        family="vilt",
        release="transformers' ViLT" if is_saved else "github.com/dandelin/ViLT",
        groups=runs.groups_of(list(tasks)),
        config=runs.run_of(list(tasks), sizes["max_position_embeddings"], **reading(sizes))
        | {
            "name": "vilt",
            "image_encoder": {"_target_": "fusionkit.encoders.patches.PatchEncoder"}
            | {name: sizes[name] for name in ("hidden_size", "patch_size", "image_size")}
            | {"max_patches": sizes["max_image_length"] if sizes["max_image_length"] > 0 else None},
            "text_encoder": text_config(sizes | {"layer_norm_eps": text_eps}, num_layers=0),
            "fusion": fusion_config(sizes, image_types(source, types, start), "token_classification" not in heads),
            "task": tasks,
        },
        keys=[Key(types, "model.fusion.entry.types", change=runs.repeated), *keys],
        left_out=LEFT_OUT | runs.before_ranking(source, r"itm_score\."),
        added=runs.NO_CONTRAST if any(heads.values()) or source.has(runs.RANKING.theirs) else runs.NO_HEAD,
        classes=CLASSES | ({"nlvr2": named_classes(source, "nlvr2", CLASSES["nlvr2"])} if "nlvr2" in heads else {}),
        ids=ids,
        answers=runs.answers_of(source, answers, runs.rows(source, f"{heads['vqa']}3.weight") if "vqa" in heads else 0),
    )


def reading(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """How images are read: in their proportions, with sides of whole patches."""
    size, multiple = sizes["image_size"], sizes["patch_size"]
    return {"image_size": size, "fit": "keep", "multiple": multiple, "mean": [0.5] * 3, "std": [0.5] * 3}


def keys_of(source: Source, sizes: Mapping[str, Any]) -> tuple[list[Key], dict[str, str]]:
    """The names of the original release, and the heads that are there: task and beginning of its names."""
    blocks = runs.layers(BLOCK, sizes["num_hidden_layers"], "transformer.blocks.{}.", "model.fusion.blocks.{}.")
    heads = runs.heads_of(source, HEADS)
    return [*runs.renamed(NAMES), *runs.OWN_WORD_HEAD, runs.RANKING, *blocks], heads or {"itm": ""}


def saved_keys(source: Source, sizes: Mapping[str, Any]) -> tuple[list[Key], dict[str, str]]:
    """The same for a folder that transformers saved."""
    task, head = runs.of_class(source, TRANSFORMERS_HEADS)
    prefix = "vilt." if source.has("vilt.") else ""
    places = f"{prefix}encoder.layer.{{}}.", "model.fusion.blocks.{}."
    blocks = runs.layers(TRANSFORMERS_BLOCK, sizes["num_hidden_layers"], *places)
    heads = [
        Key("classifier.", f"tasks.{task}.head."),
        runs.RANKING,
        *word_head("mlm_score.", "tasks.mlm.head.", runs.WORDS),
    ]
    return runs.renamed(TRANSFORMERS_NAMES, prefix) + blocks + heads, {task: head}


def fusion_config(sizes: Mapping[str, Any], image_types: int, has_pooler: bool) -> dict[str, Any]:
    """Tokens as they come, with the type of their modality; blocks, a norm, and on the first text state BERT's pooler, if any."""
    unchanged = {"_target_": "hydra.utils.get_object", "path": "fusionkit.fusion.input_projection.unchanged"}
    return {
        "_target_": "fusionkit.fusion.merged_attention.MergedAttention",
        "_partial_": True,
        "num_layers": sizes["num_hidden_layers"],
        "num_heads": sizes["num_attention_heads"],
        "dropout": sizes["hidden_dropout_prob"],
        "block": {
            "_target_": "fusionkit.fusion.layers.PreNormBlock",
            "_partial_": True,
            "eps": sizes["layer_norm_eps"],
            "intermediate_size": sizes["intermediate_size"],
            **runs.activation(sizes["hidden_act"]),
        },
        "norm_eps": sizes["layer_norm_eps"],
        "entry": {
            "_target_": "fusionkit.fusion.input_projection.TypedProjection",
            "_partial_": True,
            "image_types": image_types,
            "project": unchanged,
        },
        "pool": {"_target_": f"fusionkit.fusion.pooling.{'Dense' if has_pooler else 'First'}Text", "_partial_": True},
    }


def task_config(task: str, source: Source, beginning: str, words: Mapping[str, Any]) -> dict[str, Any]:
    """What lies over the configuration of a task; ``words`` over that of masked language modelling."""
    if task in ("vqa", "nlvr2"):
        return runs.classifier("norm_gelu", source, beginning)
    if task == "itm" and source.config is None:  # word-patch alignment, of the original release's pre-training
        return {"alignment": {"_target_": "fusionkit.tasks.alignment.Alignment", "weight": 0.1, "image_prefix": 1}}
    if task == "token_classification":
        count, labels = runs.rows(source, f"{beginning}weight"), saved_labels(source)
        return {"labels": [labels.get(str(number), f"LABEL_{number}") for number in range(count)]}
    return dict(words) if task == "mlm" else {}
