"""What encoders can do is found by trying them out, without leaving a trace."""

import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from fusionkit.assembly.checks import check_image_size, check_text
from fusionkit.encoders.image import PixelEncoder, TimmEncoder
from fusionkit.encoders.probe import (
    abilities_of,
    differ,
    first_line,
    made_up_texts,
    probe_text,
    rehearse,
    undisturbed,
    unreached_parameters,
)
from fusionkit.encoders.text import HFTextEncoder
from fusionkit.errors import ConfigError
from fusionkit.types import TextFormat, Tokens

FORMAT = TextFormat(start=2, end=3, pad=0, mask=4, unknown=1)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZES["max_position_embeddings"] = 40


def tower(kind, pool="mean", **config):
    sizes = SIZES if kind != "xlnet" else {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "d_head": 16}
    return HFTextEncoder(60, config={"model_type": kind, **sizes, **config}, pool=pool, text_format=FORMAT)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "ernie", "gpt2", "llama"])
def test_what_is_causal_and_caches(kind):
    encoder = tower(kind)
    assert encoder.abilities.not_causal is None
    assert not encoder.abilities.reads_padding
    assert encoder.is_incremental


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("convbert", "a token sees those after it|Wrong shape"),  # as older transformers say it
        ("mobilebert", "a token sees those after it"),
        ("nystromformer", "a token sees those after it|Wrong shape"),
        ("deberta", "."),
        ("deberta-v2", "."),
        ("xlnet", "."),
        ("longformer", "."),
    ],
)
def test_what_is_not_causal_is_known_and_told_before_training(kind, reason):
    encoder = tower(kind, **({"attention_window": 8} if kind == "longformer" else {}))
    assert not encoder.is_incremental
    task = SimpleNamespace(needs=frozenset({"text", "causal"}))
    model = SimpleNamespace(text_encoder=encoder, fusion=None)
    with pytest.raises(
        ConfigError, match=rf"'captioning' needs text that does not see .* encoder {kind} .*\(({reason})"
    ):
        check_text("captioning", task, model, encoder.abilities)
    check_text("mlm", SimpleNamespace(needs=frozenset({"text"})), model, encoder.abilities)


def test_that_padding_is_read_is_told_once():
    with pytest.warns(UserWarning, match="text_encoder: convbert reads the padding beside a text"):
        assert tower("convbert").abilities.reads_padding


@pytest.mark.parametrize("kind", ["gpt2", "llama", "clip_text_model"])
def test_a_pooled_token_that_sees_no_other_is_refused(kind):
    with pytest.raises(ConfigError, match=rf"pool is 'cls', but the first token of {kind} sees .*pool to last or mean"):
        tower(kind, pool="cls")
    for pool in ("last", "mean"):
        texts = torch.randint(5, 60, (3, 7))
        texts[:, -1] = 3
        pooled = tower(kind, pool=pool).eval()(texts, torch.ones_like(texts)).pooled
        assert differ(pooled[0], pooled[1])


def test_embeddings_alone_pool_the_first_word_unless_vectors_are_compared():
    encoder = HFTextEncoder(60, config={"model_type": "bert", **SIZES | {"num_hidden_layers": 0}})
    assert not encoder.abilities.pools_text
    assert encoder.is_incremental
    task = SimpleNamespace(needs=frozenset({"feats"}))
    with pytest.raises(ConfigError, match=r"task 'itc' compares texts .* text_encoder.pool=mean"):
        check_text("itc", task, SimpleNamespace(text_encoder=encoder, fusion=None), encoder.abilities)
    alone = SimpleNamespace(encode_unimodal=len)
    check_text("itc", task, SimpleNamespace(text_encoder=encoder, fusion=alone), encoder.abilities)
    check_text("itc", task, SimpleNamespace(text_encoder=encoder, fusion=None), tower("bert").abilities)


@pytest.mark.parametrize("kind", ["mpnet", "rembert", "megatron-bert", "data2vec-text", "xlnet", "siglip_text_model"])
def test_what_no_text_reaches_is_frozen(kind):
    encoder = tower(kind)
    assert encoder.abilities.unreached
    texts = torch.randint(5, 60, (3, 7))
    tokens = encoder(texts, torch.ones_like(texts))
    (tokens.embeds.square().sum() + tokens.pooled.square().sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (name not in encoder.abilities.unreached)


@pytest.mark.parametrize(
    ("kind", "reason"), [("xmod", "cannot read plain texts"), ("bart", "no text encoder"), ("canine", ".")]
)
def test_what_cannot_read_texts_is_one_sentence(kind, reason):
    with pytest.raises(ConfigError, match=rf"text_encoder.*{reason}"):
        HFTextEncoder(60, config={"model_type": kind})


def test_a_probe_leaves_no_trace():
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Sequential(nn.Dropout(0.5)))
    module[1].eval()
    with undisturbed(module):
        assert not any(part.training for part in module.modules())
        module(torch.randn(3, 4))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert [part.training for part in module.modules()] == [True, True, False, False]
    assert not module[0].running_mean.any()


