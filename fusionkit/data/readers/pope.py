"""POPE, is an object in the image? (Li et al. 2023): `coco_pope_{random,popular,adversarial}.json`, as published.

The layout is that of https://github.com/RUCAIBox/POPE/tree/main/output: an object a line (of A-OKVQA and GQA a list of them)
with the fields `question_id`, `image` (a file's name), `text` and `label` ("yes" or "no").
"""

import re
from pathlib import Path
from typing import Any

from fusionkit.data.files import add_new, annotation_file, expecting
from fusionkit.data.images import find_images, folder_of, image_places
from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.foils import LABEL, PAIR
from fusionkit.errors import DataError
from fusionkit.files.plain import read_json, read_json_lines

LAYOUT = "POPE json"
LABELS = ("yes", "no")
ASKED = re.compile(r"Is there (?P<article>an?) (?P<object>.+) in the image\?", re.IGNORECASE)


class Pope:
    """Reader of "questions" with the fact `label`, and of two "captions" beside each, `<question_id>/yes` and `<question_id>/no`.

    The captions are `present` and `absent` with the question's own {question}, {article} and {object}, for models that answer no
    questions; their facts are the question (`pair`), what they say (`says`) and the `label`. Where one of the two is null there
    are none, and questions may be of any form.
    """

    def __init__(
        self,
        annotations: str,
        images: str | None,
        present: str | None = "There is {article} {object} in the image.",
        absent: str | None = "There is no {object} in the image.",
    ) -> None:
        self.annotations, self.images = str(annotations), images
        self.present, self.absent = present, absent

    def read(self, split: str) -> list[Sample]:
        """The images of a setting. Raises DataError."""
        path = annotation_file(self.annotations, split)
        questions: dict[str, list[Text]] = {}
        captions: dict[str, list[Text]] = {}
        ids: set[Any] = set()
        with expecting(path, LAYOUT):
            for row in _rows(path):
                add_new(ids, row["question_id"], "the question", path)
                if row["label"] not in LABELS:
                    raise DataError(
                        f"question {row['question_id']} of {path} has the label {row['label']!r}, but has to be yes or no"
                    )
                asked = Text(row["question_id"], row["text"], {LABEL: row["label"]})
                questions.setdefault(row["image"], []).append(asked)
                captions.setdefault(row["image"], []).extend(self._captions(asked, path))
            names: dict[int | str, list[str]] = {image: image_places(image, image) for image in questions}
        files = find_images(folder_of(self.images, split), names, path)
        return [
            Sample(image, files[image], _kinds(tuple(asked), tuple(captions[image])))
            for image, asked in questions.items()
        ]

    def _captions(self, asked: Text, path: Path) -> list[Text]:
        """What a yes and a no to the question say."""
        if self.present is None or self.absent is None:
            return []
        found = ASKED.fullmatch(asked.text.strip())
        if found is None:
            raise DataError(
                f"question {asked.id} of {path} is {asked.text!r}, not 'Is there a THING in the image?', of which captions are "
                "made; leave these out with benchmark.pope.reader.present=null"
            )
        parts, label = {"question": asked.text, **found.groupdict()}, asked.facts[LABEL]
        return [
            Text(f"{asked.id}/{says}", said.format(**parts), {PAIR: asked.id, "says": says, LABEL: label})
            for says, said in zip(LABELS, (self.present, self.absent), strict=True)
        ]


def _kinds(questions: tuple[Text, ...], captions: tuple[Text, ...]) -> dict[str, tuple[Text, ...]]:
    return {"questions": questions} | ({"captions": captions} if captions else {})


def _rows(path: Path) -> list[Any]:
    """The objects of a file, one a line or in one list."""
    with path.open("rb") as file:
        is_list = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if not is_list:
        return read_json_lines(path)
    rows = read_json(path)
    if not rows:
        raise DataError(f"the list of {path} is empty; expected the {LAYOUT} layout with at least one question")
    return list(rows)
