"""PaliGemma (Beyer et al. 2024): SigLIP's patches through a linear map before the words of Gemma, a prefix in which all see all.

The folders that transformers' PaliGemmaForConditionalGeneration saves, 1 and 2.
"""

from collections.abc import Sequence

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
from fusionkit.checkpoints.families.llava import BODIES, HEADS, NO_POOLING, TOWERS, prefix
from fusionkit.checkpoints.folder import completed, images_of
from fusionkit.checkpoints.source import Source


def plan(source: Source, tasks: Sequence[str]) -> Plan:
    """What a folder of PaliGemma is; ``tasks`` are those of the run that goes on from it."""
    runs.of_class(source, {"PaliGemmaForConditionalGeneration": None})
    source, tasks = completed(source, "PaliGemmaConfig"), require_tasks(tasks)
    image = runs.sizes_of(VISION, source, "vision_config")
    tokens = (image["image_size"] // image["patch_size"]) ** 2
    text = language_model(source, kept=["final_logit_softcapping"])
    text["config"]["use_bidirectional_attention"] = False  # the mask says who sees whom
    return Plan(
        family="paligemma",
        release="transformers' PaliGemma",
        groups=[*runs.groups_of(tasks), "fusion=prefix"],
        config=run_of(source, tasks, tokens, images_of(source, image["image_size"], **siglip.IMAGES))
        | {
            "name": "paligemma",
            "image_encoder": siglip.image_tower(image),
            "text_encoder": text,
            "fusion": prefix("Linear", "text", skip=0),
        },
        keys=[
            *(key for theirs in TOWERS for key in siglip.tower_keys(theirs, image["num_hidden_layers"])),
            *(
                Key(f"{theirs}multi_modal_projector.linear.", "model.fusion.projector.map.")
                for theirs in ("", "model.")
            ),
            *language_keys(source, BODIES, HEADS),
        ],
        left_out=POSITION_IDS | NO_POSITIONS | NO_POOLING,
        added=runs.NO_CONTRAST,
        ids=special_ids(source),
        tokenizer="google/paligemma-3b-pt-224",
    )
