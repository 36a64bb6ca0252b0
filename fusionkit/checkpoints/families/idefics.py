"""Idefics (Laurençon et al. 2023): gated blocks that look at CLIP's states, before layers of a Llama (after Flamingo).

The folders that transformers' IdeficsForVisionText2Text saves. Of several images of a text each token sees the latest one.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan
from fusionkit.checkpoints.directory import CONFIG
from fusionkit.checkpoints.families import clip
from fusionkit.checkpoints.families.bert import POSITION_IDS
from fusionkit.checkpoints.families.blip_contrast import VISION
from fusionkit.checkpoints.families.language import (
    NO_POSITIONS,
    TEXT,
    is_tied,
    language_model,
    require_tasks,
    run_of,
    special_ids,
)
from fusionkit.checkpoints.folder import OPENAI, completed, images_of, require_possible, settings_of
from fusionkit.checkpoints.source import Source
from fusionkit.errors import DataError

LLAMA = (  # what of the configuration is that of the language model
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_parameters",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
SIZES = {
    "vocab_size": 32000,
    "additional_vocab_size": 0,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "cross_layer_interval": 1,
    "rms_norm_eps": 1e-6,
    "dropout": 0.0,
    "qk_layer_norms": False,
    "use_resampler": False,
    "alpha_type": "float",
    "hidden_act": "silu",
}
PERCEIVER = {
    "resampler_n_latents": 64,
    "resampler_depth": 6,
    "resampler_n_heads": 16,
    "resampler_head_dim": 96,
    "qk_layer_norms_perceiver": False,
}
BLOCK = {
    "alpha_cross_attn": "cross_gate",
    "alpha_dense": "feed_forward_gate",
    "input_layernorm.": "norm_cross.",
    "cross_attn.q_proj.": "cross_attention.query.",
    "cross_attn.k_proj.": "cross_attention.key.",
    "cross_attn.v_proj.": "cross_attention.value.",
    "cross_attn.o_proj.": "cross_attention.output.",
    "cross_attn.q_layer_norm.": "cross_attention.norm_query.",
    "cross_attn.k_layer_norm.": "cross_attention.norm_key.",
    "post_attention_layernorm.": "norm_feed_forward.",
    "mlp.gate_proj.": "feed_forward.gate.",
    "mlp.up_proj.": "feed_forward.up.",
    "mlp.down_proj.": "feed_forward.down.",
}
LATENTS = {  # a layer of the resampler
    "0.context_layer_norm.": "norm_image.",
    "0.latents_layer_norm.": "norm_latents.",
    "0.q_proj.": "attention.query.",
    "0.k_proj.": "attention.key.",
    "0.v_proj.": "attention.value.",
    "0.output_proj.": "attention.output.",
    "0.q_layer_norm.": "attention.norm_query.",
    "0.k_layer_norm.": "attention.norm_key.",
    "1.ln.": "norm_feed_forward.",
    "1.fc.": "feed_forward.0.",
    "1.c_proj.": "feed_forward.2.",
}
FUSION, TABLE = "model.fusion.", f"{TEXT}backbone.embed_tokens.weight"


def plan(source: Source, tasks: Sequence[str]) -> Plan:
    """What a folder of Idefics is; ``tasks`` are those of the run that goes on from it."""
    source = in_parts(completed(source, runs.of_class(source, {"IdeficsForVisionText2Text": "IdeficsConfig"})))
    tasks, sizes = require_tasks(tasks), sizes_of(source)
    image = runs.sizes_of(VISION, source, "vision_config")
    depth = image["num_hidden_layers"]
    size = (
        "image_size" if "image_size" in settings_of(source)[1] else "size"
    )  # of the published folders, and of newer ones
    return Plan(
        family="idefics",
        release="transformers' Idefics",
        groups=[*runs.groups_of(tasks), f"fusion=interleaved{'_resampled' if sizes['use_resampler'] else ''}"],
        config=run_of(source, tasks, 0, images_of(source, image["image_size"], **OPENAI, size=size))
        | {
            "name": "idefics",
            "image_encoder": clip.image_tower(image) | {"layers": [depth]},
            "text_encoder": language_model(source),
            "fusion": fusion_of(source, sizes),
        },
        keys=keys_of(source, sizes, depth),
        left_out=POSITION_IDS
        | NO_POSITIONS
        | {r"(model\.)?vision_model\.post_layernorm\..*": "the norm of the pooled state, which no text looks at"},
        added=runs.NO_CONTRAST,
        ids=special_ids(source),
        tokenizer="HuggingFaceM4/idefics-9b",
    )


def sizes_of(source: Source) -> dict[str, Any]:
    """The sizes, with the resampler's; DataError for a setting that has no option here."""
    sizes = runs.sizes_of(SIZES, source)
    place = f"{source.path / CONFIG}: "
    if sizes["alpha_type"] != "float":
        raise DataError(
            f"{place}alpha_type is {runs.shown(sizes['alpha_type'])}, but a gate here is one number (float)"
        )
    if sizes["hidden_act"] != "silu":
        raise DataError(f"{place}hidden_act is {runs.shown(sizes['hidden_act'])}, but the blocks here have silu")
    if is_tied(source) and sizes["additional_vocab_size"]:
        raise DataError(
            f"{place}tie_word_embeddings is true and additional_vocab_size {sizes['additional_vocab_size']}, but only a head of "
            "its own has additional words here; save the model untied"
        )
    require_possible(source, least=0)
    require_possible(source, "vision_config")
    if not sizes["use_resampler"]:
        return sizes
    require_possible(source, "perceiver_config")
    return sizes | runs.sizes_of(PERCEIVER, source, "perceiver_config")


