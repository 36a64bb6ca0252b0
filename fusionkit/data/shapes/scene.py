"""A scene of the shapes world: up to six coloured things on a plane, and how one is drawn by lot."""

import math
import random
from dataclasses import dataclass

COLORS = {
    "red": (222, 30, 36),
    "orange": (252, 134, 18),
    "yellow": (246, 222, 36),
    "green": (34, 150, 58),
    "cyan": (60, 204, 220),
    "blue": (36, 72, 214),
    "purple": (146, 48, 178),
    "black": (24, 24, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = {"small": (0.19, 0.22), "large": (0.33, 0.38)}  # diameter, as a fraction of the image side
HELD_OUT = (  # colour-shape pairs that only the compositional split shows or speaks of
    ("red", "triangle"),
    ("blue", "star"),
    ("green", "circle"),
    ("yellow", "cross"),
    ("purple", "square"),
    ("black", "ring"),
)
COUNT_WEIGHTS = (14, 22, 22, 18, 13, 11)  # of 1 to 6 things
MAX_LARGE = 3
TURN = 0.12  # radians at most
EXTENT = 1.1  # a turned square or star reaches this much further than its diameter says
GAP = 1.15  # distance of two centres, in sums of their radii
PLACING_TRIES = 40


@dataclass(frozen=True, slots=True)
class Thing:
    """One object; lengths are fractions of the image side, y grows downwards, the angle is in radians."""

    color: str
    shape: str
    size: str
    x: float
    y: float
    diameter: float
    angle: float


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows; ``texture`` seeds its background, which no text speaks of."""

    things: tuple[Thing, ...]
    texture: int

    @property
    def has_held_out(self) -> bool:
        """Whether a thing is of a colour-shape pair that training never shows."""
        return any((thing.color, thing.shape) in HELD_OUT for thing in self.things)


def sample_scene(rng: random.Random, compositional: bool = False) -> Scene:
    """A scene by lot; a compositional one holds at least one held-out pair, any other none."""
    count = rng.choices(range(1, 7), COUNT_WEIGHTS)[0]
    kinds = _sample_kinds(rng, count, compositional)
    sizes = ["large" if rng.random() < 0.5 else "small" for _ in kinds]
    while sizes.count("large") > MAX_LARGE:
        sizes[sizes.index("large")] = "small"
    diameters = [rng.uniform(*SIZES[size]) for size in sizes]
    places = _sample_places(rng, diameters)
    things = [
        Thing(color, shape, size, x, y, diameter, 0.0 if shape in ("circle", "ring") else rng.uniform(-TURN, TURN))
        for (color, shape), size, diameter, (x, y) in zip(kinds, sizes, diameters, places, strict=True)
    ]
    return Scene(tuple(things), rng.getrandbits(62))


def _sample_kinds(rng: random.Random, count: int, compositional: bool) -> list[tuple[str, str]]:
    """Colours and shapes; in half of the scenes a colour or a shape repeats, so that there is something to count."""
    color_copies, shape_copies = rng.choice(((0.75, 0.1), (0.1, 0.75), (0.2, 0.2), (0.2, 0.2)))
    kinds = [rng.choice(HELD_OUT)] if compositional else []
    while len(kinds) < count:
        color = rng.choice(kinds)[0] if kinds and rng.random() < color_copies else rng.choice(tuple(COLORS))
        shape = rng.choice(kinds)[1] if kinds and rng.random() < shape_copies else rng.choice(SHAPES)
        if (color, shape) not in HELD_OUT:
            kinds.append((color, shape))
    rng.shuffle(kinds)
    return kinds


def _sample_places(rng: random.Random, diameters: list[float]) -> list[tuple[float, float]]:
    """Centres without overlap, the widest thing first; starts afresh when the rest does not fit."""
    order = sorted(range(len(diameters)), key=lambda i: -diameters[i])
    while True:
        places: dict[int, tuple[float, float]] = {}
        for i in order:
            for _ in range(PLACING_TRIES):
                margin = EXTENT * diameters[i] / 2 + 0.01
                x, y = rng.uniform(margin, 1 - margin), rng.uniform(margin, 1 - margin)
                if all(math.dist((x, y), places[j]) >= GAP * (diameters[i] + diameters[j]) / 2 for j in places):
                    places[i] = (x, y)
                    break
            else:
                break
        if len(places) == len(diameters):
            return [places[i] for i in range(len(diameters))]
