"""VQA v2: `v2_OpenEnded_mscoco_*_questions.json` with `v2_mscoco_*_annotations.json`, as published.

OK-VQA has the same layout; VQA-CP's files are bare lists, whose rows say in which part of COCO their photo is.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionkit.data.files import add_new, annotation_file, expecting, table
from fusionkit.data.identity import check_id
from fusionkit.data.images import find_images, folder_of, image_places
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.files.plain import read_json
from fusionkit.files.unicode import readable

QUESTIONS, ANNOTATIONS = "VQA v2 questions", "VQA v2 annotations"


class VQAv2:
    """Reader of "questions", with the facts `answers` (ten), `answer_type`, `question_type`, `multiple_choice_answer`.

    The paths may contain `{split}`, e.g. "train2014". Where the answers are secret, `annotations` is None or the split
    one of `unanswered`, and questions have no facts. Where `questions` is None the annotations alone are read, for scoring:
    the questions are then empty texts. Image ids are COCO's numbers, or texts: names of files, with or without their ending.
    """

    def __init__(
        self,
        questions: str | None,
        annotations: str | None,
        images: str | None,
        collection: str | None = None,
        unanswered: Sequence[str] = ("test2015", "test-dev2015"),
    ) -> None:
        self.questions, self.annotations = questions, annotations
        self.images, self.collection, self.unanswered = images, collection, tuple(unanswered)

    def read(self, split: str) -> list[Sample]:
        """The images of a split that have questions. Raises DataError."""
        source, name, layout = self.questions, "questions", QUESTIONS
        if source is None:
            source, name, layout = str(self.annotations), "annotations", ANNOTATIONS
        path = annotation_file(source, split)
        content = read_json(path)
        rows = _rows(content, name, path, layout)
        with expecting(path, layout):
            if self.questions is None:
                rows = [{"question": "", **row} for row in rows]
                facts = {row["question_id"]: _facts(row) for row in rows}
            else:
                facts = self._read_facts(split, path, {row["question_id"]: row["image_id"] for row in rows})
            questions = _group(rows, facts, path)
            parts = {row["image_id"]: row["coco_split"] for row in rows if "coco_split" in row}
            whole = str(content.get("data_subtype", split)) if isinstance(content, dict) else split
            names = {id: image_places(id, subtype=str(parts.get(id, whole))) for id in questions}
        files = find_images(folder_of(self.images, split), names, path)
        return [
            Sample(image_id, files[image_id], {"questions": tuple(texts)}, collection=self.collection)
            for image_id, texts in questions.items()
        ]

    def _read_facts(self, split: str, questions: Path, asked: dict[Any, Any]) -> dict[Any, dict[str, Any]]:
        """The facts by question id; `asked` gives the image of each. Raises DataError unless the two files agree."""
        if self.annotations is None or split in self.unanswered:
            return {}
        path = annotation_file(self.annotations, split)
        rows = _rows(read_json(path), "annotations", path, ANNOTATIONS)
        facts: dict[Any, dict[str, Any]] = {}
        with expecting(path, ANNOTATIONS):
            for row in rows:
                number = row["question_id"]
                if number in facts or asked.get(number) != row["image_id"]:
                    raise DataError(_describe_clash(row, number in facts, asked, path, questions))
                facts[number] = _facts(row)
        if len(facts) < len(asked):
            number = next(number for number in asked if number not in facts)
            raise DataError(
                f"question {number} of {questions} has no annotation in {path}; take both files from the same release"
            )
        return facts


def _rows(content: Any, name: str, path: Path, layout: str) -> list[Any]:
    """The list under its name, or the whole of a file that is a list (VQA-CP)."""
    return content if isinstance(content, list) and content else table(content, name, path, layout)


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    types = ("answer_type", "question_type", "multiple_choice_answer")
    facts: dict[str, Any] = {name: sys.intern(readable(row[name])) for name in types if name in row}
    return {"answers": [sys.intern(readable(said["answer"])) for said in row["answers"]]} | facts


def _group(rows: list[Any], facts: dict[Any, dict[str, Any]], path: Path) -> dict[Any, list[Text]]:
    """The questions by image id."""
    none: dict[str, Any] = {}
    ids: set[Any] = set()
    questions: dict[Any, list[Text]] = {}
    for row in rows:
        number = row["question_id"]
        add_new(ids, number, "the question", path)
        check_id(row["image_id"], f"question {number} about an image", path)
        questions.setdefault(row["image_id"], []).append(Text(number, row["question"], facts.get(number, none)))
    return questions


def _describe_clash(row: dict[str, Any], is_twice: bool, asked: dict[Any, Any], path: Path, questions: Path) -> str:
    number = row["question_id"]
    if is_twice:
        return (
            f"{path} has the annotation of question {number} twice; ids must be unique: remove one of the two entries"
        )
    if number not in asked:
        return f"{path} annotates question {number}, which {questions} lacks; take both files from the same release"
    return (
        f"question {number} is about image {asked[number]!r} in {questions}, but {row['image_id']!r} in {path}; "
        "take both files from the same release"
    )
