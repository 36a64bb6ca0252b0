"""Pictures of any depth and with any transparency as RGB of 8 bits."""

import numpy as np
from PIL import Image

BACKGROUND = "white"  # of what is transparent: the page that such pictures are drawn for
BITS_PER_SAMPLE, SAMPLE_FORMAT, SIGNED = 258, 339, 2  # tags of a TIFF


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture as RGB: more than 8 bits are scaled by their depth, what is transparent shows `BACKGROUND`.

    Raises ValueError for numbers that do not fit their depth.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scaled(np.asarray(image), *_depth(image)).convert("RGB")
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")
    return image.convert("RGB")


def _depth(image: Image.Image) -> tuple[float, bool]:
    """The number that is white, and whether all bits count (none is a sign)."""
    if image.mode == "F":
        return 1.0, False
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16 if image.mode != "I" or image.format in ("PNG", "PPM") else 32,))[0]
    has_sign = tags.get(SAMPLE_FORMAT, (SIGNED if bits == 32 and not tags else 1,))[0] == SIGNED
    return 2.0 ** (bits - has_sign) - 1, bits == 32 and not has_sign


def _scaled(values: np.ndarray, white: float, is_unsigned: bool) -> Image.Image:
    """Grey levels (H, W) of 8 bits from numbers in 0..`white`."""
    if is_unsigned:
        values = values.view(np.uint32)  # PIL keeps them as if they had a sign
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white):
        raise ValueError(f"its numbers go from {low:g} to {high:g}, but 0 is black and {white:g} white")
    levels = (values * (255 / white)).round().astype(np.uint8)
    if low < high and levels.max() == 0:
        raise ValueError(f"its numbers go to {high:g}, and nothing is seen of them where {white:g} is white")
    return Image.fromarray(levels)
