"""UNITER (Chen et al. 2020): a detector's regions and the words of a pair in one BERT.

Checkpoints of github.com/ChenRocks/UNITER: pre-training, VQA, visual entailment, referring expressions, NLVR2 with a head over
the pair or with paired attention, and retrieval.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan
from fusionkit.checkpoints.families.bert import POSITION_IDS, lm_head, text_config
from fusionkit.checkpoints.runs import image_types
from fusionkit.checkpoints.source import Source
from fusionkit.errors import DataError
from fusionkit.fusion.bert import BERT_LAYER

TYPES = "uniter.embeddings.token_type_embeddings.weight"
NAMES: dict[str, str | tuple[str, ...]] = {  # theirs: ours
    "uniter.embeddings.": runs.EMBEDDINGS,
    "uniter.img_embeddings.img_linear.": "model.image_encoder.project.",
    "uniter.img_embeddings.img_layer_norm.": "model.image_encoder.norm_features.",
    "uniter.img_embeddings.pos_linear.": "model.image_encoder.place.",
    "uniter.img_embeddings.pos_layer_norm.": "model.image_encoder.norm_positions.",
    "uniter.img_embeddings.LayerNorm.": "model.fusion.entry.norm.",
    "uniter.pooler.dense.": "model.fusion.pool.dense.0.",
    "itm_output.": "tasks.itm.head.",
    "feat_regress.net.0.": "tasks.mrm.head.dense.",
    "feat_regress.net.2.": "tasks.mrm.head.norm.",
    "feat_regress.weight": "model.image_encoder.project.weight",
    "feat_regress.bias": "tasks.mrm.bias",
    "region_classifier.net.0.": "tasks.mrm.classify.0.dense.",
    "region_classifier.net.2.": "tasks.mrm.classify.0.norm.",
    "region_classifier.net.3.": "tasks.mrm.classify.1.",
    "re_output.": "tasks.grounding_regions.head.",
    "fc.0.": "tasks.nlvr2_paired.head.join.0.",
    "attn_pool.fc.0.": "tasks.nlvr2_paired.head.pool.score.",
    "nlvr2_output.": "tasks.nlvr2_paired.head.classify.",
}
LAYER = {f"{theirs}.": f"{ours}." for ours, theirs in BERT_LAYER.items()}
PAIRED: dict[str, str | tuple[str, ...]] = {  # torch's packed attention, by the side that looks
    "in_proj_weight": ("query.weight", "key.weight", "value.weight"),
    "in_proj_bias": ("query.bias", "key.bias", "value.bias"),
    "out_proj.": "output.",
}
HEADS = {
    "itm": "itm_output.",
    "mlm": "cls.",
    "mrm": "feat_regress.",
    "grounding_regions": "re_output.",
    "nlvr2_paired": "attn1.",
}
CLASSES = {  # data/itm.py, prepro.py; VE_ENT2IDX of utils/misc.py
    "itm": ("mismatch", "match"),
    "nlvr2": ("False", "True"),
    "nlvr2_paired": ("False", "True"),
    "entailment": ("contradiction", "entailment", "neutral"),
}
HIDING = {r"uniter\.img_embeddings\.mask_embedding\.weight": "what stands in for hidden regions, in pre-training alone"}


def plan(
    source: Source,
    bert: Mapping[str, Any],
    img_dim: int,
    ids: Mapping[str, int],
    itm_ot_lambda: float,
    answers: str | None = None,
    start: str | None = None,
) -> Plan:
    """What a checkpoint of UNITER is, by its heads; ``bert`` its own config, ``img_dim`` the width of the detector's features.

    ``start`` nlvr2: with a second type of image, as its fine-tuning begins.
    """
    tasks = {task: task_config(task, source, bert, itm_ot_lambda) for task in runs.heads_of(source, HEADS)}
    keys = [
        *runs.renamed(NAMES),
        runs.RANKING,
        *network_keys(bert),
        *lm_head("cls.", "tasks.mlm.head.", "model.text_encoder."),
    ]
    if source.has("vqa_output."):
        outputs = runs.rows(source, "vqa_output.3.weight")
        task = "entailment" if outputs == len(CLASSES["entailment"]) and answers is None else "vqa"
        tasks[task] = runs.classifier("gelu_norm", source, "vqa_output.", eps=bert["layer_norm_eps"])
        keys += [Key("vqa_output.", f"tasks.{task}.head.")]
    if source.has("nlvr2_output.") and "nlvr2_paired" not in tasks:
        require_pair(source, bert["hidden_size"])
        tasks["nlvr2"] = {"head": {"_target_": "torch.nn.Linear", "_partial_": True}}
        keys += [Key("nlvr2_output.", "tasks.nlvr2.head.")]
    is_bare = not tasks
    tasks = tasks or {"itm": {}}
    if "mrm" in tasks:
        keys += [Key("uniter.img_embeddings.mask_embedding.weight", "tasks.mrm.filling", change=last_row)]
    return Plan(
        family="uniter",
        release="github.com/ChenRocks/UNITER",
        groups=runs.groups_of(list(tasks)),
        config=runs.run_of(list(tasks), bert["max_position_embeddings"], is_of_regions=True)
        | {
            "name": "uniter",
            "image_encoder": {
                "_target_": "fusionkit.encoders.regions.RegionEncoder",
                "feature_size": img_dim,
                "hidden_size": bert["hidden_size"],
                "dropout": 0.0,  # the fusion's entry has it, behind the last norm
                "eps": bert["layer_norm_eps"],
                "is_finished": False,
            },
            "text_encoder": text_config({**bert, "type_vocab_size": 2}, num_layers=0),
            "fusion": single_stream(bert, image_types=image_types(source, TYPES, start)),
            "task": tasks,
        },
        keys=keys,
        left_out=POSITION_IDS | runs.before_ranking(source, r"itm_output\.") | ({} if "mrm" in tasks else HIDING),
        added=runs.NO_HEAD if is_bare else runs.NO_CONTRAST,
        classes=CLASSES,
        ids=ids,
        answers=runs.answers_of(source, answers, runs.rows(source, "vqa_output.3.weight") if "vqa" in tasks else 0),
        tokenizer="bert-base-cased",
    )


def require_pair(source: Source, hidden_size: int) -> None:
    """Raise DataError where the head of NLVR2 reads one vector, of both images in one stream."""
    if source.has("nlvr2_output.weight") and source.state["nlvr2_output.weight"].shape[1] != 2 * hidden_size:
        raise DataError(
            f"{source.path} is UNITER's triplet model for NLVR2, with both images in one stream; no task here is so, but the "
            "paired ones can be imported"
        )


def network_keys(bert: Mapping[str, Any]) -> list[Key]:
    """Types, of which the first is the words', layers, and the paired attention."""
    sides = {"attn1.": "tasks.nlvr2_paired.head.left.", "attn2.": "tasks.nlvr2_paired.head.right."}
    return [
        Key(TYPES, f"{runs.EMBEDDINGS}token_type_embeddings.weight", change=first_rows),
        Key(TYPES, "model.fusion.entry.types", change=other_rows),
        *runs.layers(LAYER, bert["num_hidden_layers"], "uniter.encoder.layer.{}.", "model.fusion.blocks.{}."),
        *(key for theirs, ours in sides.items() for key in runs.renamed(PAIRED, theirs, ours)),
    ]


