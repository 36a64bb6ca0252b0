"""Encoder-decoder language models of transformers: the library's own numbers, and clear refusals of what is none."""

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from fusionkit.encoders.seq2seq import EncoderDecoderLM
from fusionkit.errors import ConfigError, DataError
from fusionkit.types import TextFormat
from tests.toys import CLS, PAD, SEP, VOCABULARY, toy_encoder_decoder

WORDS = TextFormat(CLS, SEP, PAD, None, 1)
NO_START = TextFormat(SEP, SEP, PAD, None, 1)  # T5's: the end stands in place of a start
T5 = {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 48, "dropout_rate": 0.0}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40, "dropout": 0.0,
}  # fmt: skip
FAMILIES = {
    "t5": ("t5", T5),
    "t5_v1_1": ("t5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", T5 | {"feed_forward_proj": "gated-gelu"}),
    "umt5": ("umt5", T5),
    "longt5": ("longt5", T5),
    "bart": ("bart", BART),
    "bart_scaled": ("bart", BART | {"scale_embedding": True}),
    "mbart": ("mbart", BART),
    "blenderbot": ("blenderbot", BART),
    "pegasus": ("pegasus", BART | {"scale_embedding": True}),
    "marian": ("marian", BART | {"scale_embedding": True}),
    "m2m_100": ("m2m_100", BART),
    "plbart": ("plbart", BART),
}
if Version(transformers.__version__) < Version("5.24"):  # whose caches of these are refused by the probe
    FAMILIES = {name: family for name, family in FAMILIES.items() if name not in ("umt5", "longt5")}


REFUSED = {
    "switch_transformers": T5,
    "led": BART | {"max_encoder_position_embeddings": 40, "max_decoder_position_embeddings": 40, "attention_window": 4},
    "fsmt": {"d_model": 32, "langs": ["a", "b"], "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY},
    "bigbird_pegasus": BART,
    "prophetnet": {"hidden_size": 32},
    "llama": {"hidden_size": 32},
    "nothing": {},
}


def config_of(name):
    kind, fields = FAMILIES[name]
    ids = {"pad_token_id": PAD, "bos_token_id": CLS, "eos_token_id": SEP, "decoder_start_token_id": 7}
    return {"model_type": kind, "vocab_size": VOCABULARY, **ids, **fields}


def scatter(module):
    """Weights large enough that each token matters."""
    for parameter in module.parameters():
        if parameter.dim() > 1 and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)


def library(name):
    """The library's own model; of T5 v1.1 with a head of its own, and of the others' heads a bias."""
    torch.manual_seed(1)
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**config_of(name)), attn_implementation="eager")
    if name in ("t5_v1_1", "mt5"):
        model.set_output_embeddings(torch.nn.Linear(32, VOCABULARY, bias=False))
    scatter(model)
    if hasattr(model, "final_logits_bias"):
        torch.nn.init.normal_(model.final_logits_bias)
    return model.eval()


def texts(seed=2):
    ids = torch.randint(8, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(7) < torch.tensor([[7], [4], [1]])).long()
    return ids * mask, mask


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loaded_model_gives_the_library_s_logits(name, tmp_path):
    theirs, (ids, mask), said = library(name), texts(), texts(3)[0]
    said = said.clamp(min=8)  # M2M counts positions without padding
    theirs.save_pretrained(tmp_path)
    ours = EncoderDecoderLM(VOCABULARY, pretrained=str(tmp_path), text_format=WORDS).eval()
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=said).logits
        memory = ours.encode(ours.embed(ids), mask)
        logits = ours.predict_words(ours.decode(ours.embed(said), memory, mask))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert ours.start_id == 7
    assert (ours.head is None) == (name not in ("t5_v1_1", "mt5"))


@pytest.mark.parametrize("kind", REFUSED)
def test_a_family_that_is_no_plain_encoder_and_decoder_is_refused(kind):
    message = r"^text_encoder(\.config)?: .*choose a family of plain attention, such as t5"
    with pytest.raises(ConfigError, match=message):
        EncoderDecoderLM(VOCABULARY, config={"model_type": kind, **REFUSED[kind]}, text_format=WORDS)


