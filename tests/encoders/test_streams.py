"""Encoders of streams: their contract, what order and padding are to them, and every fusion behind them."""

import pytest
import torch
from torch import nn

from fusionkit.contracts.encoders import image_tokens, toy_frames, toy_sounds
from fusionkit.contracts.toys import toy_fusion
from fusionkit.encoders.image import TimmEncoder
from fusionkit.encoders.patches import PatchEncoder
from fusionkit.encoders.recompute import MARK
from fusionkit.encoders.streams import FrameEncoder, SpectrogramEncoder, sines
from fusionkit.errors import ConfigError
from fusionkit.model.model import assemble
from fusionkit.types import Frames, Sounds
from tests.toys import WIDTH, choices, reads_on, toy_batch, toy_dims, toy_model, toy_task, toy_text_half

PIXELS = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 1, "num_heads": 4}


def frame_encoder(**options):
    return FrameEncoder(TimmEncoder("vit_tiny_patch16_224", **PIXELS), **{"max_length": 4} | options)


def sound_encoder(**options):
    return SpectrogramEncoder(WIDTH, **{"mels": 32, "patch": (16, 8), "max_length": 64} | options)


@pytest.mark.parametrize("options", [{}, {"layers": 1}, {"tokens_per_frame": 1}, {"tokens_per_frame": 4, "layers": 1}])
def test_frame_encoders_keep_the_contract(options):
    image_tokens(lambda: frame_encoder(**options))


def test_frames_of_a_canvas_encoder_keep_the_contract():
    image_tokens(lambda: FrameEncoder(PatchEncoder(WIDTH, 8, 32)))


@pytest.mark.parametrize("layers", [0, 1])
def test_spectrogram_encoders_keep_the_contract(layers):
    image_tokens(lambda: sound_encoder(layers=layers))


@pytest.mark.parametrize(("options", "tokens"), [({}, 17), ({"tokens_per_frame": 1}, 1), ({"tokens_per_frame": 4}, 4)])
def test_tokens_of_frames_stand_in_order_and_of_padding_are_hidden(options, tokens):
    torch.manual_seed(0)
    encoder, frames = frame_encoder(**options).eval(), toy_frames(3)
    found = encoder(frames)
    assert found.embeds.shape == (3, 3 * tokens, WIDTH)
    assert found.mask.view(3, 3, tokens).float().mean(dim=2).tolist() == frames.mask.tolist()
    assert not found.embeds[found.mask == 0].any()
    seen = encoder.encoder(frames.values[0])
    first = {17: seen.embeds, 1: seen.pooled[:, None]}.get(tokens)
    if first is None:
        grid = seen.embeds[:, 1:].unflatten(1, (4, 4))  # means over quarters
        first = torch.stack([grid[:, y : y + 2, x : x + 2].mean(dim=(1, 2)) for y in (0, 2) for x in (0, 2)], dim=1)
    torch.testing.assert_close(found.embeds[0].view(3, tokens, WIDTH), first + encoder.places[:3, None])
    torch.testing.assert_close(found.pooled[0], seen.pooled.mean(dim=0))


def test_layers_tell_the_order_of_frames_also_to_what_is_pooled():
    torch.manual_seed(0)
    frames = toy_frames(1)
    turned = Frames(frames.values.flip(1), frames.mask)
    plain, mixed = frame_encoder().eval(), frame_encoder(layers=1).eval()
    torch.testing.assert_close(plain(frames).pooled, plain(turned).pooled)
    assert (mixed(frames).pooled - mixed(turned).pooled).abs().max() > 1e-3


def test_padding_is_in_no_statistics_of_a_batch_norm():
    torch.manual_seed(0)
    frames = toy_frames(2)
    encoder = FrameEncoder(TimmEncoder("resnet10t", stage=2, pool="max", grid_size=4)).train()
    other = FrameEncoder(TimmEncoder("resnet10t", stage=2, pool="max", grid_size=4)).train()
    other.load_state_dict(encoder.state_dict())
    encoder(frames)
    longer = Frames(
        torch.cat([frames.values, 9 * torch.ones_like(frames.values)], dim=1),
        torch.cat([frames.mask, 0 * frames.mask], 1),
    )
    other(longer)
    for name, one in encoder.named_buffers():
        torch.testing.assert_close(one, dict(other.named_buffers())[name])