def test_weights_are_those_of_the_seed():
    def drawn():
        torch.manual_seed(5)
        encoder = tower("bert", pool="cls")
        return [*encoder.state_dict().values(), torch.rand(3)]

    torch.manual_seed(5)
    config = AutoConfig.for_model("bert", vocab_size=60, **SIZES)
    bare = AutoModel.from_config(config, attn_implementation="eager", add_pooling_layer=False)
    for theirs, ours in zip([*bare.state_dict().values(), torch.rand(3)], drawn(), strict=True):
        assert torch.equal(ours, theirs)
    assert all(p.grad is None and p.requires_grad for p in tower("bert").parameters())
    assert tower("bert").training
    assert tower("bert").eval().train().training


class Words(nn.Module):
    """Somebody's own encoder: the mean of words up to a place, or of all of them, and a part that is not read."""

    max_length = None

    def __init__(self, is_causal=True, reach=1.0):
        super().__init__()
        self.word_embeddings, self.unread = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.is_causal, self.reach = is_causal, reach

    def forward(self, input_ids, attention_mask):
        states = self.word_embeddings(input_ids)
        if attention_mask.dim() == 2:
            attention_mask = attention_mask[:, None].expand(-1, states.shape[1], -1)
        elif not self.is_causal:
            attention_mask = torch.ones_like(attention_mask)
        weights = attention_mask.float() * self.reach + torch.eye(states.shape[1])
        states = weights @ states / weights.sum(dim=2, keepdim=True)
        return Tokens(states, attention_mask, states[:, 0])


def test_ones_own_encoder_is_tried_out_too():
    encoder = Words()
    found = abilities_of(encoder, pad_token_id=0)
    assert found.pools_text
    assert found.not_causal is None
    assert not encoder.unread.weight.requires_grad
    assert encoder.word_embeddings.weight.requires_grad
    assert abilities_of(Words(is_causal=False), 0).not_causal == "a token sees those after it"
    assert not abilities_of(Words(reach=0.0), 0).pools_text
    assert abilities_of(SimpleNamespace(abilities="its own"), 0) == "its own"
    broken = Words()
    broken.word_embeddings = nn.Embedding(2, 8)
    with pytest.raises(ConfigError, match="text_encoder: Words cannot read plain texts"):
        abilities_of(broken, 0)


class Forgetful(Words):
    """Reads all words without a causal mask, and none but its own with one."""

    def forward(self, input_ids, attention_mask):
        self.reach = float(attention_mask.dim() == 2)
        return super().forward(input_ids, attention_mask)


class Numberless(Words):
    def forward(self, input_ids, attention_mask):
        tokens = super().forward(input_ids, attention_mask)
        return tokens._replace(embeds=tokens.embeds / 0) if attention_mask.dim() == 3 else tokens


def test_a_causal_text_sees_what_is_before():
    assert probe_text(Forgetful(), 0).not_causal == "a token does not see those before it"
    assert probe_text(Numberless(), 0).not_causal == "its states are no numbers"


def test_made_up_texts_differ_in_one_place_each():
    encoder = Words()
    for encoder.max_length, length in ((None, 6), (6, 5), (4, 3), (1, 3), (100, 6)):
        texts = made_up_texts(encoder, pad_token_id=19)
        assert texts.shape == (4, length)
        assert set(texts.flatten().tolist()) == {17, 18}
        differs = (texts != texts[0]).int()
        assert not differs[1, [0, -1]].any()
        assert differs[1].any()
        assert differs[2].nonzero().flatten().tolist() == [0]
        assert differs[3].nonzero().flatten().tolist() == [length - 1]


def test_a_difference_of_rounding_is_none():
    states = torch.tensor([1.0, 100.0])
    assert not differ(states, states + 5e-4)
    assert differ(states, states + 5e-3)
    assert differ(states, states - 5e-3)


def test_parameters_that_no_output_was_computed_from():
    used, shared, frozen = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    module = nn.ModuleDict({"used": used, "shared": shared, "idle": nn.Linear(2, 2), "frozen": frozen})
    first = shared(torch.ones(1, 2))
    assert unreached_parameters(module, [first, used(first)]) == ["idle.weight", "idle.bias"]
    assert "used.weight" in unreached_parameters(module, [first])
    assert len(unreached_parameters(module, [first.detach()])) == 6