def test_a_model_is_what_was_saved_of_it_whatever_its_head(tmp_path):
    """Built without files of what it says of its sizes: strict names, and the same numbers."""
    for name in ("t5", "t5_v1_1", "bart", "pegasus"):
        (ids, mask), said = texts(), texts(3)[0]
        library(name).save_pretrained(tmp_path / name)
        given = {"_target_": "x", "pretrained": str(tmp_path / name)}
        ours = EncoderDecoderLM(VOCABULARY, pretrained=str(tmp_path / name), text_format=WORDS).eval()
        assert ours.weightless({"config": {"model_type": "t5"}}, {}) == {"config": {"model_type": "t5"}}
        config = ours.weightless(given, ours.sizes())
        other = EncoderDecoderLM(VOCABULARY, config=config["config"], text_format=WORDS).eval()
        other.load_state_dict(ours.state_dict(), strict=True)
        logits = []
        for model in (ours, other):
            memory = model.encode(model.embed(ids), mask)
            logits.append(model.predict_words(model.decode(model.embed(said), memory, mask)))
        assert torch.equal(*logits)
        assert config["pretrained"] is None
        assert other.start_id == 7


def test_once_a_fusion_reads_texts_are_only_embedded_and_the_decoder_trains():
    for kind in ("t5", "pegasus"):
        model, (ids, mask) = EncoderDecoderLM(VOCABULARY, config=config_of(kind), text_format=WORDS), texts()
        states = model(ids, mask)
        assert not model.predicts_words
        assert not model.is_incremental
        assert "both ways" in model.abilities.not_causal
        assert not any(parameter.requires_grad for parameter in model.decoder.parameters())
        states.embeds.sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        torch.testing.assert_close(states.pooled[1], states.embeds[1, :4].mean(0))
        model.start_reading_on()
        assert model.predicts_words
        assert model.is_incremental
        assert model.abilities.not_causal is None
        fixed = [name for name, parameter in model.decoder.named_parameters() if not parameter.requires_grad]
        assert fixed == (["embed_positions.weight"] if kind == "pegasus" else [])  # sines
        assert torch.equal(model(ids, mask).embeds, model.embed(ids))
        assert model.extend(ids, mask[:, None].expand(-1, 7, -1), ids, None)[1] == ()


def test_a_frozen_model_draws_nothing_and_passes_gradients_on():
    model = EncoderDecoderLM(
        VOCABULARY, config=config_of("t5") | {"dropout_rate": 0.5}, text_format=WORDS, frozen=True
    ).train()
    model.start_reading_on()
    embeds, mask = torch.randn(1, 4, 32, requires_grad=True), torch.ones(1, 4)
    said = [model.predict_words(model.decode(model.begin(embeds), model.encode(embeds, mask), mask)) for _ in range(2)]
    assert torch.equal(*said)
    said[0].sum().backward()
    assert embeds.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_layers_that_are_computed_anew_give_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = EncoderDecoderLM(
            VOCABULARY, config=config_of("bart"), text_format=WORDS, checkpointing=checkpointing
        ).train()
        model.start_reading_on()
        ids, mask = texts()
        memory = model.encode(model.embed(ids), mask)
        model.predict_words(model.decode(model.embed(texts(3)[0]), memory, mask)).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-5)


def test_what_begins_and_ends_texts_is_the_model_s_or_the_tokenizer_s():
    assert toy_encoder_decoder().start_id == CLS
    assert toy_encoder_decoder().reads_start
    assert not EncoderDecoderLM(VOCABULARY, config=config_of("t5"), text_format=NO_START).reads_start
    assert toy_encoder_decoder(config={"eos_token_id": [SEP, 9, 999]}).ends == (SEP, 9)
    assert toy_encoder_decoder().ends == ()
    assert toy_encoder_decoder().max_length is None
    assert EncoderDecoderLM(VOCABULARY, config=config_of("bart"), text_format=WORDS).max_length == 40
    assert EncoderDecoderLM(VOCABULARY, config={"model_type": "t5", "pad_token_id": 5, **T5}).start_id == 5


def test_wrong_files_and_tokenizers_are_told(tmp_path):
    with pytest.raises(DataError, match=r"text_encoder\.pretrained: .* holds no config\.json"):
        EncoderDecoderLM(VOCABULARY, pretrained=str(tmp_path), text_format=WORDS)
    library("t5").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"tokenizer: has 70 tokens, but the language model embeds 60"):
        EncoderDecoderLM(70, pretrained=str(tmp_path), text_format=WORDS)
    with pytest.raises(ConfigError, match=r"tokenizer: ends texts with the id 9, but the language model with 3"):
        EncoderDecoderLM(VOCABULARY, pretrained=str(tmp_path), text_format=TextFormat(CLS, 9, PAD, None, 1))
