"""One small folder in which every published recipe finds its data: ten images under the names of all data sets."""

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (40, 32)
SPLITS = {"train": range(1, 7), "val": range(7, 9), "test": range(9, 11)}
SAID = ["a picture of a red cat", "a picture of two dogs, left of a blue car"]
REGIONS, CLASSES = 10, 5


def make_world(root: Path) -> Path:
    """Write all of it, and give the folder."""
    coco, flickr = [f"{number:012d}.jpg" for number in range(1, 11)], [f"{number}.jpg" for number in range(1, 11)]
    _photos(root, "train2014", (f"COCO_train2014_{name}" for name in coco))
    _photos(root, "val2014", (f"COCO_val2014_{name}" for name in coco))
    _regions(root / "regions", (f"COCO_{part}2014_{name}" for name in coco for part in ("train", "val")))
    _photos(root, "flickr30k_images", flickr)
    _regions(root / "regions", flickr)
    _karpathy(root / "dataset_coco.json", "COCO_train2014_{:012d}.jpg", "cocoid", "train2014")
    _karpathy(root / "dataset_flickr30k.json", "{}.jpg", "imgid", "")
    _vqa(root, "train2014", SPLITS["train"])
    _vqa(root, "val2014", SPLITS["val"])
    _refs(root / "refcoco")
    _refs(root / "refcoco+")
    _snli_ve(root)
    _nlvr2(root)
    _visual_genome(root / "vg")
    _web(root / "web")
    return root


def _photos(root: Path, folder: str, names: Iterable[str]) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", SIZE, (number * 25, 90, 200)).save(root / folder / name)


def _regions(folder: Path, names: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        corner, side = rng.random((REGIONS, 2)) * 0.5, np.full((REGIONS, 2), 0.4)
        arrays = {"features": rng.random((REGIONS, 8)), "norm_bb": np.hstack([corner, corner + side, side])}
        labels = {"soft_labels": rng.random((REGIONS, CLASSES)), "size": np.array(SIZE)}
        np.savez(folder / f"{Path(name).stem}.npz", **arrays, **labels)


def _dump(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _karpathy(path: Path, name: str, key: str, folder: str) -> None:
    rows = [
        {
            "filename": name.format(number),
            "filepath": folder,
            key: number,
            "split": "restval" if number == 6 and folder else split,
            "sentences": [{"raw": text, "sentid": 10 * number + k} for k, text in enumerate(SAID)],
        }
        for split, numbers in SPLITS.items()
        for number in numbers
    ]
    _dump(path, {"images": rows})


def _vqa(root: Path, split: str, numbers: range) -> None:
    asked = [{"question_id": 10 * number, "image_id": number, "question": "what is it?"} for number in numbers]
    said = [
        {
            **{key: row[key] for key in ("question_id", "image_id")},
            "question_type": "what",
            "answer_type": "other",
            "multiple_choice_answer": "cat",
            "answers": [{"answer": "red cat" if k > 7 else "cat", "answer_id": k + 1} for k in range(10)],
        }
        for row in asked
    ]
    _dump(root / f"v2_OpenEnded_mscoco_{split}_questions.json", {"data_subtype": split, "questions": asked})
    _dump(root / f"v2_mscoco_{split}_annotations.json", {"data_subtype": split, "annotations": said})


def _refs(folder: Path) -> None:
    splits = {**dict.fromkeys(range(1, 7), "train"), 7: "val", 8: "val", 9: "testA", 10: "testB"}
    refs = [
        {
            "ref_id": number,
            "ann_id": number,
            "image_id": number,
            "split": "restval" if number == 6 and folder else split,
            "sentences": [{"sent_id": 10 * number + k, "sent": text} for k, text in enumerate(SAID)],
        }
        for number, split in splits.items()
    ]
    names = {number: f"COCO_train2014_{number:012d}.jpg" for number in splits}
    images = [{"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for i, name in names.items()]
    boxes = [{"id": number, "image_id": number, "bbox": [4, 6, 8, 12]} for number in splits]
    _dump(folder / "instances.json", {"images": images, "annotations": boxes})
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))


def _snli_ve(root: Path) -> None:
    for split, numbers in zip(("train", "dev", "test"), SPLITS.values(), strict=True):
        rows = [
            {"pairID": f"{number}#{k}", "Flikr30kID": str(number), "sentence2": text, "gold_label": label}
            for number in numbers
            for k, (text, label) in enumerate(zip(SAID, ("neutral", "entailment"), strict=True))
        ]
        (root / f"snli_ve_{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _nlvr2(root: Path) -> None:
    for split, numbers in zip(("train", "dev", "test1"), SPLITS.values(), strict=True):
        rows = [
            {"identifier": f"{split}-{n}-0-{k}", "sentence": text, "label": str(bool(k)), "directory": 1}
            for n in numbers
            for k, text in enumerate(SAID)
        ]
        _dump(root / f"data/{split}.json", None)
        (root / f"data/{split}.json").write_text("\n".join(map(json.dumps, rows)))
        names = [f"{split}-{n}-0-img{side}.png" for n in numbers for side in (0, 1)]
        _photos(root, f"images/{split}", names)
        _regions(root / f"regions/{split}", names)


def _visual_genome(root: Path) -> None:
    """Images 101 to 106; the last is COCO's 7, which is validated."""
    numbers = range(101, 107)
    known = [{"image_id": n, "width": SIZE[0], "height": SIZE[1], "coco_id": 7 if n == 106 else None} for n in numbers]
    asked = [
        {"id": n, "qas": [{"qa_id": n, "image_id": n, "question": "who is it?", "answer": "Cat."}]} for n in numbers
    ]
    place = {"x": 4, "y": 6, "width": 8, "height": 12}
    regions = [
        {
            "id": n,
            "regions": [
                {"region_id": 10 * n + k, "image_id": n, "phrase": text, **place} for k, text in enumerate(SAID)
            ],
        }
        for n in numbers
    ]
    for name, content in {"image_data": known, "question_answers": asked, "region_descriptions": regions}.items():
        _dump(root / f"{name}.json", content)
    _photos(root, "images", (f"{n}.jpg" for n in numbers))
    _regions(root / "regions", (f"{n}.jpg" for n in numbers))


def _web(root: Path) -> None:
    for name in ("cc3m", "sbu", "cc12m"):
        names = [f"{name}_{number}.jpg" for number in range(3)]
        _photos(root, ".", names)
        _regions(root / "regions", names)
        _dump(root / f"{name}.json", [{"image": file, "caption": SAID[0]} for file in names])
