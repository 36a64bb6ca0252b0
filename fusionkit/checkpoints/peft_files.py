"""The adapters of a language model alone, as the files of the package peft, for whoever has the model's own weights."""

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from fusionkit.checkpoints.directory import require_new
from fusionkit.checkpoints.pretrained import Pretrained
from fusionkit.encoders.language import LanguageModel
from fusionkit.encoders.seq2seq import EncoderDecoderLM
from fusionkit.encoders.tower import quiet
from fusionkit.errors import ConfigError
from fusionkit.files.atomic import atomic_folder
from fusionkit.model.adapters import adapted_layers

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
        base_model_name_or_path=pretrained.config.text_encoder.get("pretrained"),
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
