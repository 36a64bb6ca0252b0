"""VisualBERT (Li et al. 2019): projected regions and the words of a pair in one BERT.

The folders that transformers' VisualBert classes save, but for those of two images in one stream
(VisualBertForVisualReasoning), of multiple choice and of phrases.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan
from fusionkit.checkpoints.families.bert import POSITION_IDS, lm_head, text_config
from fusionkit.checkpoints.families.uniter import LAYER, single_stream
from fusionkit.checkpoints.source import Source

TASKS = {  # by class
    "VisualBertForPreTraining": ("itm", "mlm"),
    "VisualBertForQuestionAnswering": ("vqa",),
    "VisualBertModel": ("itm",),
}
CLASSES = {"itm": ("match", "mismatch")}  # sentence_image_labels: 0 is a sentence of the image, as in BERT
QUESTIONS = {"_target_": "fusionkit.data.cleaning.Ending"}
POOLER = {r"visual_bert\.pooler\..*": "question answering reads the state before [SEP], not the pooled one"}


def plan(source: Source, sizes: Mapping[str, Any], ids: Mapping[str, int], answers: str | None = None) -> Plan:
    """What a folder of VisualBERT is, by the class that it names; ``sizes`` by transformers' names."""
    sizes = runs.sizes_of(sizes, source)
    tasks = runs.of_class(source, TASKS)
    is_vqa, is_bare = "vqa" in tasks, not source.has("visual_bert.")
    fusion = single_stream(sizes, image_types=1)
    if is_vqa:
        fusion["pool"]["_target_"] = "fusionkit.fusion.pooling.LastWord"
    mlm = runs.activation(sizes["hidden_act"]) | {"eps": sizes["layer_norm_eps"]}
    head = {"_target_": "torch.nn.Linear", "_partial_": True}
    return Plan(
        family="visualbert",
        release="transformers' VisualBERT",
        groups=runs.groups_of(tasks),
        config=runs.run_of(
            tasks, sizes["max_position_embeddings"], is_of_regions=True, clean=QUESTIONS if is_vqa else None
        )
        | {
            "name": "visualbert",
            "image_encoder": {
                "_target_": "fusionkit.encoders.regions.RegionEncoder",
                "feature_size": sizes["visual_embedding_dim"],
                "position_size": 0,
                "hidden_size": sizes["hidden_size"],
                "dropout": 0.0,  # the fusion's entry has it, behind the norm
                "is_finished": False,
            },
            "text_encoder": text_config(sizes, num_layers=0),
            "fusion": fusion,
            "task": {"vqa": {"head": head}} if is_vqa else {"mlm": mlm} if "mlm" in tasks else {},
        },
        keys=keys_of(sizes, "" if is_bare else "visual_bert.", is_vqa),
        left_out=POSITION_IDS | (POOLER if is_vqa else {}),
        added=runs.NO_HEAD if is_bare else runs.NO_CONTRAST,
        classes=CLASSES,
        ids=ids,
        answers=runs.answers_of(source, answers, runs.rows(source, "cls.weight") if is_vqa else 0),
    )


def keys_of(sizes: Mapping[str, Any], prefix: str, is_vqa: bool) -> list[Key]:
    """The names of a class; words and regions share a norm there, and have one each here, which start equal."""
    embeddings, types = f"{prefix}embeddings.", "model.fusion.entry.types"
    of_regions = partial(type_of_regions, position=sizes["type_vocab_size"])
    heads = {"cls.": "tasks.vqa.head."} if is_vqa else {"cls.seq_relationship.": "tasks.itm.head."}
    return [
        Key(embeddings, runs.EMBEDDINGS),
        Key(f"{embeddings}LayerNorm.", f"{runs.EMBEDDINGS}LayerNorm."),
        Key(f"{embeddings}LayerNorm.", "model.fusion.entry.norm."),
        Key(f"{embeddings}visual_token_type_embeddings.weight", types, part=0, change=of_regions),
        Key(f"{embeddings}visual_position_embeddings.weight", types, part=1, change=of_regions),
        Key(f"{embeddings}visual_projection.", "model.image_encoder.project."),
        *runs.layers(LAYER, sizes["num_hidden_layers"], f"{prefix}encoder.layer.{{}}.", "model.fusion.blocks.{}."),
        Key(f"{prefix}pooler.dense.", "model.fusion.pool.dense.0."),
        *([] if is_vqa else lm_head("cls.", "tasks.mlm.head.", "model.text_encoder.")),
        *runs.renamed(heads),
    ]


def type_of_regions(tables: Tensor, shape: torch.Size, position: int) -> Tensor:
    """What every region is given, (1, D), of types and below them positions: type 1, and position 0 where none is aligned."""
    return tables[1:2] + tables[position : position + 1]
