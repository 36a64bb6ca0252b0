"""Towers: token layouts of several timm families, text pooling, freezing, local weights, and clear refusals."""

import pytest
import timm
import torch
from transformers import BertConfig, BertModel

from fusionkit.encoders.blip import BLIPTextEncoder
from fusionkit.encoders.image import TimmEncoder
from fusionkit.encoders.regions import RegionEncoder
from fusionkit.encoders.text import HFTextEncoder
from fusionkit.errors import ConfigError, DataError
from tests.toys import toy_regions

BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}

TINY_SWIN = {"pool": "mean", "img_size": 64, "window_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)}


@pytest.mark.parametrize(
    ("name", "options", "tokens"),
    [
        ("test_vit", {"img_size": 64, "dynamic_img_size": True}, 1 + 16),
        ("test_vit", {"img_size": 64, "reg_tokens": 3, "pool": "mean"}, 4 + 16),
        ("test_resnet", {"pool": "mean"}, 4),
        ("test_resnet", {"pool": "mean", "stage": 2, "grid_size": 8}, 64),
        ("test_convnext", {"pool": "mean"}, 4),
        ("swin_tiny_patch4_window7_224", TINY_SWIN, 64),
    ],
)  # fmt: skip
def test_any_timm_layout_becomes_tokens_that_all_get_gradient(name, options, tokens):
    encoder = TimmEncoder(name, **options)
    out = encoder(torch.randn(2, 3, 64, 64))
    assert out.embeds.shape == (2, tokens, encoder.hidden_size)
    assert out.pooled.shape == (2, encoder.hidden_size)
    (out.embeds.square().sum() + out.pooled.square().sum()).backward()
    assert not [n for n, p in encoder.named_parameters() if p.grad is None]


def test_regions_become_tokens_and_padding_is_not_pooled():
    encoder = RegionEncoder(12, 8, dropout=0.0)
    regions = toy_regions(3)
    tokens = encoder(regions)
    assert tokens.embeds.shape == (3, 6, 8)
    for row, count in enumerate(regions.mask.sum(dim=1).tolist()):
        torch.testing.assert_close(tokens.pooled[row], tokens.embeds[row, :count].mean(dim=0))
    moved = regions._replace(positions=regions.positions + 0.1)
    assert not torch.equal(encoder(moved).embeds, tokens.embeds)


def test_feature_map_is_read_row_by_row():
    encoder = TimmEncoder("test_resnet", pool="mean", stage=2).eval()
    image = torch.randn(1, 3, 64, 64)
    states = encoder(image).embeds[0].unflatten(0, (8, 8))
    torch.testing.assert_close(states.permute(2, 0, 1), encoder.backbone(image)[-1][0])


def test_another_image_size_is_taken_with_dynamic_img_size():
    encoder = TimmEncoder("test_vit", img_size=64, dynamic_img_size=True)
    assert encoder(torch.randn(1, 3, 96, 64)).embeds.shape[1] == 1 + 24


def test_local_weights_are_loaded(tmp_path):
    reference = timm.create_model("test_vit", num_classes=5)
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    encoder = TimmEncoder("test_vit", weights=str(tmp_path / "w.pth"))
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[name])


def test_weights_under_other_names_are_matched_by_order_or_refused(tmp_path):
    source = timm.create_model("test_resnet", num_classes=5).state_dict()
    foreign = {f"x.{i}.{name.rpartition('.')[2]}": t for i, (name, t) in enumerate(source.items())}
    torch.save(foreign, tmp_path / "good.pth")
    encoder = TimmEncoder("test_resnet", pool="mean", weights=str(tmp_path / "good.pth"), match_by_order=True)
    assert torch.equal(encoder.backbone.state_dict()["conv1.0.weight"], source["conv1.0.weight"])
    torch.save(dict(list(foreign.items())[1:]), tmp_path / "bad.pth")
    with pytest.raises(DataError, match="does not fit"):
        TimmEncoder("test_resnet", pool="mean", weights=str(tmp_path / "bad.pth"), match_by_order=True)


