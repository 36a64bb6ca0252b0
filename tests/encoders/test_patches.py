"""Patches alone (ViLT): canvases with padding, and random subsets of patches."""

import pytest
import torch

from fusionkit.encoders.patches import PatchEncoder, random_subset
from fusionkit.errors import ConfigError

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
