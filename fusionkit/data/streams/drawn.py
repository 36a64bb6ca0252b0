"""Drawn streams, on which one sees whether a model learns: shapes that move, tones that stand for shapes, sets of pictures.

Each set is a folder with ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``: rows of a stream with a question and its answer, in
the layout that one's own data have. Nothing but the stream tells the answer: of a film one frame tells nothing, since shapes
that leave the picture come in again on its other side, so that each place is as likely at any time, whichever way one moves.
"""

import json
import random
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fusionkit.data.shapes.scene import COLORS
from fusionkit.data.shapes.write import appearing_at_once, is_made
from fusionkit.errors import ConfigError

VERSION = 1  # of the drawn streams: raise it whenever the same seed gives other files
MOST = 1_000_000
SHAPES = ("circle", "square", "triangle")
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "nowhere": (0, 0)}
FRAMES, TRAVEL = 8, 0.75  # of a film, and the part of its side that a shape moves in all
SIDE, DIAMETER, FINE = 32, 0.36, 4  # of a picture: pixels, part of the side, and times that it is drawn larger
RATE, SECONDS = 8000, 1.0
BEEP, MOST_BEEPS = 0.14, 4  # seconds, and a recording's beeps
PITCHES = {"low": (180.0, 320.0), "high": (600.0, 1000.0)}  # Hz
PLACES = ("first", "second", "third", "fourth")
Row = dict[str, Any]
Draw = Callable[[random.Random, Path, str], Iterator[Row]]  # files under a name without ending -> rows


def make_motion(root: str | Path, clips: int = 2000, seed: int = 0) -> None:
    """Films (animated GIFs) of two shapes: which way each moves. ``clips`` train, a tenth validate, a fifth test."""
    _make("motion", root, clips, seed, _motion)


def make_tones(root: str | Path, clips: int = 2000, seed: int = 0) -> None:
    """Recordings (WAV): which shape a timbre stands for, how many beeps there are, whether they are high or low."""
    _make("tones", root, clips, seed, _tones)


def make_sets(root: str | Path, clips: int = 2000, seed: int = 0) -> None:
    """Sets of two to four pictures: which one shows a thing, and how many show a shape."""
    _make("sets", root, clips, seed, _sets)


