"""Questions about text in pictures: `TextVQA_0.5.1_val.json` and DocVQA's `val_v1.0_withQT.json`, as published."""

from pathlib import Path
from typing import Any

from fusionkit.data.files import add_new, annotation_file, expecting, table
from fusionkit.data.identity import check_id
from fusionkit.data.images import find_images, folder_of, image_places
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.files.plain import read_json
from fusionkit.files.unicode import readable


class TextQuestions:
    """Reader of "questions", with the fact `answers` where they are known.

    ``annotations``, ``images``  a file with a list `data`, and the folder of pictures; may contain `{split}`.
    ``id``, ``image``            the fields of a question's id, and of its picture: an id, or a path below the folder.
    ``may_lack``                 a part of the file's name that another release lacks, whose file is read where it stands alone.
    """

    def __init__(
        self,
        annotations: str,
        images: str | None,
        id: str = "question_id",
        image: str = "image_id",
        may_lack: str = "",
    ) -> None:
        self.annotations, self.images, self.id, self.image = str(annotations), images, id, image
        self.may_lack = may_lack

    def read(self, split: str) -> list[Sample]:
        """The pictures of a split that have questions. Raises DataError."""
        path, layout = self._file(split), f"list of questions with {self.id} and {self.image}"
        rows = table(read_json(path), "data", path, layout)
        ids: set[Any] = set()
        questions: dict[int | str, list[Text]] = {}
        with expecting(path, layout):
            for row in rows:
                number, image = row[self.id], row[self.image]
                add_new(ids, number, "the question", path)
                check_id(image, f"question {number} about a picture", path)
                questions.setdefault(image, []).append(Text(number, row["question"], _facts(row, number, path)))
            names = {image: image_places(image, str(image) if "/" in str(image) else "") for image in questions}
        files = find_images(folder_of(self.images, split), names, path)
        return [Sample(image, files[image], {"questions": tuple(asked)}) for image, asked in questions.items()]

    def _file(self, split: str) -> Path:
        given = Path(self.annotations)
        older = given.parent / given.name.replace(self.may_lack, "") if self.may_lack else given
        here, there = (Path(str(each).replace("{split}", split)).is_file() for each in (given, older))
        return annotation_file(str(older if there and not here else given), split)


def _facts(row: dict[str, Any], number: Any, path: Path) -> dict[str, Any]:
    answers = row.get("answers")
    if answers is None:  # secret
        return {}
    if not isinstance(answers, list) or not answers or not all(isinstance(each, str) for each in answers):
        raise DataError(f"question {number} of {path} has no list of texts as answers; correct it, or leave them out")
    return {"answers": [readable(each) for each in answers]}
