"""A small drawn world in COCO's published layout, and its tokenizer."""

import json
from pathlib import Path

from fusionkit.data.shapes import make_shapes
from fusionkit.data.tokenizer import build_tokenizer


def coco_world(root: Path) -> Path:
    """A folder for data=coco_captions with images of 64 pixels, and ``words`` in it, the tokenizer of its captions."""
    make_shapes(root, scenes=24)
    images, texts = [], []
    for split in ("train", "val", "test"):
        content = json.loads((root / f"annotations/captions_{split}.json").read_text())
        for number, image in enumerate(content["images"]):
            captions = [c for c in content["annotations"] if c["image_id"] == image["id"]]
            texts += [c["caption"] for c in captions]
            sentences = [{"raw": c["caption"], "sentid": c["id"], "imgid": image["id"]} for c in captions]
            place = {"filename": image["file_name"], "filepath": "images"}
            place["split"] = "restval" if split == "train" and number % 2 else split
            numbers = {"cocoid": image["id"], "imgid": image["id"], "sentids": [c["id"] for c in captions]}
            images.append(place | numbers | {"sentences": sentences})
    (root / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    build_tokenizer(texts, root / "words")
    return root