def _make(name: str, root: str | Path, clips: int, seed: int, draw: Draw) -> None:
    """Raises ConfigError for a number out of range, DataError where ``root`` holds something else or cannot be written."""
    for key, value, low in (("clips", clips, 10), ("seed", seed, 0)):
        if type(value) is not int or not low <= value <= MOST:
            raise ConfigError(f"{name}: '{key}' must be a whole number from {low} to {MOST}, not {value!r}.")
    parameters = {"version": VERSION, "clips": clips, "seed": seed}
    target = Path(root)
    if is_made(target, parameters, name):
        return
    with appearing_at_once(target, parameters, name) as folder:
        for split, count in {"train": clips, "val": clips // 10, "test": clips // 5}.items():
            (folder / split).mkdir()
            with (folder / f"{split}.jsonl").open("w") as lines:
                for number in range(count):
                    rng = random.Random(f"{name}/{seed}/{split}/{number}")
                    lines.writelines(json.dumps(row) + "\n" for row in draw(rng, folder, f"{split}/{number:05d}"))
        (folder / "manifest.json").write_text(json.dumps({"generator": f"fusionkit {name}", "parameters": parameters}))


def _motion(rng: random.Random, folder: Path, name: str) -> Iterator[Row]:
    shapes = rng.sample(SHAPES, 2)
    colors = rng.sample(list(COLORS), 2)
    ways = [rng.choice(list(WAYS)) for _ in shapes]
    starts = [(rng.random(), rng.random()) for _ in shapes]
    ground = _ground(rng)
    frames = []
    for number in range(FRAMES):
        picture = ground.copy()
        for shape, color, way, (x, y) in zip(shapes, colors, ways, starts, strict=True):
            gone = TRAVEL * number / (FRAMES - 1)
            across, down = WAYS[way]
            _put(picture, shape, color, (x + across * gone) % 1, (y + down * gone) % 1)
        frames.append(picture)
    file = f"{name}.gif"
    frames[0].save(folder / file, save_all=True, append_images=frames[1:], duration=100, loop=0)
    told = {way: f"moves {way}" if way != "nowhere" else "stays" for way in WAYS}
    caption = " and ".join(f"a {c} {s} {told[w]}" for s, c, w in zip(shapes, colors, ways, strict=True))
    for place, (shape, way) in enumerate(zip(shapes, ways, strict=True)):
        said = {"caption": caption} if place == 0 else {}
        yield {"video": file, "question": f"which way does the {shape} move?", "answer": way, **said}


def _tones(rng: random.Random, folder: Path, name: str) -> Iterator[Row]:
    shape, pitch, beeps = rng.choice(SHAPES), rng.choice(list(PITCHES)), rng.randint(1, MOST_BEEPS)
    times = np.arange(int(RATE * SECONDS)) / RATE
    phase = times * rng.uniform(*PITCHES[pitch])
    turn = phase % 1
    tone = {"circle": np.sin(2 * np.pi * phase), "square": np.sign(0.5 - turn), "triangle": 2 * turn - 1}[shape]
    slot = SECONDS / MOST_BEEPS
    begins = [(place + rng.uniform(0, 1 - BEEP / slot)) * slot for place in rng.sample(range(MOST_BEEPS), beeps)]
    is_heard = np.any([(times >= begin) & (times < begin + BEEP) for begin in begins], axis=0)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 0.02, len(times))
    heard = rng.uniform(0.3, 0.8) * tone * is_heard + noise
    file = f"{name}.wav"
    with wave.open(str(folder / file), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        sound.writeframes((np.clip(heard, -1, 1) * 32767).astype("<i2").tobytes())
    caption = f"{beeps} {pitch} {'beep' if beeps == 1 else 'beeps'} of a {shape}"
    yield {"audio": file, "question": "which shape is heard?", "answer": shape, "caption": caption}
    yield {"audio": file, "question": "how many beeps are heard?", "answer": str(beeps)}
    yield {"audio": file, "question": "is the tone high or low?", "answer": pitch}


def _sets(rng: random.Random, folder: Path, name: str) -> Iterator[Row]:
    count = rng.randint(2, len(PLACES))
    things = rng.sample([(color, shape) for color in COLORS for shape in SHAPES], count)
    files = []
    for number, (color, shape) in enumerate(things):
        picture = _ground(rng)
        _put(picture, shape, color, rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.75))
        files.append(f"{name}_{number}.png")
        picture.save(folder / files[-1])
    place = rng.randrange(count)
    color, shape = things[place]
    caption = ", then ".join(f"a {color} {shape}" for color, shape in things)
    yield {
        "images": files,
        "question": f"which image shows the {color} {shape}?",
        "answer": PLACES[place],
        "caption": caption,
    }
    asked = rng.choice(SHAPES)
    yield {
        "images": files,
        "question": f"how many images show a {asked}?",
        "answer": str(sum(kind == asked for _, kind in things)),
    }


def _ground(rng: random.Random) -> Image.Image:
    """A pale ground of one tint."""
    return Image.new("RGB", (SIDE, SIDE), tuple(rng.randint(190, 245) for _ in range(3)))


def _put(picture: Image.Image, shape: str, color: str, x: float, y: float) -> None:
    """A shape with its centre at (x, y) in parts of the side; what leaves the picture comes in on its other side."""
    side, radius = SIDE * FINE, SIDE * FINE * DIAMETER / 2
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    for across in (x - 1, x, x + 1):
        for down in (y - 1, y, y + 1):
            left, top = across * side - radius, down * side - radius
            right, low = left + 2 * radius, top + 2 * radius
            if shape == "circle":
                pen.ellipse((left, top, right, low), fill=255)
            elif shape == "square":
                pen.rectangle((left, top, right, low), fill=255)
            else:
                pen.polygon([(across * side, top), (right, low), (left, low)], fill=255)
    picture.paste(COLORS[color], (0, 0), mask.reduce(FINE))
