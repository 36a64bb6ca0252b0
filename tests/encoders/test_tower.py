"""transformers' inner names, in all versions that pyproject allows (5.6 and newer): padding, positions, caches, tables."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from fusionkit.encoders import tower as towers
from fusionkit.encoders.bridgetower import BridgeTowerTextEncoder
from fusionkit.encoders.flava import FLAVATextEncoder
from fusionkit.encoders.text import HFTextEncoder
from fusionkit.encoders.tower import CACHES, build_tower, first_position, load_tower, read_on, word_table
from fusionkit.errors import ConfigError, DataError
from fusionkit.types import TextFormat

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZES["max_position_embeddings"] = 40
WORDS = TextFormat(start=2, end=3, pad=0, mask=4, unknown=1)


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "xlm", "opt", "data2vec-text", "xlm-roberta"])
def test_padding_is_the_tokenizers(kind):
    """[UNK], id 1, is a word that learns, and texts have the positions they have in the tower's own format."""
    torch.manual_seed(0)
    encoder = HFTextEncoder(60, config={"model_type": kind, **SIZES}, pool="mean", text_format=WORDS)
    assert encoder.word_embeddings.padding_idx == 0
    texts = torch.tensor([[2, 1, 9, 3]])
    encoder(texts, torch.ones_like(texts)).embeds.square().sum().backward()
    assert encoder.word_embeddings.weight.grad[[1, 2, 3, 9]].abs().amin(dim=1).gt(0).all()
    encoder.eval()
    with torch.no_grad():
        encoder.word_embeddings.weight[1] = encoder.word_embeddings.weight[9]
        states = encoder(torch.tensor([[2, 1, 9, 3], [2, 9, 9, 3]]), torch.ones(2, 4, dtype=torch.long)).embeds
    torch.testing.assert_close(states[0], states[1])  # [UNK] has a place like any word


@pytest.mark.parametrize(
    ("kind", "position", "longest"),
    [("bert", 0, 40), ("roberta", 1, 39), ("mpnet", 1, 39), ("xlm", 0, 40), ("xlnet", 0, None), ("t5", 0, None)],
)
def test_positions_are_counted_from_behind_the_padding(kind, position, longest):
    sizes = {"t5": {"d_model": 32, "num_layers": 1}, "xlnet": {"d_model": 32, "n_layer": 1, "n_head": 2}}.get(
        kind, SIZES
    )
    encoder = HFTextEncoder(60, config={"model_type": kind, **sizes}, pool="mean", text_format=WORDS)
    assert first_position(encoder.backbone) == position
    assert encoder.max_length == longest


def test_a_padding_that_is_a_word_too_learns_or_is_refused():
    shared = TextFormat(start=2, end=2, pad=2)
    assert (
        HFTextEncoder(60, config={"model_type": "bert", **SIZES}, text_format=shared).word_embeddings.padding_idx
        is None
    )
    with pytest.raises(
        ConfigError, match=r"roberta counts positions from its padding .* is a word, the start or the end"
    ):
        build_tower({"model_type": "roberta", **SIZES}, 60, shared)
    with pytest.raises(ConfigError, match=r"which has the id 1, but the tokenizer's has the id 0"):
        build_tower({"model_type": "roberta", "pad_token_id": 1, **SIZES}, 60, WORDS)
    build_tower({"model_type": "roberta", "pad_token_id": 0, **SIZES}, 60, WORDS)
    assert word_table(build_tower({"model_type": "bert", "pad_token_id": 5, **SIZES}, 60, WORDS)).padding_idx == 0
    assert word_table(build_tower({"model_type": "bert", "pad_token_id": 5, **SIZES}, 60, None)).padding_idx == 5


