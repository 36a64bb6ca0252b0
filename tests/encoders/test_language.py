"""Causal language models of transformers: the same numbers as the library's own, and clear refusals of what cannot be read on."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fusionkit.encoders.language import LanguageModel
from fusionkit.errors import ConfigError, DataError
from fusionkit.types import TextFormat
from tests.toys import CLS, PAD, SEP, VOCABULARY, toy_language_model

WORDS = TextFormat(CLS, SEP, PAD, None, 1)
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2}
FAMILIES = {
    "llama": GROUPED | {"tie_word_embeddings": True},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "mistral": GROUPED,
    "smollm3": GROUPED,
    "gemma": GROUPED | {"head_dim": 8},
    "gemma2": GROUPED | {"head_dim": 8, "sliding_window": 48, "final_logit_softcapping": 2.0},
    "gemma3_text": GROUPED | {"head_dim": 8, "sliding_window": 48},
    "gpt_neox": SIZES,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 24,
        "max_position_embeddings": 64,
    },
    "phi": SIZES,
    "olmo2": GROUPED,
    "cohere": GROUPED | {"logit_scale": 0.5},
    "granite": GROUPED | {"logits_scaling": 4.0},
}  # fmt: skip
# a head that does not stand over plain attention: ALiBi, recurrence, positions of its own
REFUSED = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64, "n_positions": 64},
    "nothing": {},
}


def family(kind: str, **options) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(VOCABULARY, config={"model_type": kind, **FAMILIES[kind]}, text_format=WORDS, **options)


def library(kind: str):
    """The library's own model, of weights large enough that each token matters."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, pad_token_id=PAD, bos_token_id=CLS, eos_token_id=SEP, **FAMILIES[kind]
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def texts():
    ids = torch.randint(5, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(7) < torch.tensor([[7], [4], [1]])).long()
    return ids * mask, mask


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_loaded_model_gives_the_library_s_logits_alone_and_piece_by_piece(kind, tmp_path):
    theirs, (ids, mask) = library(kind), texts()
    theirs.save_pretrained(tmp_path)
    ours = LanguageModel(VOCABULARY, pretrained=str(tmp_path), text_format=WORDS).eval()
    real = mask.bool()
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask).logits
        tokens = ours(ids, mask)
        torch.testing.assert_close(ours.predict_words(tokens.embeds)[real], expected[real], rtol=1e-5, atol=1e-5)
        assert torch.equal(tokens.pooled, tokens.embeds[torch.arange(3), mask.sum(1) - 1])
        causal = torch.ones(7, 7).tril().long() * mask[:, None]
        places = torch.arange(7).expand(3, -1)
        one, past = ours.extend(ids[:, :3], causal[:, :3, :3], places[:, :3], None)
        two, _ = ours.extend(ids[:, 3:], causal[:, 3:], places[:, 3:], past)
    pieces = torch.cat([one.embeds, two.embeds], dim=1)
    torch.testing.assert_close(pieces[real], tokens.embeds[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_family_that_cannot_be_read_on_is_refused(kind):
    message = r"^text_encoder(\.config)?: .*choose a family of plain attention, such as llama"
    with pytest.raises(ConfigError, match=message):
        LanguageModel(VOCABULARY, config={"model_type": kind, **REFUSED[kind]}, text_format=WORDS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2", "n_embd": -8}, r"^text_encoder\.config: [^(]*; correct it, or choose a family of plain"),
        ({"model_type": "git", "attention_probs_dropout_prob": 1e308}, r"^text_encoder\.config: dropout .*; correct it"),
        ({"model_type": "nothing"}, r"^text_encoder\.config: needs a 'model_type' and its fields \(Unrecognized .*\); choose"),
        ({"hidden_size": 8}, r"^text_encoder\.config: needs a 'model_type' and its fields \("),
    ],
)  # fmt: skip
def test_a_wrong_field_is_not_called_a_wrong_family(config, message):
    with pytest.raises(ConfigError, match=message):
        LanguageModel(VOCABULARY, config=config, text_format=WORDS)


def test_no_token_sees_later_ones_whatever_a_mask_says():
    model, (ids, _) = toy_language_model().eval(), texts()
    every = torch.ones(3, 7, 7, dtype=torch.long)
    with torch.no_grad():
        states = model(ids, every).embeds
        changed = model(torch.cat([ids[:, :6], (ids[:, 6:] + 1) % VOCABULARY], dim=1), every).embeds
    assert torch.equal(states[:, :6], changed[:, :6])


def test_once_a_fusion_reads_on_texts_are_only_embedded():
    model, (ids, mask) = family("phi"), texts()
    assert not model.predicts_words
    assert not any(parameter.requires_grad for parameter in model.head.parameters())
    model.start_reading_on()
    assert model.predicts_words
    assert all(parameter.requires_grad for parameter in model.head.parameters())
    tokens = model(ids, mask)
    assert torch.equal(tokens.embeds, model.word_embeddings.weight[ids])
    assert model.extend(ids, mask[:, None].expand(-1, 7, -1), ids, None)[1] == ()


def test_a_frozen_model_passes_gradients_on():
    model = family("phi", frozen=True).train()
    model.start_reading_on()
    embeds = torch.randn(1, 3, 32, requires_grad=True)
    mask, places = torch.ones(1, 3, 3, dtype=torch.bool).tril(), torch.arange(3)[None]
    model.predict_words(model.read(embeds, mask, places)).sum().backward()
    assert embeds.grad.abs().sum() > 0
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_layers_are_recomputed_only_in_training():
    model = toy_language_model(checkpointing=True)
    assert model.train().is_recomputed
    assert not model.eval().is_recomputed
    assert not toy_language_model().train().is_recomputed
    with torch.no_grad():
        assert not model.train().is_recomputed


@pytest.mark.parametrize("kind", ["gpt2", "opt", "phi"])
def test_a_frozen_model_has_no_dropout_and_its_layers_are_recomputed(kind):
    drops = {"gpt2": ["resid_pdrop", "embd_pdrop", "attn_pdrop"], "phi": ["resid_pdrop", "attention_dropout"]}
    config = {"model_type": kind, **FAMILIES[kind]} | dict.fromkeys(drops.get(kind, ["dropout", "layerdrop"]), 0.5)
    torch.manual_seed(0)
    model = LanguageModel(VOCABULARY, config=config, text_format=WORDS, frozen=True, checkpointing=True)
    layers = []
    for layer in model.backbone.modules():
        if type(layer).__name__.endswith(("Block", "DecoderLayer")):
            first = next(part for part in layer.modules() if isinstance(part, torch.nn.LayerNorm))
            first.register_forward_pre_hook(lambda *_: layers.append(1))
    embeds = torch.randn(2, 3, model.hidden_size, requires_grad=True)
    given = torch.ones(2, 3, 3, dtype=torch.bool).tril(), torch.arange(3).expand(2, 3)
    states = model.train().read(embeds, *given)
    once = len(layers)
    states.sum().backward()
    assert once > 0
    assert len(layers) == 2 * once
    assert torch.equal(states, model.eval().read(embeds, *given))


@pytest.mark.parametrize("kind", ["mixtral", "phimoe"])
def test_a_frozen_mixture_of_experts_has_no_noise(kind):
    config = GROUPED | {
        "model_type": kind,
        "num_local_experts": 4,
        "router_jitter_noise": 0.5,
        "input_jitter_noise": 0.5,
    }
    given = torch.ones(2, 3, 3, dtype=torch.bool).tril(), torch.arange(3).expand(2, 3)
    for frozen in (False, True):
        torch.manual_seed(0)
        model = LanguageModel(VOCABULARY, config=config, text_format=WORDS, frozen=frozen).train()
        embeds = torch.randn(2, 3, model.hidden_size)
        assert torch.equal(model.train().read(embeds, *given), model.eval().read(embeds, *given)) == frozen


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({}, 64),
        ({"model_type": "mistral", "sliding_window": 12}, 12),
        ({"model_type": "qwen2", "sliding_window": 12, "use_sliding_window": False}, 64),
        ({"model_type": "gemma2", "head_dim": 8, "sliding_window": 12}, 12),
    ],
)
def test_the_bound_is_that_of_positions_or_of_the_shortest_window(config, most):
    assert toy_language_model(config=config).max_length == most


