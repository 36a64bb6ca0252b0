"""One scene with all its texts, and the records that the public formats keep of it."""

import random
from dataclasses import dataclass
from typing import Any

from fusionkit.data.shapes.asking import sample_questions
from fusionkit.data.shapes.captions import Caption, sample_captions
from fusionkit.data.shapes.draw import Box
from fusionkit.data.shapes.meaning import NUMBERS, Description
from fusionkit.data.shapes.questions import Question
from fusionkit.data.shapes.referring import sample_expressions
from fusionkit.data.shapes.scene import SHAPES, Scene, Thing, sample_scene

Record = dict[str, Any]
SPLITS = ("train", "val", "test", "compositional")
IDS_PER_SPLIT = 100_000
SYNONYMS = {"large": "big", "small": "little", "purple": "violet", "cyan": "light blue", "center": "middle"}
SYNONYMS |= {str(number): word for number, word in enumerate(NUMBERS) if number}
ANSWERS = 10


@dataclass(frozen=True, slots=True)
class Annotated:
    """A scene, its texts as values and as words, and its image id, which depends on nothing but split and index."""

    image_id: int
    split: str
    scene: Scene
    captions: list[tuple[Caption, str]]
    questions: list[tuple[Question, str, str, str]]  # question, answer, sentence, question type
    expressions: list[tuple[Thing, Description, str]]

    @property
    def file_name(self) -> str:
        """As COCO names its photographs."""
        return f"{self.image_id:012d}.jpg"


def annotate(seed: int, split: str, index: int) -> Annotated:
    """The scene number ``index`` of a split: the same whatever else is made."""
    scene = sample_scene(_rng(seed, split, index, "scene"), split == "compositional")
    return Annotated(
        image_id=SPLITS.index(split) * IDS_PER_SPLIT + index + 1,
        split=split,
        scene=scene,
        captions=sample_captions(scene, _rng(seed, split, index, "captions")),
        questions=sample_questions(scene, _rng(seed, split, index, "questions")),
        expressions=sample_expressions(scene, _rng(seed, split, index, "expressions")),
    )


def image_record(annotated: Annotated, image_size: int) -> Record:
    """An entry of "images" in COCO's files."""
    return {
        "id": annotated.image_id,
        "file_name": annotated.file_name,
        "width": image_size,
        "height": image_size,
        "license": 1,
    }


def caption_records(annotated: Annotated) -> list[Record]:
    """Entries of "annotations" in COCO's captions file."""
    return [
        {"image_id": annotated.image_id, "id": annotated.image_id * 10 + number, "caption": words}
        for number, (_, words) in enumerate(annotated.captions)
    ]


def question_records(annotated: Annotated) -> tuple[list[Record], list[Record]]:
    """Entries of "questions" and of "annotations" in the two files of VQA v2."""
    questions: list[Record] = []
    annotations: list[Record] = []
    for number, (question, answer, words, question_type) in enumerate(annotated.questions):
        ids = {"image_id": annotated.image_id, "question_id": annotated.image_id * 1000 + number}
        questions.append({**ids, "question": words})
        annotations.append(
            {
                **ids,
                "question_type": question_type,
                "answer_type": question.answer_type,
                "multiple_choice_answer": answer,
                "answers": _ten_answers(answer, random.Random(ids["question_id"])),
            }
        )
    return questions, annotations


def _ten_answers(answer: str, rng: random.Random) -> list[Record]:
    """What ten people say: now and then one or two of them use another word for the same."""
    synonym = SYNONYMS.get(answer, answer)
    dissent = rng.choice((0, 0, 1, 2))
    said = [synonym] * dissent + [answer] * (ANSWERS - dissent)
    rng.shuffle(said)
    return [
        {"answer": word, "answer_confidence": "yes" if word == answer else "maybe", "answer_id": number}
        for number, word in enumerate(said, start=1)
    ]


def instance_records(annotated: Annotated, boxes: list[Box]) -> list[Record]:
    """Entries of "annotations" in COCO's instances file: every thing of the scene."""
    return [
        {
            "id": annotated.image_id * 10 + number,
            "image_id": annotated.image_id,
            "category_id": SHAPES.index(thing.shape) + 1,
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for number, (thing, box) in enumerate(zip(annotated.scene.things, boxes, strict=True))
    ]


def reference_records(annotated: Annotated) -> list[Record]:
    """Entries of RefCOCO's refs: one for each thing referred to, with all sentences about it."""
    refs: dict[int, Record] = {}
    for count, (thing, _, words) in enumerate(annotated.expressions):
        number = annotated.scene.things.index(thing)
        ref = refs.setdefault(
            number,
            {
                "ref_id": annotated.image_id * 10 + number,
                "ann_id": annotated.image_id * 10 + number,
                "image_id": annotated.image_id,
                "file_name": annotated.file_name,
                "category_id": SHAPES.index(thing.shape) + 1,
                "split": annotated.split,
                "sent_ids": [],
                "sentences": [],
            },
        )
        sent_id = annotated.image_id * 10 + count
        ref["sent_ids"].append(sent_id)
        ref["sentences"].append({"tokens": words.split(), "raw": words, "sent_id": sent_id, "sent": words})
    return list(refs.values())


def _rng(seed: int, split: str, index: int, part: str) -> random.Random:
    """A stream of its own for each part of each scene, so that changing one part moves no other."""
    return random.Random(f"{seed}/{split}/{index}/{part}")
