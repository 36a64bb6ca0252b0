"""VALSE, captions beside foils of linguistic phenomena (Parcalabescu et al. 2022): `existence.json` and ten others, as published.

The layout is that of https://github.com/Heidelberg-NLP/VALSE/tree/main/data: an object of named entries, each with the fields
`dataset`, `image_file`, `caption`, `foil` and the votes `mturk`, of which `caption` counts the annotators, of three, who took
the caption, but not the foil, to describe the image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionkit.data.files import annotation_file, expecting
from fusionkit.data.images import find_images, folder_of, image_places
from fusionkit.data.sample import Sample
from fusionkit.data.texts.foils import Foiled, entries, foiled, samples_of
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.files.plain import read_json

LAYOUT = "VALSE json"
PIECES = (
    *("existence", "plurals", "counting-hard", "counting-small-quant", "counting-adversarial", "relations"),
    *("action-replacement", "actant-swap", "coreference-standard", "coreference-hard", "foil-it"),
)
VOTES = 2  # of three: a valid foil, by the authors' README
FOLDERS = {  # by `dataset`, where its images lie below `images`
    "visual7w": "visual7w",
    "coco2017": "val2017",
    "coco_2017": "val2017",
    "SWiG": "SWiG",
    "VisDial_v1.0": "VisualDialog_val2018",
    "FOIL dataset": "val2014",
}


class Valse:
    """Reader of "captions" in pairs (`data.texts.foils`), whose `subset` is the piece.

    `annotations` is the folder of the published files, of which those of `pieces` are read; entries whose foil fewer than
    `votes` annotators rejected are left out, as the authors do. `folders` says by `dataset` where its images lie below
    `images`; COCO's photos are found in the folder of their part too. A pair's id is `<piece>/<entry>`.
    """

    def __init__(
        self,
        annotations: str,
        images: str | None,
        pieces: Sequence[str] = PIECES,
        votes: int = VOTES,
        folders: Mapping[str, str] | None = None,
    ) -> None:
        if wrong := [piece for piece in pieces if piece not in PIECES]:
            raise ConfigError(f"reader.pieces of VALSE has '{wrong[0]}'; {suggest(wrong[0], PIECES)}")
        self.annotations, self.images, self.pieces, self.votes = str(annotations), images, tuple(pieces), votes
        self.folders = FOLDERS if folders is None else dict(folders)

    def read(self, split: str) -> list[Sample]:
        """The images that have valid pairs. Raises DataError."""
        pairs: list[Foiled] = []
        files: dict[int | str, Path] = {}
        for piece in self.pieces:
            path = annotation_file(f"{self.annotations}/{piece}.json", split)
            with expecting(path, LAYOUT):
                rows = entries(read_json(path), path, LAYOUT)
                valid = {key: row for key, row in rows.items() if row["mturk"]["caption"] >= self.votes}
                places = {key: self._place(key, row, path) for key, row in valid.items()}
                names: dict[int | str, list[str]] = {place: image_places(place, place) for place in places.values()}
                pairs += [
                    foiled(f"{piece}/{key}", places[key], row["caption"], row["foil"], piece)
                    for key, row in valid.items()
                ]
            files |= find_images(folder_of(self.images, split), names, path)
        return samples_of(pairs, files)

    def _place(self, key: str, row: Mapping[str, Any], path: Path) -> str:
        """The image's place below `images`."""
        dataset = row["dataset"]
        if dataset not in self.folders:
            raise DataError(
                f"entry {key} of {path} is of the dataset '{dataset}'; {suggest(dataset, self.folders)} "
                "(reader.folders says where the images of each lie)"
            )
        return f"{self.folders[dataset]}/{row['image_file']}"
