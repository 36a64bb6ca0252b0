"""BridgeTower (Xu et al. 2023): CLIP's vision tower and RoBERTa, whose upper layers are led into METER's layers, one each.

The folders that transformers' BridgeTower classes save, with published choices: shared maps, links that add.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan, reshaped
from fusionkit.checkpoints.families.bert import POSITION_IDS, text_config, text_encoder
from fusionkit.checkpoints.families.clip import image_tower, resize_table
from fusionkit.checkpoints.families.meter import CLIP_BLOCK, CROSS_LAYER
from fusionkit.checkpoints.source import Source
from fusionkit.errors import DataError

IMAGE = "model.image_encoder.backbone."
TASKS = {  # by class
    "BridgeTowerForContrastiveLearning": ["itc"],
    "BridgeTowerForImageAndTextRetrieval": ["itm"],
    "BridgeTowerForMaskedLM": ["mlm"],
    "BridgeTowerModel": ["itm"],
}
CLASSES = {"itm": ("mismatch", "match")}  # labels: 1 is a text of the image
NAMES = {
    "vision_model.visual.embeddings.patch_embedding.": f"{IMAGE}patch_embed.proj.",
    "vision_model.visual.ln_pre.": f"{IMAGE}norm_pre.",
    "vision_model.visual.ln_post.": f"{IMAGE}norm.",
    "cross_modal_text_transform.": "model.fusion.entry.project_text.",
    "cross_modal_image_transform.": "model.fusion.entry.project_image.",
    "token_type_embeddings.weight": "model.fusion.entry.types",
    "cross_modal_text_layernorm.": "model.fusion.text_norms.0.",
    "cross_modal_image_layernorm.": "model.fusion.image_norms.0.",
    "cross_modal_text_pooler.dense.": "model.fusion.pool.dense_text.0.",
    "cross_modal_image_pooler.dense.": "model.fusion.pool.dense_image.0.",
}
LEFT_OUT = POSITION_IDS | {
    r"(.*\.)?text_model\.pooler\..*": "the text's own pooler, which BridgeTower does not read",
    r"(.*\.)?vision_model\.visual\.ln_separate\..*": "norms for each layer, which BridgeTower does not read",
}

IN_ONE = {
    r"itc_image_head\..*": "it and the fusion's map of images are one matrix here",
    r"itc_cross_modal_head\..*": "contrast with fused pairs, which no task here has",
}


def plan(
    source: Source,
    image: Mapping[str, Any],
    text: Mapping[str, Any],
    fusion: Mapping[str, Any],
    ids: Mapping[str, int],
) -> Plan:
    """What a folder of BridgeTower is, by the class that it names; sizes of the three parts by transformers' names."""
    tasks = runs.of_class(source, TASKS)
    seen, words = runs.sizes_of(image, source, "vision_config"), runs.sizes_of(text, source, "text_config")
    depth = words["num_hidden_layers"]  # the image runs through as many layers as the text
    unread = "|".join(map(str, range(depth, seen["num_hidden_layers"])))
    seen["num_hidden_layers"] = depth
    both = runs.sizes_of(fusion, source)
    prefix = "bridgetower." if source.has("bridgetower.") else ""
    contrast = contrast_of(source, prefix) if "itc" in tasks else {}
    is_tied = "mlm_score.decoder.weight" not in source.state
    told = text_config(words, words["num_hidden_layers"])
    told["config"] |= {"model_type": "roberta", "pad_token_id": words["pad_token_id"]}
    # quick GELU, four times the width and heads of 64 are not options there
    tower = {"hidden_act": "quick_gelu", "intermediate_size": 4 * seen["hidden_size"]}
    tower |= {"num_attention_heads": seen["hidden_size"] // 64}
    mlm = {"tied": is_tied, "eps": both["layer_norm_eps"]} | runs.activation(both["hidden_act"])
    return Plan(
        family="bridgetower",
        release="transformers' BridgeTower",
        groups=runs.groups_of(tasks),
        config=runs.run_of(
            tasks,
            words["max_position_embeddings"] - words["pad_token_id"] - 1,
            image_size=seen["image_size"],
            fit="crop",
        )
        | {
            "name": "bridgetower",
            "image_encoder": image_tower(seen | tower) | {"top_layers": both["num_hidden_layers"]},
            "text_encoder": told
            | {
                "_target_": "fusionkit.encoders.bridgetower.BridgeTowerTextEncoder",
                "top_layers": both["num_hidden_layers"],
            },
            "fusion": {
                "_target_": "fusionkit.fusion.bridge.Bridge",
                "_partial_": True,
                "num_layers": both["num_hidden_layers"],
                "bridged": both["num_hidden_layers"],
                "num_heads": words["num_attention_heads"],
                "hidden_size": both["hidden_size"],
                "intermediate_size": words["intermediate_size"],
                "dropout": words["hidden_dropout_prob"],
                "eps": words["layer_norm_eps"],
                "bridge_eps": both["layer_norm_eps"],
                "block": {"_target_": "fusionkit.fusion.co_attention.SelfThenCross", "_partial_": True}
                | runs.activation(words["hidden_act"]),
                "pool": {"_target_": "fusionkit.fusion.pooling.DenseBoth", "_partial_": True, "image": "first"},
            },
            "task": {"mlm": mlm} if "mlm" in tasks else {},
        }
        | ({"model": {"embed_size": len(contrast["bias"]), "temperature_range": [0.001, 100.0]}} if contrast else {}),
        keys=[
            *keys_of(prefix, seen, words, both),
            Key("itm_score.fc.", "tasks.itm.head."),
            *runs.OWN_WORD_HEAD,
            Key("itc_text_head.fc.weight", "model.text_projection.weight", change=of_the_last_layer),
            Key("itc_text_head.fc.bias", "model.text_projection.bias"),
            Key("logit_scale", "model.temperature", change=runs.inverse),
        ],
        left_out=LEFT_OUT
        | (IN_ONE if contrast else {})
        | {rf"(.*\.)?vision_model\.visual\.transformer\.resblocks\.({unread})\..*": "layers above those read"},
        added={f"model.image_projection.{name}": partial(of_the_last_layer, part) for name, part in contrast.items()}
        or (runs.NO_CONTRAST if prefix else runs.NO_HEAD),
        classes=CLASSES,
        ids=ids,
        tokenizer="roberta-base",
    )


def contrast_of(source: Source, prefix: str) -> dict[str, Tensor]:
    """How an image comes into the contrastive space, as one matrix: the fusion's map of images, their type and a head in turn."""
    names = (
        "itc_image_head.fc.weight",
        "itc_image_head.fc.bias",
        f"{prefix}cross_modal_image_transform.weight",
        f"{prefix}cross_modal_image_transform.bias",
        f"{prefix}token_type_embeddings.weight",
    )
    for name in names:
        runs.rows(source, name)  # is there
    head, shift, inner, bias, types = (source.state[name].double() for name in names)
    try:
        found = {"weight": head @ inner, "bias": head @ (bias + types[1]) + shift}
    except (RuntimeError, IndexError) as error:
        raise DataError(f"{source.path}: {', '.join(names)} do not fit together ({error}); is it damaged?") from error
    if not all(part.isfinite().all() for part in found.values()):
        raise DataError(
            f"{source.path}: {names[0]} or what it reads holds numbers that are not finite; download it again"
        )
    return found


def of_the_last_layer(weight: Tensor, shape: torch.Size) -> Tensor:
    """A map of the last of the layers that stand side by side, as one of all: the others count nothing."""
    if weight.dim() < 2 or weight.shape[1] >= shape[1]:
        return weight.float()
    return torch.cat([weight.new_zeros(len(weight), shape[1] - weight.shape[1]), weight], dim=1).float()


def keys_of(prefix: str, image: Mapping[str, Any], text: Mapping[str, Any], both: Mapping[str, Any]) -> list[Key]:
    """The names of both towers, the bridges and the layers."""
    tower = f"{prefix}vision_model.visual."
    streams = [
        key
        for stream in ("text", "image")
        for key in [
            *runs.layers(
                CROSS_LAYER,
                both["num_hidden_layers"],
                f"{prefix}cross_modal_{stream}_layers.{{}}.",
                f"model.fusion.layers.{{}}.{stream}.",
            ),
            *(
                Key(f"{prefix}cross_modal_{stream}_link_tower.{n - 1}.LayerNorm.", f"model.fusion.{stream}_norms.{n}.")
                for n in range(1, both["num_hidden_layers"])
            ),
        ]
    ]
    return [
        *runs.renamed(NAMES, prefix),
        Key(f"{tower}embeddings.class_embedding", f"{IMAGE}cls_token", change=reshaped),
        Key(f"{tower}embeddings.position_embedding.weight", f"{IMAGE}pos_embed", change=resize_table),
        *runs.layers(
            CLIP_BLOCK, image["num_hidden_layers"], f"{tower}transformer.resblocks.{{}}.", f"{IMAGE}blocks.{{}}."
        ),
        *text_encoder(f"{prefix}text_model.", "model.text_encoder.", text["num_hidden_layers"]),
        *streams,
    ]
