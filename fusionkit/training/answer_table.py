"""Answers as a W&B table: the pictures small, the boxes drawn by W&B."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import wandb
from PIL import Image

from fusionkit.data.frames import framed
from fusionkit.data.images import CorruptImage, decode
from fusionkit.scoring.examples import Example

SIDE = 256  # pixels, the longer side of a picture
ABOUT_PICTURE = ("size", "boxes", "upright")
CLASSES = {1: "true", 2: "given"}


def table_of(examples: Sequence[Example]) -> wandb.Table:
    """One row an example: its fields, and its picture in place of the path."""
    columns: list[str | int] = [field.name for field in fields(Example) if field.name not in ABOUT_PICTURE]
    rows = [
        [_picture(each) if name == "image" else _cell(getattr(each, str(name))) for name in columns]
        for each in examples
    ]
    return wandb.Table(columns=columns, data=rows)


def _cell(value: Any) -> Any:
    """A column of W&B's has one type: boxes and scores stay numbers, ids and answers are texts, what is missing is null."""
    if isinstance(value, list | tuple):
        return [float(number) for number in value]
    return value if value is None or isinstance(value, float) else str(value)


def _picture(example: Example) -> wandb.Image | None:
    if example.image is None:
        return None
    try:
        image, size = framed(decode(example.image, SIDE), example.size, example.upright)
    except CorruptImage:
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    width, height = example.size or size
    boxes = {
        name: {"box_data": [_box(example, number, name, width, height)], "class_labels": CLASSES}
        for number, name in CLASSES.items()
        if name in example.boxes
    }
    return wandb.Image(image, boxes=boxes or None)


def _box(example: Example, number: int, name: str, width: float, height: float) -> dict[str, Any]:
    x, y, w, h = example.boxes[name]
    return {
        "position": {"minX": x / width, "minY": y / height, "maxX": (x + w) / width, "maxY": (y + h) / height},
        "class_id": number,
        "box_caption": name,
        "scores": {"score": example.score},
    }
