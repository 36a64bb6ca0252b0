"""One split's encoded batches on disk, a file each: written once, read by later passes, other processes and later runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from fusionkit.distributed import barrier, from_rank_zero
from fusionkit.files.atomic import remove_leftovers
from fusionkit.files.tensors import is_whole, read_tensors, save_tensors
from fusionkit.types import Batch, Encoded, Tokens

ADVICE = "make room, or name another folder as evaluation.options.cache=FOLDER"

KEPT = ("ids", "input_ids", "attention_mask")  # of the texts of a kind, beside what the encoder made of them


class Encodings:
    """The batches of a split by number, with what the encoders made of them.

    Of a batch only the ids and the token ids are kept; of an image not its ``memory``, which is many times as large, and
    prepared anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)

    def path(self, number: int) -> Path:
        return self.folder / f"batch_{number:06}.pt"

    def has(self, number: int) -> bool:
        """Whether the batch is there; one that is damaged is told, and made anew."""
        path = self.path(number)
        if path.is_file() and not is_whole(path):
            print(f"{path} is damaged; it is made anew", flush=True)
            return False
        return path.is_file()

    def save(self, number: int, batch: Batch, encoded: Encoded) -> None:
        """Keep a batch on any device; raises DataError where the disk is full."""
        texts = {kind: rows for kind, rows in batch.items() if isinstance(rows, dict) and "ids" in rows}
        kinds = {kind: {name: rows[name] for name in KEPT if name in rows} for kind, rows in texts.items()}
        content = {
            "ids": {"image_ids": batch["image_ids"], **kinds},
            "image": tuple(encoded.image),
            "image_feats": encoded.image_feats,
            "text": {kind: tuple(tokens) for kind, tokens in encoded.text.items()},
            "text_feats": encoded.text_feats,
        }
        save_tensors(_copied(content), self.path(number), advice=ADVICE)

    def load(self, number: int) -> tuple[dict[str, Any], Encoded]:
        """A batch's ``image_ids``, what is ``KEPT`` of each kind, and its encodings, mapped from the file into the CPU's memory.

        Only what is read of them takes memory.
        """
        content = read_tensors(self.path(number), mmap=True)
        text = {kind: Tokens(*tokens) for kind, tokens in content["text"].items()}
        image = Tokens(*content["image"])
        return content["ids"], Encoded(image, None, content["image_feats"], text, content["text_feats"])


def _copied(value: Any) -> Any:
    """With its tensors on the CPU, each a copy: a view is saved with all that it is a view of."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return tuple(_copied(part) for part in value) if isinstance(value, tuple) else value


@contextmanager
def encodings_in(folder: Path | None) -> Iterator[Encodings]:
    """Encodings in a folder that stays or, for None, in a temporary one that all processes share."""
    if folder is not None:
        yield Encodings(folder)
        return
    with TemporaryDirectory(prefix="fusionkit_") as own:
        yield Encodings(Path(from_rank_zero(own)))
        barrier()  # the others may still read what rank 0 is about to remove
