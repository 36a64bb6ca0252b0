"""MMMU as its authors publish it: `<Subject>/validation-00000-of-00001.parquet`, or its rows as json, with pictures in files.

A row has `id` ("validation_Accounting_1"), `question`, `options` (a list, or one as Python writes it), `answer`, `question_type`
("multiple-choice" or "open") and `image_1` to `image_7`: https://huggingface.co/datasets/MMMU/MMMU
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fusionkit.data.files import add_new, annotation_file, expecting
from fusionkit.data.images import find_images, folder_of, image_places
from fusionkit.data.readers.row_columns import unpacked
from fusionkit.data.readers.row_files import open_rows
from fusionkit.data.readers.rows import Stored
from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.foils import CAPTION, FOIL, LABEL, PAIR
from fusionkit.errors import DataError

LAYOUT = "MMMU rows"
ID = re.compile(r"[^_]+_(?P<subject>.+)_\d+")
MOST_IMAGES, MOST_OPTIONS = 7, 26
COLUMNS = ("id", "question", "options", "answer", "question_type", *(f"image_{n}" for n in range(1, MOST_IMAGES + 1)))


class MMMU:
    """Reader of "questions" with the facts `options`, `answer`, `subject`, `images` (a count), and of "captions", one an option.

    ``annotations``  a folder of subjects' folders, or one file; may contain `{split}`.
    ``images``       the folder of pictures that a file names; None: they are not looked for, as where answers are scored.
    ``choice``       the text of an option behind its {question}; its facts are the question (`pair`) and a `label`.
    ``asked``        a question with its {options}, each with its letter, for models that answer in words.
    The image is the first that a row has, whatever its number; one sample a question.
    """

    def __init__(
        self,
        annotations: str,
        images: str | None = None,
        choice: str = "{question} {option}",
        asked: str = "{question}\n{options}",
    ) -> None:
        self.annotations, self.images, self.choice, self.asked = str(annotations), images, choice, asked

    def read(self, split: str) -> list[Sample]:
        """The questions of a split. Raises DataError."""
        ids: set[Any] = set()
        found: list[tuple[dict[str, Any], Path]] = []
        for path in self._files(split):
            table = open_rows(path)
            with expecting(path, LAYOUT):
                for row in table.rows([name for name in COLUMNS if name in table.columns]):
                    add_new(ids, row["id"], "the question", path)
                    found.append((row, path))
        places = self._places(found, split)
        samples = []
        for row, path in found:
            with expecting(path, LAYOUT):
                samples.append(Sample(row["id"], places[row["id"]], self._texts(row, path)))
        return samples

    def _files(self, split: str) -> list[Path]:
        folder = folder_of(self.annotations, split)
        if folder is None or not folder.is_dir():
            return [annotation_file(self.annotations, split)]
        files = sorted(path for ending in ("parquet", "json", "jsonl") for path in folder.glob(f"*/{split}*.{ending}"))
        if not files:
            raise DataError(f"{folder} has no SUBJECT/{split}*.parquet or .json; name MMMU's folder as root=FOLDER")
        return files

    def _places(self, found: list[tuple[dict[str, Any], Path]], split: str) -> Mapping[int | str, Path]:
        """Where the picture of each question is."""
        places: dict[int | str, Path] = {}
        named: dict[Path, dict[int | str, list[str]]] = {}
        for row, path in found:
            first = next(_pictures(row), None)
            if first is None:
                raise DataError(f"question {row['id']} of {path} has no picture; add it as image_1, or remove the row")
            if isinstance(first, Stored):
                places[row["id"]] = first.path
            else:
                named.setdefault(path, {})[row["id"]] = image_places(str(first), str(first))
        for path, wanted in named.items():
            places |= find_images(folder_of(self.images, split), wanted, path)
        return places

    def _texts(self, row: Mapping[str, Any], path: Path) -> dict[str, tuple[Text, ...]]:
        number, is_choice = row["id"], row["question_type"] == "multiple-choice"
        known = ID.fullmatch(str(number))
        if known is None:
            raise DataError(f"question {number!r} of {path} is not called SPLIT_SUBJECT_NUMBER, as MMMU calls them")
        options, answer = unpacked(row["options"]) if is_choice else [], unpacked(row["answer"])
        if is_choice and not (isinstance(options, list | tuple) and 2 <= len(options) <= MOST_OPTIONS):
            raise DataError(
                f"question {number} of {path} has no list of 2 to {MOST_OPTIONS} options; correct or remove it"
            )
        options = [str(each) for each in options]
        names = [chr(ord("A") + place) for place in range(len(options))]
        if is_choice and answer not in (*names, "?", "", None):  # a question mark where answers are secret
            raise DataError(
                f"question {number} of {path} has the answer {answer!r}, but its options are A to {names[-1]}"
            )
        question = str(row["question"])
        facts = {
            "options": options,
            "answer": None
            if answer in ("?", "", None)
            else [str(each) for each in answer]
            if isinstance(answer, list)
            else str(answer),
            "subject": known["subject"],
            "images": sum(1 for _ in _pictures(row)),
        }
        listed = "\n".join(f"({name}) {option}" for name, option in zip(names, options, strict=True))
        text = _filled(self.asked, question=question, options=listed) if options else question
        captions = tuple(
            Text(
                f"{number}/{name}",
                _filled(self.choice, question=question, option=option),
                {PAIR: number, LABEL: CAPTION if name == answer else FOIL},
            )
            for name, option in zip(names, options, strict=True)
        )
        asked = {"questions": (Text(number, text, facts),)}
        return asked | ({"captions": captions} if captions else {})


def _filled(template: str, **parts: str) -> str:
    """A template with its parts; braces in these stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: parts.get(found[1], found[0]), template)


def _pictures(row: Mapping[str, Any]) -> Iterator[Stored | str]:
    """The pictures of a row, in their order."""
    for number in range(1, MOST_IMAGES + 1):
        value = row.get(f"image_{number}")
        if value:
            yield value
