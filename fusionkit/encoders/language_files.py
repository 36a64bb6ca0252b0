"""Language models of transformers, built or read from files: causal ones, and encoders with a decoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from fusionkit.encoders.probe import first_line
from fusionkit.encoders.tower import quiet, require_whole, without_code
from fusionkit.errors import ConfigError, DataError
from fusionkit.types import TextFormat

WHAT: dict[Any, str] = {
    AutoModelForCausalLM: "a causal language model",
    AutoModelForSeq2SeqLM: "an encoder-decoder language model",
}


def forget_noise(model: nn.Module) -> None:
    """Set every dropout, and the noise of what chooses experts, to 0, in place of evaluation mode, which recomputes no layer."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if ("drop" in name or "jitter" in name) and isinstance(value, float):
                setattr(module, name, 0.0)


def listed_ends(config: Any, tokens: int) -> tuple[int, ...]:
    """The tokens that end what a language model says, where its configuration has a list of them; of those that it embeds."""
    ends = config.eos_token_id
    return tuple(end for end in ends if end < tokens) if isinstance(ends, list) else ()


def _attention() -> dict[str, Any]:
    """Plain attention where it trains faster (CPU, see benchmarks)."""
    return {"attn_implementation": "sdpa" if torch.cuda.is_available() else "eager"}


def build_language_model(
    kind: Any, config: Mapping[str, Any], vocab_size: int, words: TextFormat | None, choose: str
) -> Any:
    """A model without trained weights; its special tokens are the tokenizer's, where ``config`` names none.

    ``kind`` is which of transformers' tables has it, ``choose`` what to do where that has none.
    """
    named = {} if words is None else {"pad_token_id": words.pad, "bos_token_id": words.start, "eos_token_id": words.end}
    if words is not None and kind is AutoModelForSeq2SeqLM:
        named["decoder_start_token_id"] = words.start
    try:
        built = AutoConfig.for_model(**{"vocab_size": vocab_size, **named, **without_code(config)})
        with quiet():
            return kind.from_config(built, trust_remote_code=False, **_attention())
    except Exception as error:  # unknown kinds and fields, sizes that do not fit, each with an error of its own
        reason = first_line(error).partition(" Should contain one of")[0]  # of all names
        if reason.startswith("Unrecognized configuration class"):  # names classes, and tables of them
            reason = f"transformers has no {WHAT[kind].partition(' ')[2]} of model_type '{config.get('model_type')}'"
        elif "model_type" in config and not reason.startswith(
            "Unrecognized"
        ):  # a known kind: its fields, if not the kind
            raise ConfigError(f"text_encoder.config: {reason}; correct it, or {choose}") from error
        raise ConfigError(f"text_encoder.config: needs a 'model_type' and its fields ({reason}); {choose}") from error


def load_language_model(kind: Any, pretrained: str, overrides: Mapping[str, Any], gguf: str | None = None) -> Any:
    """A model with the weights of a hub id, a local directory or a .gguf file."""
    key, given = "pretrained", dict[str, Any]()
    place = str(Path(pretrained).expanduser()) if pretrained.startswith("~") else pretrained
    if gguf is not None:
        file = Path(gguf).expanduser()
        if not file.is_file():
            raise DataError(f"text_encoder.gguf: the file {gguf} does not exist; give a .gguf file")
        key, given, place = "gguf", {"gguf_file": file.name}, str(file.parent)
    elif (pretrained.startswith((".", "/", "~")) or Path(pretrained).exists()) and not (
        Path(pretrained).expanduser() / "config.json"
    ).is_file():
        raise DataError(
            f"text_encoder.pretrained: {pretrained} holds no config.json; give a transformers model directory or a hub id"
        )
    try:
        with quiet():
            config = AutoConfig.from_pretrained(place, trust_remote_code=False, **given, **overrides)
            whole, report = kind.from_pretrained(
                place,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                **given,
                **_attention(),
            )
    except (ImportError, OSError, ValueError) as error:
        what = (
            "a .gguf file (the packages gguf and accelerate read it)"
            if gguf
            else f"a directory or a hub id of {WHAT[kind]}"
        )
        raise DataError(
            f"text_encoder.{key}: '{gguf or pretrained}' could not be loaded ({first_line(error)}); give {what}"
        ) from error
    require_whole(f"text_encoder.{key}: '{gguf or pretrained}'", report, config.model_type, "a whole model")
    return whole


def check_vocabulary(config: Any, rows: int, vocab_size: int, words: TextFormat | None, name: str | None) -> None:
    """Raise ConfigError for a tokenizer that is not the model's: of more tokens, of far fewer, or with another end."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    told = None
    if vocab_size > rows or (name and vocab_size < 0.9 * rows):
        told = f"has {vocab_size} tokens, but the language model embeds {rows}"
    elif name and words is not None and ends != [None] and words.end not in ends:
        told = f"ends texts with the id {words.end}, but the language model with {ends[0]}"
    if told:
        raise ConfigError(f"tokenizer: {told}; give the tokenizer that belongs to it as tokenizer={name or 'FOLDER'}")
