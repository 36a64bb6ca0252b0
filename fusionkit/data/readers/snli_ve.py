"""SNLI-VE, visual entailment on Flickr30k photos: `snli_ve_{train,dev,test}.jsonl`, as published."""

from collections import Counter
from pathlib import Path
from typing import Any

from fusionkit.data.files import add_new, annotation_file, expecting
from fusionkit.data.images import find_images, folder_of
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.files.plain import read_json_lines

LAYOUT = "SNLI-VE jsonl"
LABELS = ("contradiction", "neutral", "entailment")
UNDECIDED = "-"  # SNLI's gold label where the annotators did not agree


class SnliVE:
    """Reader of "hypotheses", with the facts `gold_label` and the share of each label, by its name.

    `labels` "hard" gives the gold label all of it, "soft" each what its part of the annotators said. Undecided pairs are
    left out. The paths may contain `{split}`: train, dev, test.
    """

    def __init__(
        self, annotations: str, images: str | None, labels: str = "hard", collection: str = "flickr30k"
    ) -> None:
        if labels not in ("hard", "soft"):
            raise ConfigError(f"reader.labels of SNLI-VE is '{labels}'; {suggest(labels, ['hard', 'soft'])}")
        self.annotations, self.images = str(annotations), images
        self.labels, self.collection = labels, collection

    def read(self, split: str) -> list[Sample]:
        """The images of a split that have hypotheses. Raises DataError."""
        path = annotation_file(self.annotations, split)
        texts: dict[int | str, list[Text]] = {}
        ids: set[Any] = set()
        with expecting(path, LAYOUT):
            for row in read_json_lines(path):
                add_new(ids, row["pairID"], "the pair", path)
                if row["gold_label"] != UNDECIDED:
                    texts.setdefault(_image_id(row), []).append(
                        Text(row["pairID"], row["sentence2"], self._facts(row, path))
                    )
        names = {image_id: [f"{image_id}.jpg"] for image_id in texts}
        files = find_images(folder_of(self.images, split), names, path)
        return [
            Sample(image_id, files[image_id], {"hypotheses": tuple(said)}, collection=self.collection)
            for image_id, said in texts.items()
        ]

    def _facts(self, row: dict[str, Any], path: Path) -> dict[str, Any]:
        gold = row["gold_label"]
        if gold not in LABELS:
            raise DataError(f"pair {row['pairID']} of {path} has the gold_label '{gold}'; {suggest(gold, LABELS)}")
        said = [label for label in row["annotator_labels"] if label in LABELS] if self.labels == "soft" else []
        votes = Counter(said or [gold])  # some annotators gave no label, of a few pairs none did
        return {"gold_label": gold} | {label: votes[label] / votes.total() for label in LABELS}


def _image_id(row: dict[str, Any]) -> int:
    """The photo's number; the published files spell the key so, some copies with a c, and some add ".jpg"."""
    name = row["Flikr30kID"] if "Flikr30kID" in row else row["Flickr30kID"]
    return int(str(name).removesuffix(".jpg"))