def first_rows(table: Tensor, shape: torch.Size) -> Tensor:
    """(2, D), as many as BERT has: the text's type, and one that no text is given."""
    return table[:2]


def other_rows(table: Tensor, shape: torch.Size) -> Tensor:
    """(T - 1, D): the types of images."""
    return runs.repeated(table[1:], shape)


def last_row(table: Tensor, shape: torch.Size) -> Tensor:
    """(D,): what is added to hidden features, which are zeros; row 0, of those in sight, is always zero."""
    return table[-1]


def single_stream(bert: Mapping[str, Any], image_types: int) -> dict[str, Any]:
    """BERT's layers and pooler over words as they come, and image tokens with their type, normalised."""
    return {
        "_target_": "fusionkit.fusion.merged_attention.MergedAttention",
        "_partial_": True,
        "num_layers": bert["num_hidden_layers"],
        "num_heads": bert["num_attention_heads"],
        "dropout": bert["hidden_dropout_prob"],
        "block": {
            "_target_": "fusionkit.fusion.bert.PostNormBlock",
            "_partial_": True,
            "eps": bert["layer_norm_eps"],
            "intermediate_size": bert["intermediate_size"],
            **runs.activation(bert["hidden_act"]),
        },
        "norm_eps": None,
        "entry": {
            "_target_": "fusionkit.fusion.input_projection.TypedImage",
            "_partial_": True,
            "image_types": image_types,
            "eps": bert["layer_norm_eps"],
            "dropout": bert["hidden_dropout_prob"],
        },
        "pool": {"_target_": "fusionkit.fusion.pooling.DenseText", "_partial_": True},
    }


def task_config(task: str, source: Source, bert: Mapping[str, Any], itm_ot_lambda: float) -> dict[str, Any]:
    """What lies over the configuration of a task."""
    alignment = {"_target_": "fusionkit.tasks.alignment.Alignment", "weight": itm_ot_lambda}
    if task == "itm":
        return {"alignment": alignment if source.has("feat_regress.") else None}
    if task == "mrm":
        return {"num_classes": runs.rows(source, "region_classifier.net.3.weight"), "eps": bert["layer_norm_eps"]}
    if task == "mlm":
        return {"eps": bert["layer_norm_eps"], **runs.activation(bert["hidden_act"])}
    if task == "nlvr2_paired":
        return {"num_heads": bert["num_attention_heads"]}
    if task == "grounding_regions" and source.has("re_output.0."):
        return runs.classifier("gelu_norm", source, "re_output.", eps=bert["layer_norm_eps"])
    return {}