def test_a_rehearsal_costs_no_memory_and_leaves_no_trace():
    module = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Dropout(0.5))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    output, twin = rehearse(module, lambda twin, pixels: twin(pixels), 2, 3, 8, 8)
    assert output.shape == (2, 4, 7, 7)
    assert unreached_parameters(twin, [output]) == []
    assert not twin.training
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert rehearse(module, lambda twin, pixels: pixels.sum().item(), 1) is None  # torch 2.10 to 2.14
    with torch.device("meta"):
        assert rehearse(nn.Linear(3, 2), lambda twin, x: twin(x), 5, 3)[0].shape == (5, 2)


def test_the_first_line_of_an_error():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyError("gelu_3")) == "'gelu_3' is not known"
    assert first_line(ValueError("fields:\n  two are wrong\nfor one")) == "fields: two are wrong"
    assert first_line(AssertionError()) == "AssertionError"


IDLE = [
    ("vit_base_patch16_siglip_224", {"img_size": 64, "embed_dim": 32, "depth": 1, "num_heads": 2}),
    ("mobilenetv3_small_050", {}),
    ("mobilenetv4_conv_small_035", {}),
    ("ghostnet_050", {}),
    ("lcnet_035", {}),
    ("test_vit3", {}),
]


@pytest.mark.parametrize(("name", "options"), IDLE)
def test_no_part_of_an_image_encoder_is_without_a_gradient(name, options):
    encoder = TimmEncoder(name, pool="mean", **options)
    assert not all(p.requires_grad for p in encoder.parameters())
    tokens = encoder(torch.randn(2, 3, 64, 64) if options or "vit" not in name else torch.randn(2, 3, 160, 160))
    (tokens.embeds.square().sum() + tokens.pooled.square().sum()).backward()
    for parameter in encoder.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad


def test_a_class_token_that_is_not_declared_is_none_of_the_patches():
    encoder = TimmEncoder("volo_d1_224", pool="cls", img_size=64).eval()
    assert encoder.num_prefix_tokens == 1
    tokens = encoder(torch.randn(2, 3, 64, 64))
    assert torch.equal(tokens.pooled, tokens.embeds[:, 0])
    assert encoder.corners(torch.zeros(2, 3, 64, 64), tokens).shape == (2, 1 + 16, 4)
    encoder.pool = "mean"
    mean = encoder(torch.randn(1, 3, 64, 64))
    assert torch.allclose(mean.pooled, mean.embeds[:, 1:].mean(dim=1))
    assert TimmEncoder("test_vit", pool="mean", img_size=(32, 64)).num_prefix_tokens == 1
    assert TimmEncoder("test_resnet", pool="mean").num_prefix_tokens == 0


def test_images_that_an_encoder_cannot_read_are_told_at_build():
    with pytest.raises(ConfigError, match="in_chans is 1, but images are read with 3 channels"):
        TimmEncoder("test_resnet", pool="mean", in_chans=1)
    with pytest.raises(ConfigError, match="coat_tiny gives several grids"):
        TimmEncoder("coat_tiny", pool="mean")
    fixed = TimmEncoder("vit_tiny_patch16_224", img_size=32, depth=1)
    with pytest.raises(ConfigError, match=r"data.image_size is 64, .* does not read such images .*height.*img_size"):
        check_image_size(fixed, 64)
    check_image_size(fixed, 32)
    check_image_size(TimmEncoder("vit_tiny_patch16_224", img_size=32, depth=1, dynamic_img_size=True), 64)
    with pytest.raises(ConfigError, match=r"image_encoder.grid_size squared is 4, but an image gives 16"):
        check_image_size(TimmEncoder("test_resnet", pool="mean", grid_size=2), 128)
    check_image_size(TimmEncoder("test_resnet", pool="mean", grid_size=4), 128)


class Pixels(PixelEncoder):
    """Somebody's own encoder of pixels, with a part that is not read."""

    def __init__(self, is_read_by_number=False):
        super().__init__()
        self.patches, self.unread = nn.Conv2d(3, 8, 4, 4), nn.Linear(2, 2)
        self.is_read_by_number = is_read_by_number

    def forward(self, pixel_values):
        states = self.patches(pixel_values).flatten(2).transpose(1, 2)
        if self.is_read_by_number and states.sum().item() > 0:
            states = states[:, 1:]
        return Tokens(states, None, states.mean(dim=1))


def test_ones_own_image_encoder_is_tried_out_too():
    encoder = Pixels()
    check_image_size(encoder, 16)
    assert [name for name, p in encoder.named_parameters() if not p.requires_grad] == ["unread.weight", "unread.bias"]
    number = Pixels(is_read_by_number=True)
    check_image_size(number, 16)
    assert all(p.requires_grad for p in number.parameters())
    with pytest.raises(ConfigError, match=r"data.image_size is 2, but"):
        check_image_size(encoder, 2)
