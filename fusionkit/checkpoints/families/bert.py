"""Names of BERT's parts in published checkpoints, and ours."""

from collections.abc import Mapping
from typing import Any

from fusionkit.checkpoints.base import Key
from fusionkit.errors import ConfigError
from fusionkit.fusion.bert import BERT_LAYER

CROSS_ATTENTION = {
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key": "crossattention.self.key",
    "cross_attention.value": "crossattention.self.value",
    "cross_attention.output": "crossattention.output.dense",
    "norm_cross": "crossattention.output.LayerNorm",
}
POSITION_IDS = {r".*\.position_ids": "the numbers from 0 up, which are not learnt"}
LAYER = BERT_LAYER | CROSS_ATTENTION
"""Our name in a layer with cross-attention -> the published one."""


def fusion_layers(
    theirs: str, ours: str, count: int, first: int = 0, names: Mapping[str, str] = LAYER, copies: int = 1
) -> list[Key]:
    """Our ``count`` layers with cross-attention from theirs: ``first``, ``first + 1``, ...; ``names`` of parts.

    Each of theirs becomes ``copies`` of ours, one after the other.
    """
    return [
        Key(f"{theirs}layer.{first + number // copies}.{their_part}.", f"{ours}layers.{number}.{our_part}.")
        for number in range(count)
        for our_part, their_part in names.items()
    ]


def text_encoder(theirs: str, ours: str, num_layers: int) -> list[Key]:
    """Embeddings and the first ``num_layers`` layers of a BertModel, as transformers names them."""
    lower = [Key(f"{theirs}encoder.layer.{n}.", f"{ours}backbone.encoder.layer.{n}.") for n in range(num_layers)]
    return [Key(f"{theirs}embeddings.", f"{ours}backbone.embeddings."), *lower]


def lm_head(theirs: str, ours: str, text: str) -> list[Key]:
    """A masked or causal LM head (``cls.``) whose decoder is tied to the word embeddings of our text encoder ``text``."""
    return word_head(f"{theirs}predictions.", ours, f"{text}backbone.embeddings.word_embeddings.weight")


def word_head(theirs: str, ours: str, decoder: str) -> list[Key]:
    """The parts of such a head; ``decoder`` is our tensor that predicts words, the head's own where it is not tied."""
    return [
        Key(f"{theirs}transform.dense.", f"{ours}dense."),
        Key(f"{theirs}transform.LayerNorm.", f"{ours}norm."),
        Key(f"{theirs}bias", f"{ours}bias"),
        Key(f"{theirs}decoder.bias", f"{ours}bias"),
        Key(f"{theirs}decoder.weight", decoder),
    ]


def answer_decoder(theirs: str, ours: str, count: int, first: int = 0) -> list[Key]:
    """A decoder of answers with its LM head (``BertLMHeadModel``): our ``count`` layers are theirs from ``first`` on."""
    reader = f"{ours}reader."
    return [
        *text_encoder(f"{theirs}bert.", f"{reader}text_encoder.", 0),
        *fusion_layers(f"{theirs}bert.encoder.", f"{reader}fusion.", count, first),
        *lm_head(f"{theirs}cls.", f"{ours}words.", f"{reader}text_encoder."),
    ]


def text_config(bert: Mapping[str, Any], num_layers: int, pad: int = 0) -> dict[str, Any]:
    """The configuration of our text encoder with the first ``num_layers`` layers of a published BERT.

    ``pad`` is the token whose embedding is not learnt where it is read.
    """
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings")
    others = ("type_vocab_size", "layer_norm_eps", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob")
    config = {"model_type": "bert", "num_hidden_layers": num_layers, "pad_token_id": pad}
    config |= {name: bert[name] for name in (*sizes, *others)}
    return {"_target_": "fusionkit.encoders.text.HFTextEncoder", "config": config}


def cross_attention_config(bert: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """The configuration of our cross-attention fusion with layers of a published BERT's size.

    Raises ConfigError for no layer at all, and for another activation than theirs, which the text layers alone would follow.
    """
    if num_layers < 1:
        raise ConfigError(
            f"bert.num_hidden_layers is {bert['num_hidden_layers']}, which leaves no layer with cross-attention; give more"
        )
    if bert["hidden_act"] != "gelu":
        raise ConfigError(
            f"bert.hidden_act is {bert['hidden_act']}, but the layers with cross-attention have gelu alone"
        )
    return {
        "_target_": "fusionkit.fusion.cross_attention.CrossAttention",
        "_partial_": True,
        "num_layers": num_layers,
        "num_heads": bert["num_attention_heads"],
        "intermediate_size": bert["intermediate_size"],
        "dropout": bert["hidden_dropout_prob"],
        "eps": bert["layer_norm_eps"],
    }


def decoder_config(bert: Mapping[str, Any], num_layers: int, pad: int = 0) -> dict[str, Any]:
    """The configuration of an answer decoder of a published BERT's size; ``pad`` as in ``text_config``."""
    return {
        "_target_": "fusionkit.model.model.text_decoder",
        "_partial_": True,
        "num_layers": num_layers,
        "num_heads": bert["num_attention_heads"],
        "intermediate_size": bert["intermediate_size"],
        "max_position_embeddings": bert["max_position_embeddings"],
        "type_vocab_size": bert["type_vocab_size"],
        "pad_token_id": pad,
        "dropout": bert["hidden_dropout_prob"],
        "eps": bert["layer_norm_eps"],
    }
