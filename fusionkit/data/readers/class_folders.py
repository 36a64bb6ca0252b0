"""Folders of pictures by class, `val/tench/1.jpg`: each picture is asked about every class.

The layout is that of torchvision's `ImageFolder` (https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.ImageFolder.html).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionkit.data.files import expecting
from fusionkit.data.images import folder_of
from fusionkit.data.readers.picture_folders import picture_files
from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.foils import CAPTION, FOIL, LABEL
from fusionkit.errors import ConfigError, DataError
from fusionkit.files.plain import read_json

LAYOUT = "names of classes"
CLASS = "class"  # the fact: the folder of the class that a text names


class ClassFolders:
    """Reader of "captions": for each picture one text a class, `template` with its name, with the facts `class` and `label`.

    ``annotations``  the folder of the classes' folders; may contain `{split}`.
    ``names``        a json file {folder: name}; without it a class is called as its folder, with spaces for underscores.
    ``own``          True leaves out the texts of the classes that a picture is not of, for what reads no texts.
    A picture's id is `<folder>/<file>`, a text's `<picture>/<folder of the class>`; folders within a class's are its own.
    Pictures are turned by their EXIF orientation.
    """

    def __init__(
        self,
        annotations: str,
        images: str | None = None,
        template: str = "a photo of a {}.",
        names: str | None = None,
        own: bool = False,
    ) -> None:
        if template.count("{}") != 1:
            raise ConfigError(f"reader.template is '{template}', but has to have one {{}}, where the class stands")
        self.annotations, self.images, self.template, self.names = str(annotations), images, template, names
        self.own = own

    def read(self, split: str) -> list[Sample]:
        """The pictures of all classes. Raises DataError."""
        folder = folder_of(self.annotations, split)
        assert folder is not None
        if not folder.is_dir():
            raise DataError(f"the folder of classes {folder} does not exist; check root and the reader's 'annotations'")
        pictures = picture_files(folder)
        if stray := [path for path in pictures if path.parent == folder]:
            raise DataError(f"{stray[0]} is in no folder of a class; move it into that of its class, or out")
        classes = sorted({path.relative_to(folder).parts[0] for path in pictures})
        if len(classes) < 2:
            raise DataError(f"{folder} has pictures of {len(classes)} classes, but two are needed to tell them apart")
        texts = {name: self.template.replace("{}", said) for name, said in self._said(classes).items()}
        return [_sample(path, path.relative_to(folder).as_posix(), texts, self.own) for path in pictures]

    def _said(self, classes: list[str]) -> dict[str, str]:
        """What each class is called."""
        if self.names is None:
            return {name: name.replace("_", " ") for name in classes}
        path = Path(self.names)
        with expecting(path, LAYOUT):
            known: Mapping[str, Any] = dict(read_json(path))
        for name in classes:
            if not isinstance(known.get(name), str):
                raise DataError(f"{path} has no name for the class '{name}'; add it, as a text")
        return {name: known[name] for name in classes}


def _sample(path: Path, picture: str, texts: Mapping[str, str], only_own: bool) -> Sample:
    own = picture.partition("/")[0]
    said = tuple(
        Text(f"{picture}/{name}", text, {CLASS: name, LABEL: CAPTION if name == own else FOIL})
        for name, text in texts.items()
        if name == own or not only_own
    )
    return Sample(picture, path, {"captions": said}, upright=True)
