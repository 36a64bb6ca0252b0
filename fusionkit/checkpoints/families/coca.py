"""CoCa (Yu et al. 2022) as open_clip trains and saves it: a state dict, and open_clip_config.json with its sizes.

The released ViT-B-32 and ViT-L-14. Towers of timm or transformers (coca_roberta), and those without attentional pooling, are
refused.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan, reshaped, transposed
from fusionkit.checkpoints.families.clip import TOWERS, resize_table
from fusionkit.checkpoints.folder import OPENAI, three
from fusionkit.checkpoints.source import Source, plain_config
from fusionkit.errors import DataError

Sizes = Mapping[str, Any]
FILE = "open_clip_config.json"
IMAGE, TEXT, FUSION = "model.image_encoder.", "model.text_encoder.", "model.fusion."
IGNORED = {  # by part: what says nothing of these models
    "vision_cfg": ("output_tokens",),
    "text_cfg": ("output_tokens", "pool_type"),
    "multimodal_cfg": ("attn_pooler_heads", "context_length", "dim_head", "n_queries", "vocab_size"),
}
MODEL = ("embed_dim", *IGNORED, "quick_gelu")  # what model_cfg has that is read
UNSAID = (
    "custom_text",
    "init_logit_scale",
    "nonscalar_logit_scale",
    "cast_dtype",
    "pad_id",
)  # the weights, or nothing, say it
RESIZED = {
    "bicubic": "bicubic",
    "bilinear": "bilinear",
    "random": "bicubic",
}  # random is of training, and bicubic elsewhere
FITS = {"shortest": "crop", "squash": "squash"}
IMAGES = ("mean", "std", "interpolation", "resize_mode", "mode")
UNSHOWN = ("size", "fill_color")  # in open_clip too the size is the model's; no image is padded
BLOCK = {"attn.out_proj.": "{output}", "ln_2.": "{norm_2}", "mlp.c_fc.": "{inner}", "mlp.c_proj.": "{outer}"}
PARTS = {
    "visual.conv1.": f"{IMAGE}backbone.patch_embed.proj.",
    "visual.ln_pre.": f"{IMAGE}backbone.norm_pre.",
    "visual.attn_pool.query": f"{IMAGE}queries",
    "visual.attn_pool.attn.": f"{IMAGE}read.",
    "visual.attn_pool.ln_q.": f"{IMAGE}norm_queries.",
    "visual.attn_pool.ln_k.": f"{IMAGE}norm_tower.",
    "visual.ln_post.": f"{IMAGE}norm_read.",
    "text.token_embedding.": f"{TEXT}words.",
    "text.positional_embedding": f"{TEXT}positions",
    "text.cls_emb": f"{TEXT}appended",
    "text.ln_final.": f"{TEXT}norm.",
    "text_decoder.ln_final.": f"{FUSION}norm.",
}
PROJECTIONS = {
    "visual.proj": "model.image_projection.weight",
    "text.text_projection": "model.text_projection.weight",
    "text_decoder.text_projection": "tasks.captioning.head.weight",
}
MASKS = {r"(text|text_decoder)\.attn_mask": "who sees whom, which is computed"}


def plan(
    source: Source,
    embed_dim: int,
    vision_cfg: Sizes,
    text_cfg: Sizes,
    multimodal_cfg: Sizes,
    correct_cls_mask: bool,
    ids: Mapping[str, int],
) -> Plan:
    """What a checkpoint of open_clip's CoCa is; the sizes are those of the file beside it, else as given, by open_clip's names.

    ``correct_cls_mask`` is of weights that were trained so; no configuration of open_clip says it, the released ones were not.
    """
    source, activation = configured(source)
    images = images_of(source)
    width = runs.sizes_of({"embed_dim": embed_dim}, source, file=FILE)["embed_dim"]
    image, words, decoder = (
        part_of(source, name, sizes)
        for name, sizes in (("vision_cfg", vision_cfg), ("text_cfg", text_cfg), ("multimodal_cfg", multimodal_cfg))
    )
    if not image.pop("attentional_pool") or not words["embed_cls"]:
        raise DataError(
            f"{source.path}: its image tower pools without queries, or its texts have no token of their own, which a CoCa has "
            "here; take coca_ViT-B-32 or coca_ViT-L-14"
        )
    run = runs.run_of(["itc", "captioning"], words["context_length"], image_size=image["image_size"], **images)
    run["objectives"]["coco"] = {"itc": 1.0, "captioning": 2.0}  # the paper's weights, and open_clip's defaults
    head = {"_target_": "fusionkit.tasks.mlm.WordProjection", "_partial_": True}
    return Plan(
        family="coca",
        release="open_clip's CoCa",
        groups=[*runs.groups_of(["itc", "captioning"]), "fusion=coca"],
        config=run
        | {
            "name": "coca",
            "image_encoder": image_tower(image, width, activation),
            "text_encoder": text_tower(words, None if correct_cls_mask else words["pad_id"], activation),
            "fusion": {
                "_target_": "fusionkit.fusion.coca.CoCa",
                "_partial_": True,
                "num_layers": decoder["layers"],
                "num_heads": decoder["heads"],
                "intermediate_size": int(decoder["width"] * decoder["mlp_ratio"]),
                **runs.activation(activation),
            },
            "model": {"embed_size": width, "projection_bias": False, "temperature_range": [0.01, 1.0]},
            "task": {"captioning": {"head": head, "label_smoothing": 0.0, "max_length": 29, "min_length": 4}},
        },
        keys=keys_of(image["layers"], words["layers"], decoder["layers"]),
        left_out=MASKS,
        ids=ids,
        tokenizer="openai/clip-vit-base-patch32",
    )


def configured(source: Source) -> tuple[Source, str]:
    """The source with the sizes of the file beside it, if there is one, and the activation of all its parts."""
    folder = source.path.parent
    if not (folder / FILE).is_file():
        return replace(source, path=folder, config=None), "gelu"
    config = plain_config(folder / FILE).get("model_cfg")
    if not isinstance(config, dict):
        raise DataError(f"{folder / FILE} has no model_cfg with the sizes of the model; take the file again")
    if config.get("init_logit_bias") is not None:
        raise DataError(
            f"{folder / FILE}: model_cfg.init_logit_bias is {runs.shown(config['init_logit_bias'])}, but contrast has no bias "
            "here; take weights that were trained without one"
        )
    if foreign := [name for name in config if name not in {*MODEL, *UNSAID, "init_logit_bias"}]:
        raise DataError(
            f"{folder / FILE}: model_cfg.{foreign[0]} is {runs.shown(config[foreign[0]])}, which no CoCa here has; take "
            "coca_ViT-B-32 or coca_ViT-L-14"
        )
    named = replace(source, path=folder, config=config)
    quick = runs.sizes_of({"quick_gelu": False}, named, file=FILE)["quick_gelu"]
    return named, "quick_gelu" if quick else "gelu"


def images_of(source: Source) -> dict[str, Any]:
    """Options of data that read images as open_clip does by the file's preprocess_cfg; DataError for what none gives."""
    given = (plain_config(source.path / FILE).get("preprocess_cfg") or {}) if source.config is not None else {}
    place = f"{source.path / FILE}: "
    if not isinstance(given, dict):
        raise DataError(
            f"{place}preprocess_cfg is {runs.shown(given)}, but has to be an object with settings of images"
        )
    if foreign := [name for name in given if name not in IMAGES + UNSHOWN]:
        raise DataError(
            f"{place}preprocess_cfg.{foreign[0]} is {runs.shown(given[foreign[0]])}, which images are not read by here; leave "
            "it out"
        )
    found = {"interpolation": "bicubic", "resize_mode": "shortest", "mode": "RGB", **OPENAI}
    found |= {name: given[name] for name in found if given.get(name) is not None}
    known = {"interpolation": tuple(RESIZED), "resize_mode": tuple(FITS), "mode": ("RGB",)}
    for name, values in known.items():
        if found[name] not in values:
            raise DataError(
                f"{place}preprocess_cfg.{name} is {runs.shown(found[name])}, but images are read here with "
                f"{' or '.join(values)}; choose one"
            )
    for name in OPENAI:
        same = type(found[name]) in (int, float)  # for all colours
        found[name] = three(place, f"preprocess_cfg.{name}", [found[name]] * 3 if same else found[name])
    return {
        "mean": found["mean"],
        "std": found["std"],
        "resample": RESIZED[found["interpolation"]],
        "fit": FITS[found["resize_mode"]],
    }