def test_a_pretrained_tower_keeps_its_positions(tmp_path):
    RobertaModel(RobertaConfig(vocab_size=60, pad_token_id=1, **SIZES)).save_pretrained(tmp_path / "roberta")
    BertModel(BertConfig(vocab_size=60, pad_token_id=7, **SIZES)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="the tokenizer's has the id 0; give it the tokenizer that it was made for"):
        load_tower(str(tmp_path / "roberta"), {}, WORDS)
    own = TextFormat(start=0, end=2, pad=1, mask=4, unknown=3)
    assert word_table(load_tower(str(tmp_path / "roberta"), {}, own)).padding_idx == 1
    assert word_table(load_tower(str(tmp_path / "roberta"), {}, None)).padding_idx == 1
    assert word_table(load_tower(str(tmp_path / "bert"), {}, WORDS)).padding_idx == 0


def test_the_cache_has_one_of_two_names(monkeypatch):
    torch.manual_seed(0)
    encoder = HFTextEncoder(60, config={"model_type": "bert", **SIZES}, text_format=WORDS).eval()
    name = encoder._cache_name
    assert name in CACHES
    texts, mask = torch.randint(5, 60, (2, 5)), torch.ones(5, 5).tril().expand(2, -1, -1)
    places = torch.arange(5).expand(2, -1)
    whole = encoder(texts, mask).embeds
    first, past = encoder.extend(texts[:, :3], mask[:, :3, :3], places[:, :3], None)
    second, past = encoder.extend(texts[:, 3:], mask[:, 3:], places[:, 3:], past)
    torch.testing.assert_close(torch.cat([first.embeds, second.embeds], dim=1), whole, rtol=1e-4, atol=1e-5)
    assert [keys.shape[2] for keys, _ in past] == [5, 5]
    # whichever of the names a version has, it is found; without either the text is read anew
    for known in CACHES:
        monkeypatch.setattr("fusionkit.encoders.text.read_on", renamed(known, name))
        other = HFTextEncoder(60, config={"model_type": "bert", **SIZES}, text_format=WORDS)
        assert other._cache_name == known
        assert other.is_incremental
    monkeypatch.setattr("fusionkit.encoders.text.read_on", renamed("neither", name))
    assert not HFTextEncoder(60, config={"model_type": "bert", **SIZES}, text_format=WORDS).is_incremental


def renamed(known, real):
    """``read_on`` of a version whose towers take keys and values by another name, and leave names that they do not know."""

    def read(tower, cache_name, past, **inputs):
        if cache_name == known:
            return read_on(tower, real, past, **inputs)
        return tower(**inputs).last_hidden_state, []

    return read


@pytest.mark.parametrize("kind", ["distilbert", "t5", "clip_text_model", "modernbert"])
def test_what_keeps_no_keys_and_values_is_not_incremental(kind):
    config = {"model_type": kind, **SIZES} if kind != "t5" else {"model_type": kind, "d_model": 32, "num_layers": 1}
    assert not HFTextEncoder(60, config=config, pool="mean", text_format=WORDS).is_incremental


@pytest.mark.parametrize(
    ("kind", "option"), [(FLAVATextEncoder, {"before_norm": True}), (BridgeTowerTextEncoder, {"top_layers": 2})]
)
def test_states_of_other_layers_are_not_kept(kind, option):
    encoder = kind(60, **option, config={"model_type": "bert", **SIZES}, text_format=WORDS)
    assert not encoder.is_incremental


def test_of_an_encoder_with_a_decoder_the_encoder_is_taken(tmp_path):
    sizes = {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 64, "vocab_size": 60}
    built = build_tower({"model_type": "t5", **sizes}, 60, WORDS)
    assert not [name for name, _ in built.named_parameters() if "decoder" in name]
    transformers.T5Model(transformers.T5Config(decoder_start_token_id=0, **sizes)).save_pretrained(tmp_path)
    assert type(load_tower(str(tmp_path), {}, WORDS)) is type(built)


