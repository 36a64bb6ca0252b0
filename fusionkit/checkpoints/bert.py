"""Names of BERT's parts in published checkpoints, and ours."""

from collections.abc import Mapping
from typing import Any

from fusionkit.checkpoints.base import Key
from fusionkit.fusion.bert import BERT_LAYER

CROSS_ATTENTION = {
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key": "crossattention.self.key",
    "cross_attention.value": "crossattention.self.value",
    "cross_attention.output": "crossattention.output.dense",
    "norm_cross": "crossattention.output.LayerNorm",
}
POSITION_IDS = {r".*\.position_ids": "the numbers from 0 up, which are not learnt"}


def fusion_layers(theirs: str, ours: str, count: int, first: int = 0) -> list[Key]:
    """``count`` layers with cross-attention: theirs ``first``, ``first + 1``, ... are ours 0, 1, ..."""
    names = BERT_LAYER | CROSS_ATTENTION
    return [
        Key(f"{theirs}layer.{first + number}.{their_part}.", f"{ours}layers.{number}.{our_part}.")
        for number in range(count)
        for our_part, their_part in names.items()
    ]


def text_encoder(theirs: str, ours: str, num_layers: int) -> list[Key]:
    """Embeddings and the first ``num_layers`` layers of a BertModel, as transformers names them."""
    lower = [
        Key(f"{theirs}encoder.layer.{n}.", f"{ours}text_encoder.backbone.encoder.layer.{n}.") for n in range(num_layers)
    ]
    return [Key(f"{theirs}embeddings.", f"{ours}text_encoder.backbone.embeddings."), *lower]


def lm_head(theirs: str, ours: str, word_embeddings: str) -> list[Key]:
    """A masked or causal LM head (``cls.``) whose decoder is tied to the table of that (our) name."""
    return [
        Key(f"{theirs}predictions.transform.dense.", f"{ours}dense."),
        Key(f"{theirs}predictions.transform.LayerNorm.", f"{ours}norm."),
        Key(f"{theirs}predictions.bias", f"{ours}bias"),
        Key(f"{theirs}predictions.decoder.bias", f"{ours}bias"),
        Key(f"{theirs}predictions.decoder.weight", word_embeddings),
    ]


def text_config(bert: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """The configuration of our text encoder with the first ``num_layers`` layers of a published BERT."""
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings")
    others = ("type_vocab_size", "layer_norm_eps", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob")
    config = {"model_type": "bert", "num_hidden_layers": num_layers} | {name: bert[name] for name in (*sizes, *others)}
    return {"_target_": "fusionkit.encoders.text.TextEncoder", "config": config}


def cross_attention_config(bert: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """The configuration of our cross-attention fusion with layers of a published BERT's size."""
    return {
        "_target_": "fusionkit.fusion.cross_attention.CrossAttention",
        "_partial_": True,
        "num_layers": num_layers,
        "num_heads": bert["num_attention_heads"],
        "intermediate_size": bert["intermediate_size"],
        "dropout": bert["hidden_dropout_prob"],
        "eps": bert["layer_norm_eps"],
    }
