"""Tiny data sets in the public formats, written to a folder; each has four images, 32 x 24 pixels, ids 1 to 4."""

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from fusionkit.data.sample import Sample, Text

IDS = (1, 2, 3, 4)
SIZE = (32, 24)


def write_photo(path: Path, number: int = 0, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number * 40 % 256, 90, 200)).save(path)
    return path


def write_photos(folder: Path, name: str = "{:012d}.jpg") -> Path:
    for number in IDS:
        write_photo(folder / name.format(number), number)
    return folder


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def captions() -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "width": 32, "height": 24} for i in IDS],
        "annotations": [
            {"id": 10 * i + k, "image_id": i, "caption": f"photo {i}, said {k}"} for i in IDS for k in (0, 1)
        ],
    }


def karpathy(filepath: str = "") -> dict[str, Any]:
    rows = [
        {
            "filepath": filepath,
            "filename": f"{i:012d}.jpg",
            "cocoid": i,
            "imgid": i - 1,
            "split": split,
            "sentences": [{"raw": f"photo {i}, said {k}", "sentid": 10 * i + k, "tokens": []} for k in (0, 1)],
        }
        for i, split in zip(IDS, ("train", "train", "restval", "val"), strict=True)
    ]
    return {"dataset": "coco", "images": rows}


def questions() -> dict[str, Any]:
    rows = [{"question_id": 10 * i + k, "image_id": i, "question": f"what is {k}?"} for i in IDS for k in (0, 1)]
    return {"data_subtype": "train2014", "questions": rows}


def annotations() -> dict[str, Any]:
    rows = [
        {
            "question_id": row["question_id"],
            "image_id": row["image_id"],
            "question_type": "what is",
            "answer_type": "other",
            "multiple_choice_answer": "red",
            "answers": [{"answer": "red" if n < 9 else "a rose", "answer_id": n + 1} for n in range(10)],
        }
        for row in questions()["questions"]
    ]
    return {"data_subtype": "train2014", "annotations": rows}


def refs() -> list[dict[str, Any]]:
    return [
        {
            "ref_id": i,
            "ann_id": 100 + i,
            "image_id": i,
            "file_name": f"COCO_train2014_{i:012d}_0.jpg",
            "split": "val" if i == 4 else "train",
            "sentences": [{"sent_id": 10 * i + k, "sent": f"thing {k}", "raw": f"Thing {k}!"} for k in (0, 1)],
        }
        for i in IDS
    ]


def instances() -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "width": 32, "height": 24} for i in IDS],
        "annotations": [{"id": 100 + i, "image_id": i, "bbox": [4.0, 6.0, 8.0, 12.0]} for i in IDS],
    }


def write_refs(path: Path, content: Any, protocol: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


class Listed:
    """A reader of samples that are given by split."""

    def __init__(self, **splits: list[Sample]) -> None:
        self.splits = splits
        self.asked: list[str] = []

    def read(self, split: str) -> list[Sample]:
        self.asked.append(split)
        return self.splits[split]


def make_samples(folder: Path, ids: range, text: Callable[[int, int], str] = "photo {} said {}".format) -> list[Sample]:
    """Samples of five captions; the image of each is written where it is not there yet."""
    paths = {number: folder / f"{number}.png" for number in ids}
    for number, path in paths.items():
        if not path.exists():
            write_photo(path, number, (8, 8))
    return [
        Sample(number, path, {"captions": tuple(Text(5 * number + k, text(number, k)) for k in range(5))})
        for number, path in paths.items()
    ]


def pair(key: str, number: int = 0, caption: str | None = None, **about: Any) -> dict[str, bytes]:
    """The members of a sample as img2dataset writes them: a picture, a text and a json."""
    content = io.BytesIO()
    Image.new("RGB", SIZE, (number * 37 % 256, number * 91 % 256, 60)).save(content, "JPEG")
    said = caption if caption is not None else f"caption of {key}"
    facts = {"caption": said, "url": f"http://a/{key}", "key": key, "width": SIZE[0], "height": SIZE[1], **about}
    return {
        f"{key}.jpg": content.getvalue(),
        f"{key}.txt": said.encode(),
        f"{key}.json": json.dumps(facts).encode(),
    }


def write_shard(path: Path, *samples: Mapping[str, bytes]) -> Path:
    """A tar of the members of samples, as if written a while ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in (each for sample in samples for each in sample.items()):
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    os.utime(path, (1e9, 1e9))
    return path


def write_shards(folder: Path, count: int = 3, samples: int = 4) -> Path:
    """A folder as img2dataset leaves it: shards 00000.tar..., and beside each its table and statistics."""
    for number in range(count):
        keys = [(f"{number:05d}{place:04d}", number * samples + place) for place in range(samples)]
        shard = write_shard(folder / f"{number:05d}.tar", *(pair(key, value) for key, value in keys))
        shard.with_suffix(".parquet").write_bytes(b"PAR1 which nobody reads")
        write_json(folder / f"{number:05d}_stats.json", {"count": samples})
    return folder
