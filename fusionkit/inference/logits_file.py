"""The logits of many pairs in one file, which processes fill block by block while others do, and a later run goes on with."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusionkit.distributed import barrier, rank
from fusionkit.files.atomic import atomic_write, writing

NUMBERS = 2  # of a pair
WORDS = NUMBERS + 1  # of 32 bits in a row of the file: the numbers, and a check of them
FACTORS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], dtype=np.uint32)  # odd: another word is another product


class LogitsFile:
    """Logits (P, 2) of pairs. Each row has a check of its own, so that what was torn, cut off or changed counts as unknown."""

    def __init__(self, path: Path, pairs: int) -> None:
        """Rank 0 makes the file where there is none of this size."""
        self.path, self.pairs = path, pairs
        if rank() == 0 and not (path.is_file() and path.stat().st_size == 4 * WORDS * pairs):
            with atomic_write(path) as file:
                file.write(bytes(4 * WORDS * pairs))
        barrier()

    def read(self) -> Tensor:
        """The logits (P, 2), NaN where none are known."""
        rows = np.fromfile(self.path, dtype=np.uint32).reshape(self.pairs, WORDS)
        numbers = np.ascontiguousarray(rows[:, :NUMBERS])
        logits = torch.from_numpy(numbers.view(np.float32))
        logits[torch.from_numpy(rows[:, NUMBERS] != _check(numbers, 0))] = torch.nan
        return logits

    def write(self, start: int, logits: Tensor) -> None:
        """Keep the logits (B, 2) of the pairs from ``start`` on."""
        numbers = logits.float().contiguous().numpy().view(np.uint32)
        rows = np.concatenate([numbers, _check(numbers, start)[:, None]], axis=1)
        with writing(self.path), self.path.open("r+b") as file:
            file.seek(4 * WORDS * start)
            file.write(rows.tobytes())


def _check(numbers: np.ndarray, start: int) -> np.ndarray:
    """The checks (B,) of rows (B, 2) from number ``start`` on; none is 0, as all are in a new file."""
    place = np.arange(start, start + len(numbers), dtype=np.uint32)
    words = np.column_stack([numbers, place])
    checksums: np.ndarray = (words * FACTORS).sum(axis=1, dtype=np.uint32) | np.uint32(1)
    return checksums