def part_of(source: Source, part: str, sizes: Sizes) -> dict[str, Any]:
    """The sizes of one part; DataError for a setting that no option gives, such as a tower of another library."""
    found = runs.sizes_of(sizes, source, part, file=FILE)
    given = (source.config or {}).get(part, {})
    if foreign := [name for name in given if name not in {*sizes, *IGNORED[part]}]:
        raise DataError(
            f"{source.path / FILE}: {part}.{foreign[0]} is {runs.shown(given[foreign[0]])}, which no CoCa here has; take "
            "coca_ViT-B-32 or coca_ViT-L-14"
        )
    return found


def image_tower(image: Sizes, width: int, activation: str) -> dict[str, Any]:
    """CLIP's vision tower without its last norm, read by queries."""
    return {
        "_target_": "fusionkit.encoders.coca.AttentionPooledEncoder",
        "name": TOWERS[activation],
        "img_size": image["image_size"],
        "patch_size": image["patch_size"],
        "embed_dim": image["width"],
        "depth": image["layers"],
        "num_heads": image["width"] // image["head_width"],
        "intermediate_size": int(image["width"] * image["mlp_ratio"]),
        "norm_layer": {"_target_": "torch.nn.LayerNorm", "_partial_": True, "eps": 1e-5},
        "final_norm": False,
        "num_queries": image["attn_pooler_queries"],
        "query_size": width,
        "query_heads": image["attn_pooler_heads"],
    }