def test_the_keys_and_values_of_a_token_are_counted():
    assert toy_language_model().key_size == 1 * 2 * 2 * 8  # layers, keys and values, heads, width
    assert family("gpt2").key_size == 2 * 2 * 32


def test_a_checkpoint_s_model_is_built_without_its_files(tmp_path):
    for kind in ("llama", "phi"):
        library(kind).save_pretrained(tmp_path)
        config = {"_target_": "x", "pretrained": str(tmp_path), "gguf": None, "frozen": True}
        model = LanguageModel(VOCABULARY, str(tmp_path))
        rebuilt = LanguageModel.weightless(config, model.sizes())
        assert (rebuilt["pretrained"], rebuilt["frozen"]) == (None, True)
        other = LanguageModel(VOCABULARY, config=rebuilt["config"])
        other.load_state_dict(model.state_dict(), strict=True)
        assert (other.head is None) == (model.head is None) == (kind == "llama")
    assert LanguageModel.weightless({"config": {"a": 1}}, {"b": 2}) == {"config": {"a": 1}}


def test_the_tokenizer_of_another_model_is_refused(tmp_path):
    library("llama").save_pretrained(tmp_path)
    for size, words, told in (
        (VOCABULARY + 1, WORDS, "has 61 tokens, but the language model embeds 60"),
        (50, WORDS, "has 50 tokens, but the language model embeds 60"),
        (VOCABULARY, TextFormat(CLS, 9, PAD), "ends texts with the id 9, but the language model with 3"),
    ):
        with pytest.raises(
            ConfigError, match=f"^tokenizer: {told}; give the tokenizer that belongs to it as tokenizer={tmp_path}"
        ):
            LanguageModel(size, pretrained=str(tmp_path), text_format=words)


def test_files_that_hold_no_whole_model_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"text_encoder\.pretrained: .* holds no config\.json"):
        LanguageModel(VOCABULARY, pretrained=str(tmp_path))
    with pytest.raises(DataError, match=r"text_encoder\.gguf: the file .*x\.gguf does not exist; give a \.gguf file"):
        LanguageModel(VOCABULARY, gguf=str(tmp_path / "x.gguf"))
    with pytest.raises(ConfigError, match=r"text_encoder\.gguf stands in place of text_encoder\.pretrained"):
        LanguageModel(VOCABULARY, pretrained="a", gguf="b")
    model = library("llama")
    state = {name: tensor for name, tensor in model.state_dict().items() if "layers.1" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(DataError, match=r"lacks \d+ weights of a llama, among them model\.layers\.1"):
        LanguageModel(VOCABULARY, pretrained=str(tmp_path))
