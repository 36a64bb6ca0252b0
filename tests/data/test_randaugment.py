"""RandAugment's operations against the published formulas, the two published bugs among them."""

import random

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from fusionkit.data.randaugment import (
    STYLES,
    Style,
    auto_contrast,
    overflowing_auto_contrast,
    overflowing_sharpness,
    rand_augment,
    sharpness,
    solarize_add,
)


def noise(low: int = 0, high: int = 255) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(low, high + 1, (24, 32, 3), dtype=np.uint8))


OPERATIONS = {f"{name} {getattr(op, 'func', op).__name__}": op for name in STYLES for op in sum(STYLES[name][:2], ())}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_the_size_and_all_but_the_identity_change_something(name):
    image = noise(20, 200)
    changed = OPERATIONS[name](image, 0.7, random.Random(0))
    assert (changed.size, changed.mode) == (image.size, "RGB")
    assert (changed.tobytes() == image.tobytes()) == name.endswith("identity")


def test_published_sets():
    """Ten operations in ALBEF and fourteen in ViLT; at M = 7 of 10 the enhancing factor is 1.36, at 9 of 30 it is 0.64."""
    assert {name: len(style.colors + style.geometry) for name, style in STYLES.items()} == {
        "albef": 10,
        "albef_published": 10,
        "vilt": 14,
    }
    image = noise()
    for style, magnitude, factor in (("albef", 7, 1.36), ("vilt", 9, 0.64)):
        only = STYLES[style]._replace(colors=(sharpness,), probability=1.0)
        expected = ImageEnhance.Sharpness(image).enhance(factor)
        assert rand_augment(image, only, 1, magnitude, False, random.Random(0)).tobytes() == expected.tobytes()


def test_each_operation_is_done_with_the_styles_probability():
    def mark(image, strength, rng):
        return image + 1

    done = [rand_augment(0, Style((mark,), (), 0.5, 10), 2, 7, False, random.Random(seed)) for seed in range(2000)]
    assert np.bincount(done) / 2000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_the_published_auto_contrast_negates_in_uint8():
    """`-low * scale` with a uint8 `low` is (256 - low) * scale: right for low = 0, else nearly white."""
    pixels = np.asarray(noise(30, 200))
    low, high = pixels.min(axis=(0, 1)).astype(int), pixels.max(axis=(0, 1)).astype(int)
    published = ((pixels + (256 - low)) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    found = overflowing_auto_contrast(noise(30, 200), 0.7, random.Random(0))
    assert np.array_equal(np.asarray(found), published)
    assert published.min() == 255
    assert np.asarray(auto_contrast(noise(30, 200), 0.7, random.Random(0))).mean() == pytest.approx(127, abs=3)
    right = np.asarray(overflowing_auto_contrast(noise(), 0.7, random.Random(0))).astype(int)
    assert abs(right - np.asarray(ImageOps.autocontrast(noise())).astype(int)).max() <= 1


def test_the_published_sharpness_wraps_around():
    image = noise()
    right = np.asarray(sharpness(image, 0.7, random.Random(0))).astype(int)
    wrapped = np.asarray(overflowing_sharpness(image, 0.7, random.Random(0))).astype(int)
    clipped = (right == 0) | (right == 255)
    assert abs(right - wrapped)[1:-1, 1:-1][~clipped[1:-1, 1:-1]].max() <= 1
    assert np.array_equal(wrapped[0], np.asarray(image)[0])
    assert (abs(right - wrapped)[clipped] > 128).mean() > 0.5  # dark where it should be bright


def test_solarize_add_brightens_and_turns_what_is_then_bright():
    pixels = np.asarray(noise()).astype(int)
    added = (pixels + 33).clip(0, 255)
    expected = np.where(added < 128, added, 255 - added)
    assert np.array_equal(np.asarray(solarize_add(noise(), 0.3, random.Random(0))), expected)
