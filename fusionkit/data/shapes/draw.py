"""Draws a scene: antialiased shapes over a pale, cluttered background, and the tight box of each."""

import math

import numpy as np
from PIL import Image, ImageDraw

from fusionkit.data.shapes.scene import COLORS, Scene, Thing

Box = tuple[float, float, float, float]  # x, y, width, height in pixels
FINE = 4  # shapes are drawn this many times larger, then averaged down
REFERENCE = 64  # image side at which lines, dots and noise have their nominal width of one pixel

_STAR = [
    (radius * math.sin(i * math.pi / 5), 0.04 - radius * math.cos(i * math.pi / 5))
    for i, radius in enumerate((0.56, 0.25) * 5)
]
_OUTLINES = {  # corners for a diameter of 1, centred
    "square": [(-0.45, -0.45), (0.45, -0.45), (0.45, 0.45), (-0.45, 0.45)],
    "triangle": [(0.0, -0.5), (0.54, 0.45), (-0.54, 0.45)],
    "star": _STAR,
    "cross": [
        *((-0.18, -0.52), (0.18, -0.52), (0.18, -0.18), (0.52, -0.18), (0.52, 0.18), (0.18, 0.18)),
        *((0.18, 0.52), (-0.18, 0.52), (-0.18, 0.18), (-0.52, 0.18), (-0.52, -0.18), (-0.18, -0.18)),
    ],
}


def draw(scene: Scene, image_size: int) -> tuple[Image.Image, list[Box]]:
    """The picture, ``image_size`` pixels square, and the box of each thing in the scene's order."""
    rng = np.random.default_rng(scene.texture)
    canvas = _background(rng, image_size)
    boxes = []
    for thing in scene.things:
        mask, left, top = _mask(thing, image_size)
        x0, y0, x1, y1 = mask.getbbox() or (0, 0, 0, 0)  # never empty: every thing is pixels wide
        boxes.append((left + x0 / FINE, top + y0 / FINE, (x1 - x0) / FINE, (y1 - y0) / FINE))
        shade = np.clip(np.array(COLORS[thing.color]) + rng.integers(-10, 11, 3), 0, 255)
        canvas.paste(tuple(int(value) for value in shade), (left, top), mask.reduce(FINE))
    return canvas, boxes


def _mask(thing: Thing, image_size: int) -> tuple[Image.Image, int, int]:
    """The thing alone, ``FINE`` times enlarged, and the pixel of the picture where the mask's corner belongs."""
    reach = math.ceil(0.6 * thing.diameter * image_size) + 1
    left, top = int(thing.x * image_size) - reach, int(thing.y * image_size) - reach
    side = (2 * reach + 1) * FINE
    unit = thing.diameter * image_size * FINE
    cx, cy = (thing.x * image_size - left) * FINE, (thing.y * image_size - top) * FINE
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    if thing.shape in ("circle", "ring"):
        pen.ellipse((cx - unit / 2, cy - unit / 2, cx + unit / 2, cy + unit / 2), fill=255)
        if thing.shape == "ring":
            hole = 0.27 * unit
            pen.ellipse((cx - hole, cy - hole, cx + hole, cy + hole), fill=0)
        return mask, left, top
    cos, sin = math.cos(thing.angle) * unit, math.sin(thing.angle) * unit
    pen.polygon([(cx + x * cos - y * sin, cy + x * sin + y * cos) for x, y in _OUTLINES[thing.shape]], fill=255)
    return mask, left, top


def _background(rng: np.random.Generator, image_size: int) -> Image.Image:
    """A pale gradient with a faint tint and noise, thin grey lines and dots: nothing that could pass for a thing."""
    ramp = np.linspace(-1, 1, image_size)
    slope_x, slope_y = rng.uniform(-16, 16, 2)
    plane = slope_x * ramp[None, :] + slope_y * ramp[:, None] + rng.normal(0, 4, (image_size, image_size))
    color = rng.uniform(175, 228) + rng.uniform(-7, 7, 3)
    canvas = Image.fromarray(np.clip(plane[..., None] + color, 0, 255).astype(np.uint8))
    clutter = Image.new("L", (image_size * FINE, image_size * FINE))
    pen = ImageDraw.Draw(clutter)
    pixel = FINE * max(1.0, image_size / REFERENCE)
    dot = 0.7 * pixel
    for _ in range(rng.integers(1, 5)):
        ends = [float(value) for value in rng.uniform(0, image_size * FINE, 4)]
        pen.line(ends, fill=int(rng.integers(50, 140)), width=round(dot))
    for x, y in rng.uniform(0, image_size * FINE, (rng.integers(0, 9), 2)).tolist():
        pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=int(rng.integers(60, 150)))
    canvas.paste((110, 110, 110), (0, 0), clutter.reduce(FINE))
    return canvas
