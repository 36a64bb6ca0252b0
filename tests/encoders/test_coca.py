"""CoCa's towers: words that see no later ones and not the token behind them, which sees the words; images read by queries."""

import pytest
import torch

from fusionkit.assembly.parts import build_model
from fusionkit.contracts.encoders import image_tokens, text_tokens
from fusionkit.encoders.coca import AttentionPooledEncoder, CausalTextEncoder
from fusionkit.encoders.probe import abilities_of, causal_mask, probe_text
from fusionkit.encoders.text import HFTextEncoder
from fusionkit.errors import ConfigError
from fusionkit.types import TextFormat
from tests.toys import CLS, MASK, PAD, SEP, VOCABULARY, toy_language_model, toy_rows

SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_length": 12}
SEES = pytest.mark.parametrize("sees_padding", [None, 0], ids=["itself", "padding"])
HF = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GPT2 = {"model_type": "gpt2", "hidden_size": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def encoder(**options):
    return CausalTextEncoder(VOCABULARY, **SIZES | options).eval()


def texts():
    rows = toy_rows(images=4, texts_per_image=1)
    return rows["input_ids"], rows["attention_mask"]


@SEES
def test_the_contract(sees_padding):
    text_tokens(lambda: encoder(sees_padding=sees_padding))
    found = abilities_of(encoder(sees_padding=sees_padding), PAD)
    assert (found.pools_text, found.reads_padding, found.not_causal, list(found.unreached)) == (True, False, None, [])
    assert found.is_causal


@SEES
def test_no_word_sees_a_later_one_or_the_token_behind_it(sees_padding):
    one, (ids, mask) = encoder(sees_padding=sees_padding), texts()
    with torch.no_grad():
        before = one(ids, mask)
        for place in range(1, ids.shape[1]):
            changed = ids.clone()
            changed[:, place] = (ids[:, place] + 7) % VOCABULARY
            after = one(changed, mask)
            assert after.embeds[:, :place].equal(before.embeds[:, :place])
            is_word = mask[:, place].bool()
            assert (after.pooled - before.pooled).abs().amax(dim=1)[is_word].min() > 1e-3  # the token sees every word
            assert after.pooled[~is_word].equal(before.pooled[~is_word])  # and no padding of the batch
        one.appended += torch.randn(32)
        one.positions[-1] += torch.randn(32)
        after = one(ids, mask)
    assert after.embeds.equal(before.embeds)
    assert (after.pooled - before.pooled).abs().amax(dim=1).min() > 1e-3


def test_published_padding_hides_the_token_from_itself_but_in_a_text_without_padding():
    """Two texts, one of all positions: only there the token's own key is read."""
    ids = torch.randint(5, VOCABULARY, (2, SIZES["max_length"]))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    ours, theirs = encoder(), encoder(sees_padding=0)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        ours, theirs = ours(ids, mask), theirs(ids, mask)
    assert ours.embeds.equal(theirs.embeds) or torch.allclose(ours.embeds, theirs.embeds, atol=1e-6)
    torch.testing.assert_close(ours.pooled[0], theirs.pooled[0])
    assert (ours.pooled[1] - theirs.pooled[1]).abs().max() > 1e-3


@SEES
def test_one_reading_is_the_causal_one_and_that_of_pieces(sees_padding):
    one, (ids, mask) = encoder(sees_padding=sees_padding), texts()
    causal = causal_mask(ids) * mask[:, None]
    real = mask.bool()
    with torch.no_grad():
        plain, whole = one(ids, mask), one(ids, causal)
        torch.testing.assert_close(plain.embeds[real], whole.embeds[real], rtol=1e-5, atol=1e-6)
        last = mask.sum(dim=1) - 1
        torch.testing.assert_close(whole.pooled, whole.embeds[torch.arange(len(last)), last])
        places = torch.arange(ids.shape[1]).expand_as(ids)
        first, past = one.extend(ids[:, :3], causal[:, :3, :3], places[:, :3], None)
        second, past = one.extend(ids[:, 3:5], causal[:, 3:5, :5], places[:, 3:5], past)
        third, _ = one.extend(ids[:, 5:], causal[:, 5:], places[:, 5:], past)
    pieces = torch.cat([first.embeds, second.embeds, third.embeds], dim=1)
    torch.testing.assert_close(pieces[real], whole.embeds[real], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "text_encoder.num_layers is 0"),
        ({"num_heads": 5}, "text_encoder.num_heads is 5, which does not divide"),
        ({"sees_padding": 99}, "text_encoder.sees_padding is 99"),
        ({"table_size": 9}, "tokenizer: has 60 tokens, but the text encoder embeds 9"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(options, message):
    with pytest.raises(ConfigError, match=message):
        encoder(**options)


def test_a_text_that_has_no_room_is_one_sentence():
    long = torch.full((1, 13), 5)
    for mask in (torch.ones_like(long), causal_mask(long)):
        with pytest.raises(ConfigError, match=r"13 tokens .* reads 12 at most"):
            encoder()(long, mask)


@pytest.mark.parametrize(
    ("build", "is_causal"),
    [
        (lambda: HFTextEncoder(VOCABULARY, config={"model_type": "bert", **HF}), False),
        (lambda: HFTextEncoder(VOCABULARY, config={"model_type": "bert", **HF}, num_layers=0), True),
        (lambda: HFTextEncoder(VOCABULARY, config={"model_type": "roberta", **HF}), False),
        (lambda: HFTextEncoder(VOCABULARY, config={"model_type": "clip_text_model", **HF}, pool="last"), True),
        (lambda: HFTextEncoder(VOCABULARY, config=GPT2, pool="last"), True),
        (toy_language_model, True),
    ],
    ids=["bert", "embeddings", "roberta", "clip", "gpt2", "llama"],
)
def test_whether_an_encoder_is_causal_by_itself_is_tried_out(build, is_causal):
    one = build().eval()
    assert one.is_causal == probe_text(one, PAD).is_causal == is_causal


def test_queries_read_an_image():
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}

    def build(**more):
        return AttentionPooledEncoder(
            "vit_tiny_patch16_224", num_queries=5, query_size=16, query_heads=4, **options, **more
        )

    image_tokens(build)
    one = build().eval()
    with torch.no_grad():
        tokens, states = one(torch.randn(2, 3, 32, 32)), one.states(torch.randn(2, 3, 32, 32))
        assert tokens.embeds.shape == (2, 4, 16)
        assert tokens.pooled.shape == (2, 16)
        shuffled = states[:, torch.randperm(states.shape[1])]  # queries know no places
        torch.testing.assert_close(one.tokens(states).embeds, one.tokens(shuffled).embeds, rtol=1e-4, atol=1e-5)
    for ask in (lambda: one.corners(states, tokens), lambda: one.grids(states, torch.zeros(1), torch.zeros(1, 4))):
        with pytest.raises(ConfigError, match="AttentionPooledEncoder has no tokens that stand for places"):
            ask()
    for odd, message in (
        ({"num_queries": 1}, "num_queries is 1"),
        ({"query_heads": 3}, "query_heads is 3, which does"),
    ):
        with pytest.raises(ConfigError, match=message):
            AttentionPooledEncoder("vit_tiny_patch16_224", **{"query_size": 16, **options, **odd})


def test_the_configuration_gives_the_tokenizers_size():
    from fusionkit.assembly.composition import training_config

    config = training_config("experiment=coca_tiny")
    model = build_model(config, VOCABULARY, TextFormat(CLS, SEP, PAD, MASK))
    assert model.text_encoder.word_embeddings.num_embeddings == VOCABULARY
    assert model.is_causal
    assert model.is_incremental
