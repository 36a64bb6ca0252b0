"""The adapters of a language model alone, as the files of the package peft, for whoever has the model's own weights."""

import importlib
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from fusionkit.assembly.trust import read_stored
from fusionkit.checkpoints.directory import require_new
from fusionkit.checkpoints.pretrained import Pretrained, rounded_in_training
from fusionkit.encoders.frozen import ADAPTER
from fusionkit.encoders.language import LanguageModel
from fusionkit.encoders.seq2seq import EncoderDecoderLM
from fusionkit.encoders.tower import quiet
from fusionkit.errors import ConfigError, DataError
from fusionkit.files.atomic import atomic_folder
from fusionkit.model.adapters import PATIENCE, Search, adapted_layers

OURS = "text_encoder."


def write_peft(folder: Path, pretrained: Pretrained) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` into a new folder.

    ``peft.PeftModel.from_pretrained`` puts them beside the layers of the same model of transformers. ConfigError where there
    are no adapters, where some stand outside the language model, and where the folder holds something already.
    """
    encoder, layers = pretrained.model.text_encoder, adapted_layers(pretrained.model)
    if not layers:
        raise ConfigError("layout=peft: the checkpoint has no adapters; export it without a layout")
    elsewhere = next((name for name in layers if not name.startswith(OURS)), None)
    if elsewhere or not isinstance(encoder, LanguageModel | EncoderDecoderLM):
        raise ConfigError(
            "layout=peft holds the adapters of a language model of transformers, but one stands beside "
            f"{elsewhere or next(iter(layers))}; export the checkpoint without a layout"
        )
    require_new(folder)
    places = places_of(encoder)
    found = {_theirs(name.removeprefix(OURS), places): layer for name, layer in layers.items()}
    with atomic_folder(folder, "make room, or choose another output=FOLDER") as half_made:
        save_file(tensors_of(found), half_made / "adapter_model.safetensors")
        _config_of(found, pretrained).save_pretrained(str(half_made))


def not_held(pretrained: Pretrained) -> str:
    """A sentence about what of a network ``write_peft`` leaves out, and beside which weights its adapters are the same."""
    stored, names = _stored(pretrained), [name for name, _ in pretrained.module.named_parameters()]
    trained = {_part(name) for name in _trained(pretrained, stored)}
    others = [part for part in dict.fromkeys(map(_part, names)) if part in trained and f"{part}." != OURS]
    told = "the folder holds the adapters alone" + (f", and nothing of {', '.join(others)}" if others else "")
    base = stored.get("checkpoint") or _origin(stored)
    if OURS.rstrip(".") in trained:
        began = f"those of {base}" if base else "those that the run began with"
        told += f"; the weights beside them were trained too, so beside {began} they say something else"
    elif base is None or base != _origin(stored):
        told += f"; they belong beside the weights of {base or 'this checkpoint, which began with none'}"
    if kind := rounded_in_training(pretrained):
        told += f"; they were trained beside weights that were rounded to {kind}"
    return f"{told}: an export without a layout holds all"


def _trained(pretrained: Pretrained, stored: Any) -> list[str]:
    """The parameters beside the adapters that a stage of the run has trained, where these are what it says."""
    names = [name for name, p in pretrained.module.named_parameters() if p.requires_grad and ADAPTER not in name]
    stages = stored.get("stages") or {}
    rows = list(stages.values()) if isinstance(stages, Mapping) else [stages]
    trains = [row.get("trains", ["."]) if isinstance(row, Mapping) else row for row in rows if row is not None]
    lists = [each for each in trains if isinstance(each, Sequence) and not isinstance(each, str)]
    if len(lists) < len(trains) or not all(isinstance(pattern, str) for each in lists for pattern in each):
        raise DataError(
            "the checkpoint's stages are damaged: each has to be a table whose 'trains' is a list of regexes"
        )
    patterns = [pattern for each in trains for pattern in each]
    search = Search("stages", time.monotonic() + PATIENCE)
    try:
        return [name for name in names if not stages or any(search(pattern, name) for pattern in patterns)]
    except re.error as error:
        raise ConfigError(f"the checkpoint's stages have a regex that is none: {error}") from error


def _part(name: str) -> str:
    """The part of a network that a parameter is of, as a configuration calls it."""
    place, part, *_ = name.split(".")
    return f"task.{part}" if place == "tasks" else part


def _stored(pretrained: Pretrained) -> Any:
    """The configuration of the run; a network's own forgets which files the weights began with."""
    return read_stored(pretrained.artifacts["config"], "the checkpoint")


def _origin(stored: Any) -> str | None:
    name: str | None = stored.text_encoder.get("pretrained")
    return name


def places_of(encoder: LanguageModel | EncoderDecoderLM) -> dict[str, str]:
    """The names in transformers' model of what ours is made of, such as ``model`` for ``backbone``."""
    kind: Any = AutoModelForCausalLM if isinstance(encoder, LanguageModel) else AutoModelForSeq2SeqLM
    with torch.device("meta"), quiet():
        whole = kind.from_config(encoder.config)
    parts: dict[str, Any] = {"head": whole.get_output_embeddings()}
    if isinstance(encoder, LanguageModel):
        parts["backbone"] = encoder.parts(whole)[0]
    else:
        parts |= {"encoder": whole.get_encoder(), "decoder": whole.get_decoder()}
    names = {id(part): name for name, part in whole.named_modules()}
    return {ours: names[id(part)] for ours, part in parts.items()}


def _theirs(name: str, places: dict[str, str]) -> str:
    part, _, rest = name.partition(".")
    return f"{places[part]}.{rest}" if rest else places[part]


def tensors_of(layers: dict[str, Any]) -> dict[str, Tensor]:
    """What peft stores of adapted layers, by its names."""
    stored = {}
    for name, layer in layers.items():
        for kind, part in (("lora_A.weight", layer.lora_A), ("lora_B.weight", layer.lora_B)):
            stored[f"base_model.model.{name}.{kind}"] = _only(part).weight
        for part in layer.lora_magnitude_vector.values():  # of DoRA
            stored[f"base_model.model.{name}.lora_magnitude_vector"] = part.weight
    return {name: tensor.detach().clone().contiguous() for name, tensor in stored.items()}


def _config_of(layers: dict[str, Any], pretrained: Pretrained) -> Any:
    peft: Any = importlib.import_module("peft")
    ranks = {name: _only(layer.r) for name, layer in layers.items()}
    shares = {name: _only(layer.lora_alpha) for name, layer in layers.items()}
    escaped = [name.replace(".", r"\.") for name in layers]
    return peft.LoraConfig(
        task_type="CAUSAL_LM" if isinstance(pretrained.model.text_encoder, LanguageModel) else "SEQ_2_SEQ_LM",
        base_model_name_or_path=_origin(_stored(pretrained)),
        inference_mode=True,
        target_modules=list(layers),
        rank_pattern=dict(zip(escaped, ranks.values(), strict=True)),
        alpha_pattern=dict(zip(escaped, shares.values(), strict=True)),
        use_dora=any(layer.lora_magnitude_vector for layer in layers.values()),
    )


def _only(by_name: nn.ModuleDict | dict[str, Any]) -> Any:
    """What stands under the one name that adapters have here."""
    (value,) = by_name.values()
    return value
