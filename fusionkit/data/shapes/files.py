"""The files of the public formats, from the records of each split."""

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fusionkit.data.shapes.records import Record
from fusionkit.data.shapes.scene import SHAPES
from fusionkit.data.shapes.words import VOCABULARY

INFO = {"description": "fusionkit shapes: a procedurally drawn world"}
LICENSE = {"id": 1, "name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}


@dataclass
class Records:
    """What the files say of some scenes of one split."""

    images: list[Record] = field(default_factory=list)
    captions: list[Record] = field(default_factory=list)
    questions: list[Record] = field(default_factory=list)
    answers: list[Record] = field(default_factory=list)
    instances: list[Record] = field(default_factory=list)
    refs: list[Record] = field(default_factory=list)

    def extend(self, other: "Records") -> None:
        """Append the records of further scenes."""
        for part in fields(self):
            getattr(self, part.name).extend(getattr(other, part.name))

    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {part.name: len(getattr(self, part.name)) for part in fields(self)}

    def texts(self) -> Iterator[str]:
        """Every caption, question and expression."""
        yield from (record["caption"] for record in self.captions)
        yield from (record["question"] for record in self.questions)
        yield from (sentence["sent"] for ref in self.refs for sentence in ref["sentences"])


def write_files(folder: Path, made: dict[str, Records]) -> None:
    """Write all annotation files, and a tokenizer that knows the words of the training texts and of the grammar."""
    from fusionkit.data.tokenizer import build_tokenizer  # transformers take seconds to import

    for name in ("annotations", "vqa", "refcoco"):
        (folder / name).mkdir()
    for split, records in made.items():
        _write_captions(folder / "annotations", split, records)
        _write_vqa(folder / "vqa", split, records)
    _write_refcoco(folder / "refcoco", list(made.values()))
    texts = dict.fromkeys((*made["train"].texts(), *VOCABULARY))  # each once: a tokenizer wants words, not counts
    build_tokenizer(texts, folder / "tokenizer")


def _write_captions(folder: Path, split: str, records: Records) -> None:
    content = {"info": INFO, "licenses": [LICENSE], "type": "captions"}
    _dump(folder / f"captions_{split}.json", {**content, "images": records.images, "annotations": records.captions})


def _write_vqa(folder: Path, split: str, records: Records) -> None:
    content = {"info": INFO, "license": LICENSE, "data_type": "mscoco", "data_subtype": split}
    questions = {**content, "task_type": "Open-Ended", "questions": records.questions}
    _dump(folder / f"v2_OpenEnded_mscoco_{split}_questions.json", questions)
    _dump(folder / f"v2_mscoco_{split}_annotations.json", {**content, "annotations": records.answers})


def _write_refcoco(folder: Path, splits: list[Records]) -> None:
    """One pair of files for all splits, as published: each ref names its split."""
    refs = [ref for records in splits for ref in records.refs]
    # a pickle also tells which strings are one and the same object: after JSON none are, so equal refs give equal bytes
    plain = json.loads(json.dumps(refs))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(plain, protocol=2))
    categories = [{"supercategory": "shape", "id": i, "name": name} for i, name in enumerate(SHAPES, start=1)]
    instances = {
        "info": INFO,
        "licenses": [LICENSE],
        "images": [image for records in splits for image in records.images],
        "annotations": [instance for records in splits for instance in records.instances],
        "categories": categories,
    }
    _dump(folder / "instances.json", instances)


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")))
