"""LLaVA (Liu et al. 2023): states of a CLIP or SigLIP tower, through two linear maps, before the words of a language model.

The folders that transformers' LlavaForConditionalGeneration saves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan
from fusionkit.checkpoints.directory import CONFIG
from fusionkit.checkpoints.families import clip, siglip
from fusionkit.checkpoints.families.bert import POSITION_IDS
from fusionkit.checkpoints.families.blip_contrast import VISION
from fusionkit.checkpoints.families.language import (
    NO_POSITIONS,
    language_keys,
    language_model,
    require_tasks,
    run_of,
    special_ids,
)
from fusionkit.checkpoints.folder import OPENAI, completed, images_of
from fusionkit.checkpoints.source import Source
from fusionkit.errors import DataError

TOWERS = ("vision_tower.", "vision_tower.vision_model.", "model.vision_tower.", "model.vision_tower.vision_model.")
BODIES = ("language_model.model.", "model.language_model.", "language_model.model.decoder.")
HEADS = ("language_model.lm_head.", "lm_head.")
NO_POOLING = {
    r"(model\.)?vision_tower\.(vision_model\.)?head\..*": "what pools an image, which the words do not follow"
}
CROPPED = {**OPENAI, "fit": "crop"}
PROJECTOR = {"linear_1.": "model.fusion.projector.map.0.", "linear_2.": "model.fusion.projector.map.2."}


def plan(source: Source, tasks: Sequence[str]) -> Plan:
    """What a folder of LLaVA is; ``tasks`` are those of the run that goes on from it."""
    runs.of_class(source, {"LlavaForConditionalGeneration": None})
    source = completed(source, "LlavaConfig")
    config, tasks = dict(source.config or {}), require_tasks(tasks)
    kind = config["vision_config"]["model_type"]
    if kind not in ("clip_vision_model", "siglip_vision_model"):
        raise DataError(
            f"{source.path / CONFIG}: vision_config.model_type is {kind}; what can be imported is clip_vision_model and "
            "siglip_vision_model"
        )
    image = runs.sizes_of(VISION, source, "vision_config")
    is_clip = kind == "clip_vision_model"
    layers = layers_of(source, config["vision_feature_layer"], image["num_hidden_layers"])
    read = {"num_hidden_layers": max(layers)}
    skip = int(config["vision_feature_select_strategy"] == "default")
    tokens = (image["image_size"] // image["patch_size"]) ** 2 + is_clip
    tower = clip.image_tower(image | read) if is_clip else siglip.image_tower(image | read)
    images = images_of(source, image["image_size"], **(CROPPED if is_clip else siglip.IMAGES))
    activation = runs.activation(config["projector_hidden_act"], "projector_hidden_act")
    projector = {"depth": 2, "skip": skip, "bias": config["multimodal_projector_bias"]} | activation
    return Plan(
        family="llava",
        release="transformers' LLaVA",
        groups=[*runs.groups_of(tasks), "fusion=prefix"],
        config=run_of(source, tasks, tokens - skip, images)
        | {
            "name": "llava",
            "image_encoder": tower | {"layers": layers},
            "text_encoder": language_model(source),
            "fusion": prefix("MLP", "earlier", **projector),
        },
        keys=[
            *(key for theirs in TOWERS for key in tower_keys(theirs, is_clip, max(layers))),
            *(key for theirs in ("", "model.") for key in runs.renamed(PROJECTOR, f"{theirs}multi_modal_projector.")),
            *language_keys(source, BODIES, HEADS),
        ],
        left_out=POSITION_IDS | NO_POSITIONS | above(max(layers), image["num_hidden_layers"]),
        added=runs.NO_CONTRAST,
        ids=special_ids(source),
        tokenizer="llava-hf/llava-1.5-7b-hf",
    )


def layers_of(source: Source, named: Any, depth: int) -> list[int]:
    """Behind how many blocks each of the states is taken that the words follow, from ``vision_feature_layer``."""
    numbers = named if isinstance(named, list) else [named]
    layers = [number + depth + 1 if number < 0 else number for number in numbers]
    if not layers or not all(1 <= layer <= depth for layer in layers):
        raise DataError(
            f"{source.path / CONFIG}: vision_feature_layer is {runs.shown(named)}, but the vision tower has {depth} layers"
        )
    return layers


def tower_keys(theirs: str, is_clip: bool, layers: int) -> list[Key]:
    """The names of the vision tower."""
    return clip.tower_keys(theirs, layers) if is_clip else siglip.tower_keys(theirs, layers)


def above(read: int, depth: int) -> dict[str, str]:
    """What of a vision tower is not read: layers above those whose states are taken, the norm and the pooling behind them."""
    tower = r"(model\.)?vision_tower\.(vision_model\.)?"
    unread = "|".join(map(str, range(read, depth))) or "none"
    return {
        rf"{tower}encoder\.layers\.({unread})\..*": "layers above those read",
        rf"{tower}post_layernorm\..*": "the norm behind the last layer, which the words do not follow",
        **NO_POOLING,
    }


def prefix(projector: str, sees: str, **options: Any) -> Mapping[str, Any]:
    """The configuration of the fusion: an image's tokens before those of a text."""
    target = {"_target_": f"fusionkit.fusion.projectors.{projector}", "_partial_": True}
    return {
        "_target_": "fusionkit.fusion.prefix.Prefix",
        "_partial_": True,
        "sees": sees,
        "projector": target | options,
    }
