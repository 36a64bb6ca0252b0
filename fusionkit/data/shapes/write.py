"""Writes the shapes world as files in the public formats: COCO captions, VQA v2 and RefCOCO."""

import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from fusionkit.data.shapes.draw import draw
from fusionkit.data.shapes.meaning import VOCABULARY
from fusionkit.data.shapes.records import (
    IDS_PER_SPLIT,
    SPLITS,
    Record,
    annotate,
    caption_records,
    image_record,
    instance_records,
    question_records,
    reference_records,
)
from fusionkit.data.shapes.scene import SHAPES
from fusionkit.errors import ConfigError, DataError

VERSION = 1  # of the world: raise it whenever the same seed gives other files
IMAGE_SIZES = (48, 512)
CHUNK = 250  # scenes a worker makes at a time; fewer in all are made without workers
INFO = {"description": "fusionkit shapes: a procedurally drawn world", "version": str(VERSION)}
LICENSE = {"id": 1, "name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}


class Records(NamedTuple):
    """What the files of one run of scenes hold."""

    images: list[Record]
    captions: list[Record]
    questions: list[Record]
    answers: list[Record]
    instances: list[Record]
    refs: list[Record]


def make_shapes(root: str | Path, scenes: int = 5000, seed: int = 0, image_size: int = 64) -> None:
    """Make the embedded data set: ``scenes`` training images, and a tenth as many for test, a twentieth for val and compositional.

    A complete set made with the same parameters is left alone. Files appear under ``root`` all at once, at the end.
    Raises ConfigError for parameters out of range and DataError where ``root`` holds something else.
    """
    parameters = _checked(scenes=scenes, seed=seed, image_size=image_size)
    target = Path(root)
    if _is_made(target, parameters):
        return
    with _appearing_at_once(target) as folder:
        (folder / "images").mkdir()
        sizes = split_sizes(scenes)
        jobs = [
            (split, range(start, min(start + CHUNK, size)))
            for split, size in sizes.items()
            for start in range(0, size, CHUNK)
        ]
        by_split = {split: Records([], [], [], [], [], []) for split in SPLITS}
        for (split, _), made in zip(jobs, _in_parallel(partial(_make, folder, seed, image_size), jobs), strict=True):
            for whole, part in zip(by_split[split], made, strict=True):
                whole.extend(part)
        _write(folder, by_split)
        counts = {split: {name: len(rows) for name, rows in made._asdict().items()} for split, made in by_split.items()}
        _dump(folder / "manifest.json", {"generator": "fusionkit shapes", "parameters": parameters, "counts": counts})
