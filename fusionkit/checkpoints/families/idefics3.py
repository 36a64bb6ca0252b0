"""Idefics3 and SmolVLM (Laurençon et al. 2024, Marafioti et al. 2025): neighbouring patches joined before the words of a Llama.

The folders that transformers' Idefics3ForConditionalGeneration and SmolVLMForConditionalGeneration save. An image is one tile.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan
from fusionkit.checkpoints.families import siglip
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
from fusionkit.checkpoints.families.llava import prefix
from fusionkit.checkpoints.folder import completed, images_of
from fusionkit.checkpoints.source import Source

CLASSES = {
    "Idefics3ForConditionalGeneration": "Idefics3Config",
    "SmolVLMForConditionalGeneration": "SmolVLMConfig",
}


def plan(source: Source, tasks: Sequence[str]) -> Plan:
    """What a folder of Idefics3 or SmolVLM is; ``tasks`` are those of the run that goes on from it."""
    source = completed(source, runs.of_class(source, CLASSES))
    tasks = require_tasks(tasks)
    image = runs.sizes_of(VISION, source, "vision_config")
    factor = runs.sizes_of({"scale_factor": 2}, source)["scale_factor"]
    side = image["image_size"] // image["patch_size"]
    images = images_of(source, image["image_size"], **siglip.IMAGES, resample="lanczos", size="max_image_size")
    return Plan(
        family="idefics3",
        release="transformers' Idefics3 and SmolVLM",
        groups=[*runs.groups_of(tasks), "fusion=prefix_shuffle"],
        config=run_of(source, tasks, (side // max(factor, 1)) ** 2, images)
        | {
            "name": "idefics3",
            "image_encoder": siglip.image_tower(image),
            "text_encoder": language_model(source),
            "fusion": prefix("PixelShuffle", "earlier", factor=factor, depth=1, skip=0, bias=False),
        },
        keys=[key for theirs in ("", "model.") for key in keys_of(source, theirs, image["num_hidden_layers"], side)],
        left_out=POSITION_IDS | NO_POSITIONS,
        added=runs.NO_CONTRAST,
        ids=special_ids(source),
        tokenizer="HuggingFaceTB/SmolVLM-Instruct",
    )


def keys_of(source: Source, theirs: str, layers: int, side: int) -> list[Key]:
    """The names of the three parts."""
    positions = Key(
        f"{theirs}vision_model.embeddings.position_embedding.weight",
        f"{siglip.IMAGE}pos_embed",
        change=partial(read_positions, side),
    )
    tower = siglip.tower_keys(f"{theirs}vision_model.", layers)
    return [
        *(key for key in tower if key.theirs != positions.theirs),
        positions,
        Key(f"{theirs}connector.modality_projection.proj.", "model.fusion.projector.map.0."),
        *language_keys(source, [f"{theirs}text_model."], ["lm_head."]),
    ]


def read_positions(side: int, table: Tensor, shape: torch.Size) -> Tensor:
    """The positions (N, D) of a whole image's patches, in the order in which the published code looks them up.

    It finds a patch's row by its fraction of the image among rounded numbers, which for some sides is the row beside.
    """
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    fractions = (torch.arange(side, dtype=torch.float32) * (1.0 / torch.tensor([side]))).clamp(max=1.0 - 1e-6)
    rows = torch.bucketize(fractions, boundaries, right=True)
    found = (rows[:, None] * side + rows[None]).flatten()
    return siglip.resize_grid(table[found] if len(table) == len(found) else table, shape)
