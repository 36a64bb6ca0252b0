"""GIT (Wang et al. 2022): CLIP's states, mapped and normalised, before the words of a causal BERT; they see one another.

The folders that transformers' GitForCausalLM saves, of single images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan
from fusionkit.checkpoints.directory import CONFIG
from fusionkit.checkpoints.families import clip
from fusionkit.checkpoints.families.bert import POSITION_IDS
from fusionkit.checkpoints.families.blip_contrast import VISION
from fusionkit.checkpoints.families.language import TEXT, ends_of, require_tasks, run_of, special_ids
from fusionkit.checkpoints.families.llava import CROPPED, prefix
from fusionkit.checkpoints.folder import completed, images_of
from fusionkit.checkpoints.source import Source
from fusionkit.errors import DataError

WORDS: Mapping[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 1024,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
EMBEDDINGS = ("word_embeddings", "position_embeddings", "LayerNorm")


def plan(source: Source, tasks: Sequence[str]) -> Plan:
    """What a folder of GIT is; ``tasks`` are those of the run that goes on from it."""
    runs.of_class(source, {"GitForCausalLM": None})
    source, tasks = completed(source, "GitConfig"), require_tasks(tasks)
    config = source.config or {}
    if (frames := config.get("num_image_with_embedding")) is not None:
        raise DataError(
            f"{source.path / CONFIG}: num_image_with_embedding is {runs.shown(frames)}: it reads the frames of a video, where an "
            "image encoder here reads an image; take a GIT of images"
        )
    ends = ends_of(source)
    if config.get("pad_token_id") is None:
        source = replace(source, config={**config, "pad_token_id": ends[0]})
    image, words = runs.sizes_of(VISION, source, "vision_config"), runs.sizes_of(WORDS, source)
    tokens, tied = (image["image_size"] // image["patch_size"]) ** 2 + 1, bool(config.get("tie_word_embeddings"))
    return Plan(
        family="git",
        release="transformers' GIT",
        groups=[*runs.groups_of(tasks), "fusion=prefix_linear"],
        config=run_of(source, tasks, tokens, images_of(source, image["image_size"], **CROPPED))
        | {
            "name": "git",
            "image_encoder": clip.image_tower(image),
            "text_encoder": {
                "_target_": "fusionkit.encoders.git.GITLanguageModel",
                "_convert_": "all",
                "config": words | {"eos_token_id": ends},
                "tied": tied,
            },
            "fusion": prefix("Linear", "image", skip=0, norm_eps=image["layer_norm_eps"]),
        },
        keys=[
            *clip.tower_keys("git.image_encoder.vision_model.", image["num_hidden_layers"]),
            *runs.renamed(
                {f"{n}.": f"model.fusion.projector.map.{n}." for n in (0, 1)},
                "git.visual_projection.visual_projection.",
            ),
            *(Key(f"git.embeddings.{part}.", f"{TEXT}backbone.embeddings.{part}.") for part in EMBEDDINGS),
            Key("git.encoder.", f"{TEXT}backbone.encoder."),
            Key("output.", f"{TEXT}head."),
            *(Key(f"{name}.weight", ours) for name, ours in TIED if tied),
        ],
        left_out=POSITION_IDS,
        added=runs.NO_CONTRAST,
        ids=special_ids(source),
        tokenizer="microsoft/git-base",
    )


TIED = [
    ("git.embeddings.word_embeddings", f"{TEXT}head.weight"),
    ("git.embeddings.word_embeddings", f"{TEXT}backbone.embeddings.word_embeddings.weight"),
    ("output", f"{TEXT}head.weight"),
    ("output", f"{TEXT}backbone.embeddings.word_embeddings.weight"),
]
