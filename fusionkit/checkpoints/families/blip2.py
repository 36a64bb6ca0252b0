"""BLIP-2 (Li et al. 2023): queries that read a ViT's states (the Q-Former) before the words of a language model, OPT or T5.

The folders that transformers' Blip2ForConditionalGeneration saves: fusion=prefix over a causal language model, and
fusion=encoder_decoder over an encoder-decoder one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key, Plan, reshaped
from fusionkit.checkpoints.directory import CONFIG
from fusionkit.checkpoints.families.bert import CROSS_ATTENTION, POSITION_IDS
from fusionkit.checkpoints.families.blip_contrast import VISION
from fusionkit.checkpoints.families.language import (
    GENERATION,
    NO_POSITIONS,
    PLAIN,
    TEXT,
    ends_of,
    generation_of,
    language_keys,
    language_model,
    require_tasks,
    run_of,
    special_ids,
    token_of,
)
from fusionkit.checkpoints.families.llava import prefix
from fusionkit.checkpoints.families.vit import timm_vit, transformers_vit_keys
from fusionkit.checkpoints.folder import OPENAI, completed, images_of, own_tokenizer, require_possible
from fusionkit.checkpoints.source import Source
from fusionkit.data.tokenizer import load_tokenizer, text_format
from fusionkit.errors import DataError
from fusionkit.fusion.bert import BERT_LAYER

BODIES = ("language_model.model.", "language_model.model.decoder.")
HEADS = ("language_model.lm_head.",)
PROJECTOR = "model.fusion.projector."
SELF = {ours: name for ours, name in BERT_LAYER.items() if name.startswith("attention.")}
FEED_FORWARD = {  # that of the queries; text has one of its own in other classes
    "feed_forward.0": "intermediate_query.dense",
    "feed_forward.2": "output_query.dense",
    "norm_feed_forward": "output_query.LayerNorm",
}


@dataclass(frozen=True)
class Looking:
    """What one release differs in from the other: the part that looks at the image."""

    family: str
    release: str
    groups: tuple[str, str]  # over a causal language model, and over an encoder-decoder
    fusions: tuple[str, str]  # their classes
    tokenizers: tuple[str, str]
    projector: Mapping[str, Any]  # beside the sizes that both have
    keys: Sequence[Key]
    left_out: dict[str, str] = field(default_factory=dict)


def plan(source: Source, tasks: Sequence[str]) -> Plan:
    """What a folder of BLIP-2 is; ``tasks`` are those of the run that goes on from it."""
    runs.of_class(source, {"Blip2ForConditionalGeneration": None})
    source, tasks = completed(source, "Blip2Config"), require_tasks(tasks)
    queries = (source.config or {})["qformer_config"]
    if queries["use_qformer_text_input"]:
        raise DataError(
            f"{source.path / CONFIG}: qformer_config.use_qformer_text_input is true: its queries read text, which those of a "
            "Blip2ForConditionalGeneration do not; take another, or an InstructBlipForConditionalGeneration"
        )
    require_possible(source, "qformer_config", unread=["vocab_size", "encoder_hidden_size"])
    looking = Looking(
        family="blip2",
        release="transformers' BLIP-2",
        groups=("fusion=prefix_qformer", "fusion=encoder_decoder"),
        fusions=("fusionkit.fusion.prefix.Prefix", "fusionkit.fusion.encoder_decoder.EncoderDecoder"),
        tokenizers=("Salesforce/blip2-opt-2.7b", "Salesforce/blip2-flan-t5-xl"),
        projector={"_target_": "fusionkit.fusion.projectors.QFormer"},
        keys=[Key("qformer.layernorm.", f"{PROJECTOR}norm.")],
    )
    return plan_of(source, tasks, looking)


def plan_of(source: Source, tasks: Sequence[str], looking: Looking) -> Plan:
    """What a completed folder is whose queries look at the image, before a language model."""
    config = dict(source.config or {})
    text, queries = config["text_config"], config["qformer_config"]
    image = runs.sizes_of(VISION, source, "vision_config")
    require_possible(source, "vision_config")
    require_possible(replace(source, config={"num_query_tokens": config["num_query_tokens"]}))
    says_apart = not config["use_decoder_only_language_model"]
    is_tied = _is_tied(source) if says_apart else bool(text.get("tie_word_embeddings"))
    source = replace(source, config={**config, "tie_word_embeddings": is_tied})
    ends, ids = _ends(source), special_ids(source)
    words = language_model(source, kept=tuple(PLAIN))  # the published class runs the whole language model, head and all
    words["config"]["eos_token_id"] = ends
    if says_apart:
        name = "decoder_start_token_id"
        named = (token_of(source, CONFIG, text, name), token_of(source, GENERATION, generation_of(source), name))
        start = next((token for token in named if isinstance(token, int)), text["pad_token_id"])
        words["_target_"] = "fusionkit.encoders.seq2seq.EncoderDecoderLM"
        words["config"][name] = start
        words["reads_start"] = isinstance(text.get("bos_token_id"), int)
    projector = {
        "num_queries": config["num_query_tokens"],
        "num_layers": queries["num_hidden_layers"],
        "num_heads": queries["num_attention_heads"],
        "width": queries["hidden_size"],
        "intermediate_size": queries["intermediate_size"],
        "dropout": queries["hidden_dropout_prob"],
        "eps": queries["layer_norm_eps"],
        "cross_every": queries["cross_attention_frequency"],
    } | runs.activation(queries["hidden_act"], "qformer_config.hidden_act")
    fusion = dict(prefix("QFormer", "earlier", **projector, **looking.projector))
    fusion["_target_"] = looking.fusions[says_apart]
    if says_apart:
        del fusion["sees"]
    tower = {
        "embed_dim": image["hidden_size"],
        "depth": image["num_hidden_layers"],
        "num_heads": image["num_attention_heads"],
    }
    tower |= {name: image[name] for name in ("intermediate_size", "layer_norm_eps")}
    tower["qkv_bias"] = config["vision_config"]["qkv_bias"]
    images = images_of(source, image["image_size"], **OPENAI)
    return Plan(
        family=looking.family,
        release=looking.release,
        groups=[*runs.groups_of(tasks), looking.groups[says_apart]],
        config=run_of(source, tasks, config["num_query_tokens"], images)
        | {
            "name": looking.family,
            "image_encoder": timm_vit(tower, image["image_size"], image["patch_size"])
            | runs.tower_activation(image["hidden_act"], "vision_config.hidden_act"),
            "text_encoder": words,
            "fusion": fusion,
        },
        keys=[
            *transformers_vit_keys("vision_model.", "model.", image["num_hidden_layers"]),
            *_query_keys(queries["num_hidden_layers"], queries["cross_attention_frequency"]),
            *looking.keys,
            *(_halves(is_tied) if says_apart else language_keys(source, BODIES, HEADS)),
        ],
        left_out=POSITION_IDS | NO_POSITIONS | looking.left_out,
        added=runs.NO_CONTRAST,
        ids=ids | {"sep": ends[0]},
        tokenizer=looking.tokenizers[says_apart],
    )


def _is_tied(source: Source) -> bool:
    """Whether the decoder's head is the table of words: where it is not saved beside it, or is its equal (T5 v1.1: is not)."""
    head, table = (source.state.get(f"language_model.{name}.weight") for name in ("lm_head", "shared"))
    return not (isinstance(head, Tensor) and isinstance(table, Tensor)) or head.equal(table)


