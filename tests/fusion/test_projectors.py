"""What a language model reads in an image's place, by hand where a formula gives it."""

import pytest
import torch
import torch.nn.functional as F

from fusionkit.errors import ConfigError
from fusionkit.fusion.projectors import MLP, Linear, Perceiver, PixelShuffle, Pooled, QFormer
from fusionkit.types import Tokens

IMAGE, HIDDEN = 6, 8


def image(tokens=5, mask=None, seed=0):
    embeds = torch.randn(2, tokens, IMAGE, generator=torch.Generator().manual_seed(seed))
    return Tokens(embeds, mask, embeds.mean(1))


def build(kind, **options):
    torch.manual_seed(0)
    return kind(IMAGE, HIDDEN, **options)


def test_linear_maps_each_token_but_the_first():
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    projector = build(Linear, skip=2)
    embeds, kept = projector(image(mask=mask))
    torch.testing.assert_close(embeds, image().embeds[:, 2:] @ projector.map.weight.T + projector.map.bias)
    assert kept.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert build(Linear)(image())[1] is None
    assert projector.count(5) == 3
    for skip, tokens in ((5, 5), (-1, 5)):
        with pytest.raises(
            ConfigError, match=rf"fusion\.projector\.skip is {skip}, but an image has 5 tokens; skip fewer"
        ):
            build(Linear, skip=skip).count(tokens)


def test_an_mlp_has_gelu_between_its_maps():
    projector = build(MLP)
    first, second = projector.map[0], projector.map[2]
    expected = second(F.gelu(first(image().embeds[:, 1:])))
    torch.testing.assert_close(build(MLP, skip=1)(image())[0], expected)
    assert [type(part).__name__ for part in build(MLP, depth=3).map] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert len(build(MLP, depth=1).map) == 1


def test_the_pooled_vector_becomes_tokens():
    projector = build(Pooled, tokens=3)
    embeds, mask = projector(image())
    assert embeds.shape == (2, 3, HIDDEN)
    assert mask is None
    assert projector.count(99) == 3
    flat = projector.map[2](projector.map[0](image().pooled).tanh())
    torch.testing.assert_close(embeds[:, 1], flat[:, HIDDEN : 2 * HIDDEN])
    assert projector.map[0].out_features == 3 * HIDDEN // 2
    assert build(Pooled, tokens=1).map[0].out_features == IMAGE


def test_neighbours_are_joined_row_by_row():
    """Idefics3's order: a square's upper two tokens, then its lower two, one after the other in the channels."""
    projector = build(PixelShuffle, skip=1)
    projector.map = torch.nn.Identity()
    places = torch.cat([torch.tensor([-1.0]), torch.arange(16.0)])[None, :, None]
    joined, mask = projector(Tokens(places, None, places[:, 0]))
    assert mask is None
    assert joined[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert projector.count(17) == 4
    assert build(PixelShuffle, factor=4).count(64) == 4


@pytest.mark.parametrize(
    ("tokens", "options"), [(17, {}), (16, {"factor": 3}), (1, {"skip": 1}), (12, {}), (5, {"skip": -4})]
)
def test_tokens_that_make_no_square_are_refused(tokens, options):
    with pytest.raises(ConfigError, match=r"fusion\.projector: the \d+ image tokens .* set fusion\.projector\.skip to"):
        build(PixelShuffle, **options).count(tokens)


def test_images_of_different_shapes_are_refused():
    with pytest.raises(ConfigError, match=r"PixelShuffle joins neighbours of a square, but these images"):
        build(PixelShuffle)(image(4, torch.ones(2, 4)))


@pytest.mark.parametrize("kind", [QFormer, Perceiver])
def test_learnt_queries_read_the_real_tokens_in_any_order(kind):
    options = {"num_queries": 3, "width": 12} if kind is QFormer else {"num_latents": 3}
    projector = build(kind, num_heads=2, **options).eval()
    seen = image()
    embeds, mask = projector(seen)
    assert embeds.shape == (2, 3, HIDDEN)
    assert mask is None
    assert projector.count(5) == 3
    shuffled = seen._replace(embeds=seen.embeds[:, [3, 1, 4, 0, 2]])
    torch.testing.assert_close(projector(shuffled)[0], embeds)
    hidden = torch.tensor([[1, 1, 1, 0, 0]] * 2)
    torch.testing.assert_close(
        projector(seen._replace(mask=hidden))[0], projector(seen._replace(embeds=seen.embeds[:, :3]))[0]
    )
    assert not torch.allclose(projector(seen._replace(mask=hidden))[0], embeds)
    assert not torch.allclose(embeds[0], embeds[1])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Pooled, "tokens"),
        (MLP, "depth"),
        (PixelShuffle, "factor"),
        (PixelShuffle, "depth"),
        (QFormer, "num_queries"),
        (QFormer, "cross_every"),
        (Perceiver, "num_latents"),
    ],
)
def test_numbers_below_one_are_refused(kind, name):
    with pytest.raises(ConfigError, match=rf"fusion\.projector\.{name} is 0, but has to be at least 1"):
        build(kind, **{name: 0})


def test_what_is_not_said_is_as_small_models_have_it():
    """The numbers that configurations of one's own leave out: what they stand for does not change unasked."""
    queries, latents = QFormer(8, 16), Perceiver(8, 16)
    assert (len(queries.layers), len(latents.layers)) == (2, 2)
    assert (queries.queries.shape, latents.latents.shape) == ((32, 16), (64, 16))
    shapes = [
        [tuple(part.shape) for part in kind(8, 16).parameters() if part.dim() == 2] for kind in (MLP, PixelShuffle)
    ]
    assert shapes == [[(16, 8), (16, 16)], [(16, 32)]]
