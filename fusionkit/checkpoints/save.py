"""How checkpoints reach the disk: hashed, at once or not at all, and with the one before kept beside the last."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from fusionkit.checkpoints.frozen import FrozenWeights, with_frozen
from fusionkit.checkpoints.split import remove_unnamed, with_parts
from fusionkit.files.tensors import read_tensors, save_tensors

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
ADVICE = "make room, then give the same command with resume=auto"


class WholeCheckpoints(TorchCheckpointIO):
    """Files that are read back as they were written, or not at all; with what is frozen or split apart, where they say so."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen = FrozenWeights()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; raises DataError, the old one whole, where the disk does not take it."""
        path = Path(path)
        checkpoint = dict(self._frozen.set_apart(checkpoint, path.parent, ADVICE))
        save_tensors(checkpoint, path, path.with_name(PREVIOUS) if path.name == LAST else None, ADVICE)
        remove_unnamed(path.parent)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, and the files that it alone has named."""
        super().remove_checkpoint(path)
        remove_unnamed(Path(path).parent)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = True) -> Any:
        """Read a checkpoint, its tensors on the CPU; raises DataError where it is damaged."""
        return read_whole(Path(path))


def read_whole(path: Path) -> Any:
    """The content of a checkpoint, with all that lies in files beside it; DataError where one of them is damaged or missing."""
    return with_parts(with_frozen(read_tensors(path), path), path)
