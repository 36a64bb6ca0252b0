"""LXMERT (Tan and Bansal 2019): BERT for the words, layers over regions, then layers that attend to each other.

The folders that transformers' Lxmert classes save.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan
from fusionkit.checkpoints.families.bert import POSITION_IDS, lm_head, text_config, text_encoder
from fusionkit.checkpoints.families.uniter import LAYER
from fusionkit.checkpoints.source import Source

EPS = 1e-12  # of all its norms
CROSS_LAYER = {"visual_attention.att.": "cross_attention.", "visual_attention.output.dense.": "cross_attention.output."}
CROSS_LAYER |= {"visual_attention.output.LayerNorm.": "norm_cross."}
for theirs, ours in (("lang", "text"), ("visn", "image")):
    CROSS_LAYER |= {
        f"{theirs}_self_att.self.": f"{ours}.self_attention.",
        f"{theirs}_self_att.output.dense.": f"{ours}.self_attention.output.",
        f"{theirs}_self_att.output.LayerNorm.": f"{ours}.norm_self.",
        f"{theirs}_inter.dense.": f"{ours}.feed_forward.0.",
        f"{theirs}_output.dense.": f"{ours}.feed_forward.2.",
        f"{theirs}_output.LayerNorm.": f"{ours}.norm_feed_forward.",
    }
TASKS = {  # by class
    "LxmertForPreTraining": ("itm", "mlm", "vqa"),
    "LxmertForQuestionAnswering": ("vqa",),
    "LxmertModel": ("itm",),
}
CLASSES = {"itm": ("mismatch", "match")}  # matched_label: 1 is a sentence of the image
LEFT_OUT = POSITION_IDS | {
    r"obj_predict_head\..*": "the detector's objects, attributes and features told of hidden regions, a task that is not ours"
}


def plan(source: Source, sizes: Mapping[str, Any], ids: Mapping[str, int], answers: str | None = None) -> Plan:
    """What a folder of LXMERT is, by the class that it names; ``sizes`` by transformers' names."""
    sizes = runs.sizes_of(sizes, source) | {"layer_norm_eps": EPS}
    tasks = runs.of_class(source, TASKS)
    heads = {"vqa": runs.classifier("gelu_norm", source, "answer_head.logit_fc.", EPS)} if "vqa" in tasks else {}
    is_bare = not source.has("lxmert.")
    return Plan(
        family="lxmert",
        release="transformers' LXMERT",
        groups=runs.groups_of(tasks),
        config=runs.run_of(tasks, sizes["max_position_embeddings"], is_of_regions=True)
        | {
            "name": "lxmert",
            "image_encoder": {
                "_target_": "fusionkit.encoders.regions.RegionEncoder",
                "feature_size": sizes["visual_feat_dim"],
                "position_size": sizes["visual_pos_dim"],
                "hidden_size": sizes["hidden_size"],
                "dropout": sizes["hidden_dropout_prob"],
                "eps": EPS,
                "is_finished": False,
                "layers": [region_layer(sizes)] * sizes["r_layers"],
            },
            "text_encoder": text_config(sizes, sizes["l_layers"]),
            "fusion": fusion_config(sizes),
            "task": heads | ({"mlm": runs.activation(sizes["hidden_act"])} if "mlm" in tasks else {}),
        },
        keys=keys_of(sizes, "" if is_bare else "lxmert."),
        left_out=LEFT_OUT,
        added=runs.NO_HEAD if is_bare else runs.NO_CONTRAST,
        classes=CLASSES,
        ids=ids,
        answers=runs.answers_of(source, answers, runs.rows(source, "answer_head.logit_fc.3.weight") if heads else 0),
    )


def keys_of(sizes: Mapping[str, Any], prefix: str) -> list[Key]:
    """The names of all classes."""
    encoder, image = f"{prefix}encoder.", "model.image_encoder."
    features = {"visn_fc.": f"{image}project.", "box_fc.": f"{image}place."}
    heads = {"cls.seq_relationship.": "tasks.itm.head.", "answer_head.logit_fc.": "tasks.vqa.head."}
    return [
        *text_encoder(prefix, "model.text_encoder.", sizes["l_layers"]),
        *runs.renamed(features, f"{encoder}visn_fc."),
        Key(f"{encoder}visn_fc.visn_layer_norm.", f"{image}norm_features.", change=halved),
        Key(f"{encoder}visn_fc.box_layer_norm.", f"{image}norm_positions.", change=halved),
        *runs.layers(LAYER, sizes["r_layers"], f"{encoder}r_layers.{{}}.", f"{image}layers.{{}}."),
        *runs.layers(CROSS_LAYER, sizes["x_layers"], f"{encoder}x_layers.{{}}.", "model.fusion.layers.{}."),
        Key(f"{prefix}pooler.dense.", "model.fusion.pool.dense.0."),
        *lm_head("cls.", "tasks.mlm.head.", "model.text_encoder."),
        *runs.renamed(heads),
    ]


def halved(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Half of a norm's scale or shift: LXMERT takes the mean of features and positions, we their sum."""
    return tensor / 2


def region_layer(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A BERT layer over regions."""
    return {
        "_target_": "fusionkit.fusion.bert.PostNormBlock",
        "_partial_": True,
        "num_heads": sizes["num_attention_heads"],
        "dropout": sizes["hidden_dropout_prob"],
        "eps": EPS,
        "intermediate_size": sizes["intermediate_size"],
        **runs.activation(sizes["hidden_act"]),
    }


def fusion_config(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """LXMERT's layers over tokens as they come, and BERT's pooler."""
    return {
        "_target_": "fusionkit.fusion.co_attention.CoAttention",
        "_partial_": True,
        "num_layers": sizes["x_layers"],
        "num_heads": sizes["num_attention_heads"],
        "intermediate_size": sizes["intermediate_size"],
        "dropout": sizes["hidden_dropout_prob"],
        "eps": EPS,
        "block": {"_target_": "fusionkit.fusion.co_attention.CrossThenSelf", "_partial_": True}
        | runs.activation(sizes["hidden_act"]),
        "entry": {"_target_": "fusionkit.fusion.input_projection.Projection", "_partial_": True},
        "pool": {"_target_": "fusionkit.fusion.pooling.DenseText", "_partial_": True},
    }