def text_tower(words: Sizes, sees_padding: int | None, activation: str) -> dict[str, Any]:
    """The causal half; the token behind the words sees what it saw when the weights were trained."""
    return {
        "_target_": "fusionkit.encoders.coca.CausalTextEncoder",
        "hidden_size": words["width"],
        "num_layers": words["layers"],
        "num_heads": words["heads"],
        "intermediate_size": int(words["width"] * words["mlp_ratio"]),
        "max_length": words["context_length"],
        "table_size": words["vocab_size"],
        "sees_padding": sees_padding,
        **runs.activation(activation),
    }


def keys_of(image_layers: int, text_layers: int, fusion_layers: int) -> list[Key]:
    """The names of all parts."""
    tower = {"output": "attn.proj.", "norm_2": "norm2.", "inner": "mlp.fc1.", "outer": "mlp.fc2."}
    tower |= {"norm_1": "norm1.", "packed": "attn.qkv."}
    text = {"output": "output.", "norm_2": "norm_feed_forward.", "inner": "feed_forward.0.", "outer": "feed_forward.2."}
    text |= {"norm_1": "norm_attention.", "packed": "query_key_value."}
    fused = text | {"output": "attention.output.", "packed": ""}
    return [
        *runs.renamed(PARTS),
        *(Key(theirs, ours, change=transposed) for theirs, ours in PROJECTIONS.items()),
        Key("visual.class_embedding", f"{IMAGE}backbone.cls_token", change=reshaped),
        Key("visual.positional_embedding", f"{IMAGE}backbone.pos_embed", change=resize_table),
        Key("logit_scale", "model.temperature", change=runs.inverse),
        *_blocks("visual.transformer.resblocks.{}.", f"{IMAGE}backbone.blocks.{{}}.", image_layers, tower),
        *_blocks("text.transformer.resblocks.{}.", f"{TEXT}layers.{{}}.", text_layers, text),
        *_blocks("text_decoder.resblocks.{}.", f"{FUSION}text_layers.{{}}.", fusion_layers, fused),
        *_blocks("text_decoder.cross_attn.{}.", f"{FUSION}cross_layers.{{}}.", fusion_layers, fused),
    ]


def _blocks(theirs: str, ours: str, count: int, names: Mapping[str, str]) -> list[Key]:
    """The blocks of one part; packed queries, keys and values stay so, or where ``packed`` is "" become three."""
    table: dict[str, str | tuple[str, ...]] = {"ln_1.": names["norm_1"], "ln_1_kv.": "norm_image."}
    table |= {name: target.format(**names) for name, target in BLOCK.items()}
    for kind in ("weight", "bias"):
        three = tuple(f"attention.{part}.{kind}" for part in ("query", "key", "value"))
        table[f"attn.in_proj_{kind}"] = f"{names['packed']}{kind}" if names["packed"] else three
    return runs.layers(table, count, theirs, ours)
