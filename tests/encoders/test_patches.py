"""Patches alone (ViLT): canvases with padding, and random subsets of patches."""

import pytest
import torch
import torch.nn.functional as F

from fusionkit.encoders.patches import PatchEncoder, random_subset
from fusionkit.errors import ConfigError
from fusionkit.types import Pixels

WIDTH, PATCH = 8, 4


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return PatchEncoder(WIDTH, PATCH, image_size=16).eval()


def test_padding_is_masked_and_changes_nothing(encoder):
    image = torch.rand(1, 3, 8, 12) + 0.1
    canvas = torch.zeros(1, 3, 16, 16)
    canvas[:, :, :8, :12] = image
    alone, padded = encoder(image), encoder(canvas)
    assert alone.mask.tolist() == [[1] * 7]
    assert padded.mask.sum() == 7
    torch.testing.assert_close(padded.embeds[padded.mask.bool()], alone.embeds[0])


def test_another_shape_reads_the_same_corners(encoder):
    """The position grid is stretched with its corners in place."""
    tall = encoder._positions(torch.ones(1, 7, 2, dtype=torch.bool))
    grid = encoder.positions[0, 1:].view(4, 4, WIDTH)
    torch.testing.assert_close(tall[0, :, -1, 0], grid[-1, 0])
    torch.testing.assert_close(tall[0, :, 0, -1], grid[0, -1])


def test_training_keeps_a_subset(encoder):
    encoder.max_patches = 5
    pixels = torch.rand(2, 3, 16, 16) + 0.1
    assert encoder(pixels).embeds.shape[1] == 17
    assert encoder.train()(pixels).embeds.shape[1] == 6


def test_a_subset_takes_real_patches_first():
    is_patch = torch.zeros(40, 9, dtype=torch.bool)
    is_patch[:, :6] = True
    chosen = random_subset(is_patch, 4)
    assert is_patch.gather(1, chosen).all()
    assert len({tuple(row) for row in chosen.tolist()}) > 20
    assert is_patch.gather(1, random_subset(is_patch, 8)).sum(dim=1).tolist() == [6] * 40


def test_a_patch_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ConfigError, match=r"no multiple of image_encoder\.patch_size 5"):
        PatchEncoder(WIDTH, 5, image_size=16)


def canvases() -> Pixels:
    """Two images of 8 x 12 and 16 x 4 pixels, in which a patch is black."""
    values, mask = torch.rand(2, 3, 16, 12) + 0.1, torch.zeros(2, 16, 12, dtype=torch.bool)
    mask[0, :8], mask[1, :, :4] = True, True
    values[0, :, :4, 4:8] = 0
    return Pixels(values * mask[:, None], mask)


def test_a_mask_says_what_is_padding_and_black_is_none(encoder):
    pixels = canvases()
    tokens = encoder(pixels)
    assert tokens.mask[:, 1:].unflatten(1, (4, 3)).tolist() == [
        [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]],
        [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]],
    ]
    alone = encoder(Pixels(pixels.values[1:, :, :, :4], pixels.mask[1:, :, :4]))
    torch.testing.assert_close(tokens.embeds[1][tokens.mask[1].bool()], alone.embeds[0])
    assert not encoder(pixels.values).mask[0, 2]  # without a mask it is read off the values


def test_hidden_patches_stay_patches_even_painted_black(encoder):
    pixels = canvases()
    chosen = torch.zeros(2, 13, dtype=torch.bool)
    chosen[0, 3], chosen[1, 1 + 3] = True, True  # first row, last column; second row, first column
    hidden = encoder.hide(pixels, chosen, torch.zeros(3))
    assert hidden.mask.equal(pixels.mask)
    assert not hidden.values[0, :, :4, 8:].any()
    assert not hidden.values[1, :, 4:8, :4].any()
    assert (hidden.values != pixels.values).flatten(1).any(dim=1).all()
    assert encoder.hide(torch.ones(1, 3, 8, 8), torch.ones(1, 5).bool(), torch.zeros(3)).mask.all()


def test_places_are_parts_of_the_image_and_not_of_the_canvas(encoder):
    pixels = canvases()
    corners = encoder.corners(pixels, encoder(pixels))
    assert corners.shape == (2, 13, 4)
    assert not corners[:, 0].any()
    places = corners[:, 1:].unflatten(1, (4, 3))
    torch.testing.assert_close(places[0, 1, 2], torch.tensor([2 / 3, 1 / 2, 1, 1]))
    torch.testing.assert_close(places[1, 2, 0], torch.tensor([0, 1 / 2, 1, 3 / 4]))
    assert not places[0, 2:].any()
    assert not places[1, :, 1:].any()


def test_maps_become_pictures_of_each_image_s_own_shape(encoder):
    maps = torch.arange(26.0).view(2, 13)
    first, second, again = encoder.grids(canvases(), torch.tensor([0, 1, 0]), maps[[0, 1, 1]])
    assert first.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert second.tolist() == [[14], [17], [20], [23]]
    assert again.tolist() == [[14, 15, 16], [17, 18, 19]]


def test_a_subset_of_the_patches_has_no_places(encoder):
    encoder.max_patches = 5
    pixels = canvases()
    with pytest.raises(ConfigError, match="max_patches leaves out where an image's tokens lie"):
        encoder.corners(pixels, encoder.train()(pixels))


def test_what_stands_for_an_image_hangs_on_it_and_on_no_padding(encoder):
    """Of the class token alone all images would be alike, to ITC and to whoever distils them."""
    images = torch.rand(2, 3, 16, 16) + 0.1
    pooled = encoder(images).pooled
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3
    padded = F.pad(images, (0, 2 * PATCH))
    torch.testing.assert_close(encoder(padded).pooled, pooled)
    tokens = encoder(images).embeds
    torch.testing.assert_close(pooled, tokens.mean(dim=1))