def test_frozen_towers_keep_statistics_and_get_no_gradient():
    image = TimmEncoder("test_resnet", pool="mean", grid_size=2, frozen=True).train()
    before = {n: t.clone() for n, t in image.backbone.state_dict().items()}
    image(torch.randn(4, 3, 64, 64)).embeds.sum().backward()
    assert all(torch.equal(t, before[n]) for n, t in image.backbone.state_dict().items())
    assert image.position.grad is not None
    text = HFTextEncoder(20, config=BERT, frozen=True).train()
    assert not any(m.training for m in text.backbone.modules())
    assert not text(torch.ones(1, 4).long(), torch.ones(1, 4)).embeds.requires_grad


def test_lower_layers_equal_the_full_models_hidden_states(tmp_path):
    torch.manual_seed(0)
    full = BertModel(BertConfig(vocab_size=20, **{k: v for k, v in BERT.items() if k != "model_type"})).eval()
    full.save_pretrained(tmp_path)
    ids, mask = torch.randint(20, (2, 5)), torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    lower = HFTextEncoder(20, pretrained=str(tmp_path), num_layers=2).eval()
    expected = full(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(lower(ids, mask).embeds[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)


def test_added_tokens_stand_behind_those_of_the_model(tmp_path):
    fields = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=50, **fields)).save_pretrained(tmp_path)
    plain, more = (
        HFTextEncoder(50, pretrained=str(tmp_path)),
        BLIPTextEncoder(50, pretrained=str(tmp_path), added_tokens=2),
    )
    assert more.word_embeddings.weight[:50].equal(plain.word_embeddings.weight)
    assert len(more.word_embeddings.weight) == 52
    assert (
        len(BLIPTextEncoder(50, config={"model_type": "bert", **fields}, added_tokens=2).word_embeddings.weight) == 52
    )


def test_mean_pooling_leaves_padding_out():
    encoder = HFTextEncoder(20, config=BERT, pool="mean").eval()
    ids, mask = torch.randint(20, (1, 5)), torch.tensor([[1, 1, 1, 0, 0]])
    out = encoder(ids, mask)
    torch.testing.assert_close(out.pooled, out.embeds[:, :3].mean(dim=1))


def test_a_causal_mask_is_obeyed():
    encoder = HFTextEncoder(20, config=BERT).eval()
    ids, causal = torch.randint(20, (1, 5)), torch.ones(5, 5).tril()[None]
    changed = ids.clone()
    changed[0, 4] = (ids[0, 4] + 1) % 20
    assert torch.equal(encoder(ids, causal).embeds[:, :4], encoder(changed, causal).embeds[:, :4])


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: TimmEncoder("vit_smal_patch16_224"), ConfigError, "did you mean 'vit_small_patch16_224'"),
        (lambda: TimmEncoder("test_resnet", pool="cls"), ConfigError, "image_encoder.pool=mean"),
        (lambda: TimmEncoder("test_vit", weights="none.pth"), DataError, "none.pth"),
        (lambda: TimmEncoder("test_resnet", pool="mean", depth=3), ConfigError, "depth"),
        (lambda: TimmEncoder("test_vit", num_heads=5), ConfigError, "num_heads"),
        (lambda: RegionEncoder(9, 8)(toy_regions(2)), ConfigError, "feature_size is 9, .* are 12 wide; set .*=12"),
        (lambda: HFTextEncoder(20, config={"hidden_size": 32}), ConfigError, "model_type"),
        (lambda: HFTextEncoder(20, config=BERT, num_layers=9), ConfigError, "num_layers"),
        (lambda: HFTextEncoder(20, pretrained="./nowhere"), DataError, "config.json"),
        (lambda: HFTextEncoder(20, config=BERT, pool="max"), ConfigError, "pool"),
    ],
)
def test_refusals_name_the_key_and_the_fix(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("size", [1, 28, 29, 30, 57])
def test_an_intermediate_size_is_what_it_says(size):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 20, "depth": 1, "num_heads": 2}
    encoder = TimmEncoder("vit_tiny_patch16_224", intermediate_size=size, **sizes)
    assert encoder.backbone.blocks[0].mlp.fc1.out_features == size


def test_an_intermediate_size_needs_a_width():
    with pytest.raises(ConfigError, match=r"beside image_encoder\.embed_dim"):
        TimmEncoder("vit_tiny_patch16_224", intermediate_size=29)