def test_a_tower_without_fast_attention_is_built_with_plain(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fast = build_tower({"model_type": "bert", **SIZES}, 60, WORDS)
    assert fast.config._attn_implementation == "sdpa"
    plain = build_tower({"model_type": "xlnet", "d_model": 32, "n_layer": 1, "n_head": 2}, 60, WORDS)
    assert plain.config._attn_implementation == "eager"


def test_sizes_and_kinds_that_cannot_be_are_one_sentence():
    with pytest.raises(ConfigError, match=r"text_encoder.config: .*no sequence length limit"):
        build_tower({"model_type": "xlnet", **SIZES}, 60, WORDS)
    with pytest.raises(ConfigError, match=r"text_encoder.config: .*multiple"):
        build_tower({"model_type": "bert", **SIZES | {"hidden_size": 33}}, 60, WORDS)
    with pytest.raises(ConfigError, match=r"has no text encoder|cannot read plain texts|no plain table"):
        HFTextEncoder(60, config={"model_type": "vit_mae", "hidden_size": 32, "num_attention_heads": 4})
    with pytest.raises(ConfigError, match="num_layers: albert does not keep its layers one by one"):
        HFTextEncoder(60, config={"model_type": "albert", **SIZES, "embedding_size": 16}, num_layers=1)
    unusual = build_tower({"model_type": "bert", **SIZES}, 60, WORDS)
    unusual.embeddings.word_embeddings = nn.Identity()
    with pytest.raises(ConfigError, match="bert has no plain table of word embeddings"):
        towers.word_table(unusual)


def test_a_tower_fetches_neither_code_nor_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[object] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **_: fetched.append(address) or [])
    for kind in (
        {"model_type": "timm_wrapper", "architecture": "hf-hub:a/b"},
        {"model_type": "timm_backbone", "backbone": "a/b"},
    ):
        with pytest.raises(ConfigError):
            build_tower(kind, 60, WORDS)
    named = {"auto_map": {"AutoModel": "a/b--c.D"}, "_attn_implementation": "a/b", "use_kernels": True}
    built = build_tower({"model_type": "bert", **SIZES, **named, "extra": [{"backbone": "a/b", "x": 1}]}, 60, WORDS)
    assert built.config.extra == [{"x": 1}]
    assert not fetched


def test_a_tower_of_several_parts_is_one_sentence(monkeypatch):
    parts = BertModel(BertConfig(vocab_size=60, **SIZES))
    parts.config = type("Parts", (), {"model_type": "modernvbert"})()
    monkeypatch.setattr("fusionkit.encoders.text.build_tower", lambda *given: parts)
    with pytest.raises(ConfigError, match="modernvbert is no text encoder alone"):
        HFTextEncoder(60, config={"model_type": "modernvbert"})


@pytest.mark.parametrize(("kind", "most"), [("bert", 40), ("roberta", 39)])
def test_a_text_that_outgrows_the_positions_is_one_sentence(kind, most):
    encoder = HFTextEncoder(60, config={"model_type": kind, **SIZES}, text_format=WORDS).eval()
    texts = torch.full((1, most + 1), 9)
    told = f"come to {most + 1} tokens .* reads {most} at most"
    assert encoder(texts[:, 1:], torch.ones(1, most)).embeds.shape[1] == most
    with pytest.raises(ConfigError, match=told):
        encoder(texts, torch.ones_like(texts))
    mask, places = torch.ones(1, most + 1, most + 1).tril(), torch.arange(most + 1)[None]
    _, past = encoder.extend(texts[:, 1:], mask[:, 1:, 1:], places[:, :-1], None)
    with pytest.raises(ConfigError, match=told):
        encoder.extend(texts[:, :1], mask[:, -1:], places[:, -1:], past)


def test_a_folder_that_lacks_a_weight_is_told(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
    BertModel(BertConfig(vocab_size=60, **sizes), add_pooling_layer=False).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.0.attention.self.query.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    said = r"lacks 1 weights of a bert encoder, among them encoder\.layer\.0\..*query\.weight; give the directory of a whole"
    with pytest.raises(DataError, match=said):
        HFTextEncoder(60, pretrained=str(tmp_path))