def in_parts(source: Source) -> Source:
    """The source whose configuration has its language model, a Llama, and its images in the sections of other families."""
    config = dict(source.config or {})
    words = runs.sizes_of({"vocab_size": 0, "additional_vocab_size": 0}, source)
    text = {name: config[name] for name in LLAMA if name in config}
    text |= {"model_type": "llama", "vocab_size": sum(words.values())}
    vision = dict(config["vision_config"])
    vision["hidden_size"] = vision.get("embed_dim")
    return replace(source, config={**config, "text_config": text, "vision_config": vision})


def fusion_of(source: Source, sizes: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the fusion."""
    blocks = {
        "_target_": "fusionkit.fusion.interleaved.Interleaved",
        "_partial_": True,
        "cross_every": sizes["cross_layer_interval"],
        "num_heads": sizes["num_attention_heads"],
        "intermediate_size": sizes["intermediate_size"],
        "dropout": sizes["dropout"],
        "gate": 0.0,
        "eps": sizes["rms_norm_eps"],
        "qk_norm": sizes["qk_layer_norms"],
    }
    if not sizes["use_resampler"]:
        return blocks
    resampler = {
        "_target_": "fusionkit.fusion.projectors.Perceiver",
        "_partial_": True,
        "num_latents": sizes["resampler_n_latents"],
        "num_layers": sizes["resampler_depth"],
        "num_heads": sizes["resampler_n_heads"],
        "head_size": sizes["resampler_head_dim"],
        "qk_norm": sizes["qk_layer_norms_perceiver"],
        "maps": False,
        "bias": False,
        "activation": {"_target_": "torch.nn.ReLU", "_partial_": True},
    }
    return blocks | {
        "_target_": "fusionkit.fusion.interleaved.InterleavedResampled",
        "resampler": resampler,
    }


def keys_of(source: Source, sizes: dict[str, Any], depth: int) -> list[Key]:
    """The names of the parts, in folders of an own head and of a tied one, and of the head."""
    parts = [key for theirs in ("model.", "") for key in part_keys(source, sizes, depth, theirs)]
    if is_tied(source):
        return [*parts, Key("lm_head.weight", TABLE)]
    head = f"{TEXT}head.weight"
    return [*parts, Key("lm_head.weight", head, part=0), Key("lm_head.additional_fc.weight", head, part=1)]


def part_keys(source: Source, sizes: dict[str, Any], depth: int, theirs: str) -> list[Key]:
    """The names of the three parts; words that were added stand behind the others in the table."""
    first, second = (None, None) if is_tied(source) else (0, 1)
    resampler = f"{FUSION}resampler."
    latents = f"{theirs}perceiver_resampler."
    return [
        *clip.tower_keys(f"{theirs}vision_model.", depth),
        Key(f"{theirs}embed_tokens.weight", TABLE, part=first),
        Key(f"{theirs}embed_tokens.additional_embedding.weight", TABLE, part=second),
        *(Key(f"{theirs}{name}.", f"{TEXT}backbone.{name}.") for name in ("layers", "norm")),
        *runs.layers(
            BLOCK,
            sizes["num_hidden_layers"],
            f"{theirs}gated_cross_attn_layers.{{}}.",
            f"{FUSION}cross_layers.{{}}.",
        ),
        *runs.layers(LATENTS, sizes.get("resampler_depth", 0), f"{latents}blocks.{{}}.", f"{resampler}layers.{{}}."),
        Key(f"{latents}latents", f"{resampler}latents"),
        Key(f"{latents}layer_norm.", f"{resampler}norm."),
    ]