def _ends(source: Source) -> list[int]:
    """What ends a text: the end that the tokenizer wraps texts in first, where what is said ends otherwise (OPT: a new line)."""
    ends = ends_of(source)
    own = own_tokenizer(source.path)
    end = text_format(load_tokenizer(own)).end if own else ends[0]
    return ends if end in ends else [end, *ends]


def _query_keys(layers: int, cross_every: int) -> list[Key]:
    """The names of the Q-Former, its queries and the map behind it."""
    found = [
        Key("query_tokens", f"{PROJECTOR}queries", change=reshaped),
        Key("language_projection.", f"{PROJECTOR}map."),
    ]
    for number in range(layers):
        names = SELF | FEED_FORWARD | ({} if number % cross_every else CROSS_ATTENTION)
        names = {ours: theirs.replace("attention.self", "attention.attention") for ours, theirs in names.items()}
        layer = f"qformer.encoder.layer.{number}."
        found += [Key(f"{layer}{theirs}.", f"{PROJECTOR}layers.{number}.{ours}.") for ours, theirs in names.items()]
    return found


def _halves(is_tied: bool) -> list[Key]:
    """The names of an encoder-decoder: its table, its halves, which may have copies of it, and its head."""
    words, theirs = f"{TEXT}words.", "language_model."
    tables = (f"{theirs}{name}" for name in ("shared.", "encoder.embed_tokens.", "decoder.embed_tokens."))
    return [
        *(Key(name, words) for name in tables),
        Key(f"{theirs}encoder.", f"{TEXT}encoder."),
        Key(f"{theirs}decoder.", f"{TEXT}decoder."),
        Key(f"{theirs}lm_head.", words if is_tied else f"{TEXT}head."),
    ]
