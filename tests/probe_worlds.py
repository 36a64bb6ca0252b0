"""A folder in which every probe finds its published files, two small images each."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tests.data.worlds import write_json, write_photo

IMAGES = {
    "val2017": ("000000000001.jpg", "000000000002.jpg"),
    "val2014": ("COCO_val2014_000000000003.jpg", "COCO_val2014_000000000004.jpg"),
    "visual7w": ("v7w_1.jpg", "v7w_2.jpg"),
    "aro/images": ("21.jpg", "22.jpg"),
    "winoground/images": ("ex_0_img_0.png", "ex_0_img_1.png"),
    "train_images": ("0a1.jpg", "ffe2.jpg"),
    "documents": ("xnbl0037_1.png", "txpp0227_10.png"),
}
KINDS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
PIECES = (
    *("existence", "plurals", "counting-hard", "counting-small-quant", "counting-adversarial", "relations"),
    *("action-replacement", "actant-swap", "coreference-standard", "coreference-hard", "foil-it"),
)


def probe_world(root: Path) -> Path:
    """Write all of it, and give the folder."""
    for folder, names in IMAGES.items():
        for number, name in enumerate(names):
            write_photo(root / folder / name, 3 * number)
    for kind in KINDS:
        rows = [
            {"filename": name, "caption": "a red circle", "negative_caption": f"a {kind} circle"}
            for name in IMAGES["val2017"]
        ]
        write_json(root / f"sugarcrepe/{kind}.json", {str(at): row for at, row in enumerate(rows)})
    for piece in PIECES:
        rows = [
            {
                "dataset": "visual7w",
                "image_file": name,
                "caption": "There are two circles.",
                "foil": "There are no circles.",
                "mturk": {"foil": 0, "caption": votes, "other": 3 - votes},
            }
            for votes in (3, 1)
            for name in IMAGES["visual7w"]
        ]
        write_json(root / f"valse/{piece}.json", {f"{piece}_{at}": row for at, row in enumerate(rows)})
    box = {"bbox_x": 4, "bbox_y": 2, "bbox_w": 20, "bbox_h": 16}
    for name, about in (("relation", {"relation_name": "left of"}), ("attribution", {"attributes": ["red", "blue"]})):
        both = {"true_caption": "a circle left of a square", "false_caption": "a square left of a circle"}
        rows = [{"image_path": image, **box, **both, **about} for image in IMAGES["aro/images"] for _ in range(13)]
        write_json(root / f"aro/visual_genome_{name}.json", rows)
    for number, name in enumerate(("circle", "square")):
        write_photo(root / f"val/{name}/1.png", number)
    boxes = [
        (1, 1, [2, 2, 9, 9]),
        (1, 2, [18, 2, 9, 9]),
        (2, 1, [18, 2, 9, 9]),
        (2, 2, [2, 2, 9, 9]),
        (2, 3, [2, 12, 9, 9]),
    ]
    boxes += [(1, 3, [2, 12, 9, 9]), (1, 3, [18, 12, 9, 9])]
    content = {
        "images": [
            {"id": n, "file_name": name, "width": 32, "height": 24} for n, name in enumerate(IMAGES["val2017"], 1)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(("dog", "cat", "bus"), 1)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": thing, "bbox": box, "iscrowd": 0}
            for n, (image, thing, box) in enumerate(boxes)
        ],
    }
    write_json(root / "annotations/instances_val2017.json", content)
    said = {"caption_0": "a red circle left of a blue square", "caption_1": "a blue circle left of a red square"}
    example = {"id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "collapsed_tag": "Object"} | said
    (root / "winoground/examples.jsonl").write_text(json.dumps(example))
    for setting in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": at, "image": image, "text": f"Is there a {thing} in the image?", "label": label}
            for at, (image, (thing, label)) in enumerate(
                (image, answer) for image in IMAGES["val2014"] for answer in (("circle", "yes"), ("cat", "no"))
            )
        ]
        (root / f"coco_pope_{setting}.json").write_text("\n".join(map(json.dumps, rows)))
    for split, answers in (("train", ["red"] * 10), ("val", ["stop"] * 7 + ["go", "stop!", "the stop"])):
        write_json(root / f"TextVQA_0.5.1_{split}.json", textvqa(split, answers))
        write_json(root / f"{split}_v1.0_withQT.json", docvqa(split, ["$ 12.50", "12.50"]))
    mmmu = [mmmu_row(f"validation_Art_{number}", answer="AB"[number % 2]) for number in (1, 2)]
    mmmu_parquet(root / "Art/validation-00000-of-00001.parquet", mmmu, pictures=[(1,), (2, 3)])
    return root


def mmmu_row(name: str, **more: Any) -> dict[str, Any]:
    """A row of MMMU but for its pictures, with what the hub's files have beside what is read."""
    row = {
        "id": name,
        "question": "What is <image 1>?",
        "options": "['a fox', 'a wolf']",
        "explanation": "",
        "img_type": "['Photo']",
    }
    return (
        row
        | {"answer": "A", "topic_difficulty": "Easy", "question_type": "multiple-choice", "subfield": "Drawing"}
        | more
    )


def mmmu_parquet(path: Path, rows: list[dict[str, Any]], pictures: list[tuple[int, ...]]) -> None:
    """A parquet file as the hub has it: seven columns of pictures, of which a row has as many as it names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = []
    for row, seeds in zip(rows, pictures, strict=True):
        cells: dict[str, Any] = {f"image_{number}": None for number in range(1, 8)}
        for number, seed in enumerate(seeds, 1):
            write_photo(path.with_name("drawn.png"), seed)
            cells[f"image_{number}"] = {
                "bytes": path.with_name("drawn.png").read_bytes(),
                "path": f"{row['id']}_{number}.png",
            }
            path.with_name("drawn.png").unlink()
        whole.append(row | cells)
    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    kinds = [(name, picture if name.startswith("image_") else pyarrow.string()) for name in whole[0]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(whole, pyarrow.schema(kinds)), path)


def textvqa(split: str, answers: list[str]) -> dict[str, Any]:
    """TextVQA's file of a split, as published, with one question about each picture."""
    rows = [
        {
            "question": "what does the sign say?",
            "image_id": image.removesuffix(".jpg"),
            "image_classes": ["Street", "Sign"],
            "flickr_original_url": "https://farm4.staticflickr.com/1_o.jpg",
            "flickr_300k_url": "https://c7.staticflickr.com/1_z.jpg",
            "image_width": 1024,
            "image_height": 768,
            "answers": answers,
            "question_tokens": ["what", "does", "the", "sign", "say"],
            "question_id": 34602 + number,
            "set_name": split,
        }
        for number, image in enumerate(IMAGES["train_images"])
    ]
    return {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": rows}


def docvqa(split: str, answers: list[str]) -> dict[str, Any]:
    """DocVQA's file of a split, as published, with one question about each page."""
    rows = [
        {
            "questionId": 49153 + number,
            "question": "What is the total?",
            "question_types": ["table/list", "handwritten"],
            "image": f"documents/{image}",
            "docId": 14465 + number,
            "ucsf_document_id": image.partition("_")[0],
            "ucsf_document_page_no": "1",
            "answers": answers,
            "data_split": split,
        }
        for number, image in enumerate(IMAGES["documents"])
    ]
    return {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": split, "data": rows}