def test_sounds_are_placed_in_time_and_frequency():
    torch.manual_seed(0)
    encoder = sound_encoder(layers=0).eval()
    sounds = Sounds(torch.randn(1, 32, 20), torch.ones(1, 20, dtype=torch.long))  # 20 steps are three patches of 8
    found = encoder(sounds)
    assert found.embeds.shape == (1, 2 * 3, WIDTH)
    values = torch.nn.functional.pad(sounds.values, (0, 4))
    weight, bias = encoder.patches.weight.flatten(1), encoder.patches.bias
    for row in range(2):
        for column in range(3):
            patch = values[0, 16 * row : 16 * row + 16, 8 * column : 8 * column + 8].flatten()
            token = encoder.norm(weight @ patch + bias + encoder.bands[row, 0] + encoder.times[column])
            torch.testing.assert_close(found.embeds[0, 3 * row + column], token)
    cut = encoder(
        Sounds(sounds.values, (torch.arange(20) < 9).long()[None])
    )  # the second patch begins with the ninth step
    assert cut.mask.tolist() == [[1, 1, 0, 1, 1, 0]]
    torch.testing.assert_close(cut.pooled, cut.embeds[:, [0, 1, 3, 4]].mean(dim=1))


def test_sines_tell_every_place_from_every_other():
    places = sines(16, 33)
    assert places.shape == (16, 33)
    assert (torch.cdist(places, places) + 9 * torch.eye(16)).min() > 0.3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: frame_encoder(tokens_per_frame=3), "tokens_per_frame is 3, but has to be a square"),
        (lambda: frame_encoder(layers=1, num_heads=5), "num_heads is 5, which does not divide the width of 32"),
        (lambda: FrameEncoder(sound_encoder()), "SpectrogramEncoder reads sounds, but frames have pixels"),
        (
            lambda: frame_encoder(max_length=2)(toy_frames(1)),
            "a stream has 3 frames, but image_encoder.max_length is 2",
        ),
        (lambda: sound_encoder(mels=40), "mels is 40, no multiple of the 16 bands"),
        (lambda: sound_encoder()(toy_sounds(1, 48)), "mels is 32, but the source's stream has 48"),
        (
            lambda: sound_encoder(max_length=40)(toy_sounds(1, 32)),
            "a recording has 48 steps, but image_encoder.max_length is 40",
        ),
    ],
)
def test_what_does_not_fit_is_said(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_the_encoder_of_frames_is_built_without_its_files():
    inner = {"_target_": "fusionkit.encoders.image.TimmEncoder", "name": "resnet10t", "pretrained": True}
    config = {"_target_": "fusionkit.encoders.streams.FrameEncoder", "max_length": 3, "encoder": inner}
    found = FrameEncoder.weightless(config, frame_encoder().sizes())
    assert not found["encoder"].get("pretrained")
    assert found["max_length"] == 3
    assert config["encoder"]["pretrained"]
    foreign = {**config, "encoder": {"_target_": "someone.Encoder", "pretrained": True}}
    assert FrameEncoder.weightless(foreign, {}) == foreign


# a shuffle of a square grid is of images without padding
FUSIONS = sorted(set(choices("fusion")) - {"prefix_shuffle"})


@pytest.mark.parametrize("kind", ["frames", "sounds"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_learns_from_streams(fusion, kind):
    torch.manual_seed(0)
    build = toy_fusion(fusion)
    encoder = frame_encoder(tokens_per_frame=1, layers=1) if kind == "frames" else sound_encoder(layers=1)
    text = toy_text_half(build) if reads_on(build) else toy_model().text_encoder
    model = assemble(encoder, text, build, embed_size=16)
    images = toy_frames(4) if kind == "frames" else toy_sounds(4, 32)
    batch = {**toy_batch(4), kind: images}
    names = [name for name in ("vqa", "vqa_generative", "itc", "itm") if feeds(model, name)]
    assert names
    for name in names:
        task = toy_task(name, toy_dims(model))
        encoded = model.encode(batch, [task.reads] if task.encodes else [])
        model.zero_grad()
        task(model, batch, encoded, None).loss.backward()
        first = encoder.encoder.backbone.patch_embed.proj if kind == "frames" else encoder.patches
        assert first.weight.grad.abs().sum() > 0, name


def feeds(model, name):
    task = toy_task(name, toy_dims(model))
    return not task.needs - {"feats"} - model.fusion.provides


class Own(nn.Module):
    """An encoder of single images that says itself what of it is computed anew."""

    reads, hidden_size, asked = "pixel_values", WIDTH, 0

    def recompute(self) -> int:
        self.asked += 1
        return 5


@pytest.mark.parametrize("layers", [0, 2])
def test_layers_over_all_frames_are_computed_anew_beside_those_of_the_encoder(layers):
    own = FrameEncoder(Own(), layers=layers)
    assert (own.recompute(), own.encoder.asked) == (5 + layers, 1)
    timm = FrameEncoder(TimmEncoder("vit_tiny_patch16_224", **PIXELS | {"depth": 3}), layers=layers)
    assert timm.recompute() == 3 + layers
    assert all(hasattr(type(block), MARK) for block in (*own.layers, *timm.layers, *timm.encoder.backbone.blocks))
