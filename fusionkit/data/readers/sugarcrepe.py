"""SugarCREPE, captions beside hard foils (Hsieh et al. 2023): `add_att.json` and six others, as published.

The layout is that of https://github.com/RAIVNLab/sugar-crepe/tree/main/data: an object of numbered entries, each with the fields
`filename` (a photo of COCO's val2017), `caption` and `negative_caption`.
"""

from collections.abc import Sequence
from pathlib import Path

from fusionkit.data.files import annotation_file, expecting
from fusionkit.data.images import find_images, folder_of, image_places
from fusionkit.data.sample import Sample
from fusionkit.data.texts.foils import Foiled, entries, foiled, samples_of
from fusionkit.errors import ConfigError, suggest
from fusionkit.files.plain import read_json

LAYOUT = "SugarCREPE json"
KINDS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


class SugarCrepe:
    """Reader of "captions" in pairs (`data.texts.foils`), whose `subset` is the kind of the foil.

    `annotations` is the folder of the published files, of which those of `kinds` are read. A pair's id is `<kind>/<entry>`.
    """

    def __init__(self, annotations: str, images: str | None, kinds: Sequence[str] = KINDS) -> None:
        if wrong := [kind for kind in kinds if kind not in KINDS]:
            raise ConfigError(f"reader.kinds of SugarCREPE has '{wrong[0]}'; {suggest(wrong[0], KINDS)}")
        self.annotations, self.images, self.kinds = str(annotations), images, tuple(kinds)

    def read(self, split: str) -> list[Sample]:
        """The photos that have pairs. Raises DataError."""
        pairs: list[Foiled] = []
        files: dict[int | str, Path] = {}
        for kind in self.kinds:
            path = annotation_file(f"{self.annotations}/{kind}.json", split)
            with expecting(path, LAYOUT):
                rows = entries(read_json(path), path, LAYOUT)
                names: dict[int | str, list[str]] = {
                    row["filename"]: image_places(row["filename"], row["filename"]) for row in rows.values()
                }
                pairs += [
                    foiled(f"{kind}/{key}", row["filename"], row["caption"], row["negative_caption"], kind)
                    for key, row in rows.items()
                ]
            files |= find_images(folder_of(self.images, split), names, path)
        return samples_of(pairs, files)
