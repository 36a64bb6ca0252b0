"""Adapters alone, as peft's files: beside the same weights of transformers they say what our model says."""

from dataclasses import dataclass
from typing import Any

import peft
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from fusionkit.checkpoints import peft_files
from fusionkit.checkpoints.peft_files import not_held, write_peft
from fusionkit.encoders.language import LanguageModel
from fusionkit.encoders.seq2seq import EncoderDecoderLM
from fusionkit.errors import ConfigError, DataError
from fusionkit.model.adapters import Adapters, Rule
from fusionkit.types import TextFormat

WORDS, TOKENS = TextFormat(2, 3, 0, 1), 40
CAUSAL: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 48,
    },
}
T5 = {"model_type": "t5", "d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 48, "dropout_rate": 0.0}


@dataclass
class Loaded:
    """What is exported: the network, and its configuration as its checkpoint has it."""

    model: Any
    stored: dict[str, Any]

    @property
    def artifacts(self):
        return {"config": OmegaConf.to_yaml(OmegaConf.create(self.stored))}

    @property
    def module(self):
        return nn.ModuleDict({"model": self.model, "tasks": nn.ModuleDict({"vqa": nn.Linear(2, 2)})})


def loaded(encoder: nn.Module, decomposed: bool, names: str = ".") -> Loaded:
    """An encoder whose adapters, of different ranks and shares, have learnt something."""
    model = nn.Module()
    model.text_encoder, model.fusion = encoder, nn.Linear(4, 4)
    rules = {"all": Rule(names, rank=2, alpha=6.0), "some": Rule(r"layers?\.0\.|h\.0\.|block\.0\.", rank=3, alpha=12.0)}
    Adapters(rules, decomposed=decomposed)(model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return Loaded(model.eval(), {"text_encoder": {"pretrained": "them/theirs"}})


@pytest.mark.parametrize("decomposed", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", CAUSAL)
def test_beside_the_weights_of_transformers_they_are_the_same_model(kind, decomposed, tmp_path):
    torch.manual_seed(0)
    encoder = LanguageModel(TOKENS, config={"model_type": kind, **CAUSAL[kind]}, text_format=WORDS)
    whole = AutoModelForCausalLM.from_config(encoder.config)
    whole.get_decoder().load_state_dict(encoder.backbone.state_dict())
    if encoder.head is not None:
        whole.get_output_embeddings().load_state_dict(encoder.head.state_dict())
    network = loaded(encoder, decomposed, names="^text_encoder")
    write_peft(tmp_path / "adapters", network)
    ids = torch.randint(4, TOKENS, (2, 7))
    with torch.no_grad():
        plain = whole.eval()(ids, output_hidden_states=True).hidden_states[-1]
        theirs = peft.PeftModel.from_pretrained(whole, str(tmp_path / "adapters")).eval()
        states = theirs(ids, output_hidden_states=True).hidden_states[-1]
        ours = encoder.backbone(ids).last_hidden_state
    torch.testing.assert_close(states, ours, rtol=0, atol=1e-5)
    assert (states - plain).abs().max() > 0.01
    config = peft.PeftConfig.from_pretrained(str(tmp_path / "adapters"))
    assert (config.base_model_name_or_path, config.task_type) == ("them/theirs", "CAUSAL_LM")


def test_an_encoder_with_a_decoder_has_its_adapters_in_both(tmp_path):
    torch.manual_seed(0)
    encoder = EncoderDecoderLM(TOKENS, config=T5, text_format=WORDS)
    whole = AutoModelForSeq2SeqLM.from_config(encoder.config)
    whole.get_encoder().load_state_dict(encoder.encoder.state_dict(), strict=False)  # which lacks the words, shared
    whole.get_decoder().load_state_dict(encoder.decoder.state_dict(), strict=False)
    whole.set_input_embeddings(encoder.words)
    write_peft(tmp_path / "adapters", loaded(encoder, False, names=r"^text_encoder\.(encoder|decoder)"))
    theirs = peft.PeftModel.from_pretrained(whole.eval(), str(tmp_path / "adapters")).eval()
    assert theirs.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    embeds = torch.randn(2, 7, 32)
    with torch.no_grad():
        states = encoder.encoder(inputs_embeds=embeds).last_hidden_state
        torch.testing.assert_close(
            theirs.get_encoder()(inputs_embeds=embeds).last_hidden_state, states, rtol=0, atol=1e-5
        )
        ours, said = encoder.decoder, {"inputs_embeds": embeds, "encoder_hidden_states": states}
        again = theirs.get_decoder()(**said).last_hidden_state
        torch.testing.assert_close(again, ours(**said).last_hidden_state, rtol=0, atol=1e-5)


def test_adapters_outside_the_language_model_are_named(tmp_path):
    encoder = LanguageModel(TOKENS, config={"model_type": "llama", **CAUSAL["llama"]}, text_format=WORDS)
    with pytest.raises(ConfigError, match="but one stands beside fusion; export the checkpoint without a layout"):
        write_peft(tmp_path / "adapters", loaded(encoder, False, names="fusion|q_proj"))
    network = Loaded(nn.Module(), {})
    network.model.text_encoder = nn.Module()
    network.model.text_encoder.map = nn.Linear(4, 4)
    Adapters({"all": Rule(".", rank=2)})(network.model)
    with pytest.raises(ConfigError, match=r"but one stands beside text_encoder\.map; export"):
        write_peft(tmp_path / "adapters", network)
    assert not list(tmp_path.iterdir())


FROZEN = r"^(tasks|model\.fusion)"


@pytest.mark.parametrize(
    ("is_frozen", "stored", "told"),
    [
        (
            True,
            {},
            "the folder holds the adapters alone, and nothing of fusion, task.vqa: an export without a layout holds all",
        ),
        (
            False,
            {},
            "nothing of fusion, task.vqa; the weights beside them were trained too, so beside those of them/theirs they say",
        ),
        (False, {"stages": {"first": {"trains": [FROZEN]}}}, "nothing of fusion, task.vqa: an export"),
        (
            False,
            {"stages": {"first": {"trains": [r"^tasks", r"\.lora_"]}}},
            "alone, and nothing of task.vqa: an export",
        ),
        (False, {"stages": {"first": {"trains": [r"\.lora_"]}}}, "the folder holds the adapters alone: an export"),
        (
            False,
            {"stages": {"first": {"trains": [r"\.lora_"]}, "last": {"steps": None}}},
            "nothing of fusion, task.vqa; the weights beside them were trained too",
        ),
        (
            True,
            {"checkpoint": "old.ckpt"},
            "nothing of fusion, task.vqa; they belong beside the weights of old.ckpt: an",
        ),
        (
            True,
            {"text_encoder": {}},
            "task.vqa; they belong beside the weights of this checkpoint, which began with none: an",
        ),
        (
            False,
            {"text_encoder": {}},
            "were trained too, so beside those that the run began with they say something else: an export",
        ),
    ],
)
def test_what_the_folder_does_not_hold_is_told(is_frozen, stored, told):
    encoder = LanguageModel(
        TOKENS, config={"model_type": "llama", **CAUSAL["llama"]}, text_format=WORDS, frozen=is_frozen
    )
    network = loaded(encoder, False, names=r"text_encoder.*q_proj")
    network.stored |= stored
    assert told in not_held(network)


def test_a_regex_of_somebody_s_that_is_none_or_never_ends_is_refused(monkeypatch):
    encoder = LanguageModel(TOKENS, config={"model_type": "llama", **CAUSAL["llama"]}, text_format=WORDS)
    network = loaded(encoder, False, names="q_proj")
    network.stored["stages"] = {"first": {"trains": ["("]}}
    with pytest.raises(ConfigError, match="the checkpoint's stages have a regex that is none"):
        not_held(network)
    monkeypatch.setattr(peft_files, "PATIENCE", 0.2)
    network.stored["stages"] = {"first": {"trains": [r"(?:.{1,1000}){1,1000}\s"]}}
    with pytest.raises(ConfigError, match="takes too long"):
        not_held(network)


@pytest.mark.parametrize("stages", [3, {"first": 3}, {"first": {"trains": None}}, {"first": {"trains": "text"}}])
def test_stages_of_another_kind_are_refused(stages):
    encoder = LanguageModel(TOKENS, config={"model_type": "llama", **CAUSAL["llama"]}, text_format=WORDS)
    network = loaded(encoder, False, names="q_proj")
    network.stored["stages"] = stages
    with pytest.raises(DataError, match="the checkpoint's stages are damaged"):
        not_held(network)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    encoder = LanguageModel(TOKENS, config={"model_type": "llama", **CAUSAL["llama"]}, text_format=WORDS)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="is there already; choose another output=FOLDER"):
        write_peft(tmp_path, loaded(encoder, False, names="q_proj"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
