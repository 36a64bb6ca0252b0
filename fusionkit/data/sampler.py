"""The order of training samples, a pure function of the seed: a run resumes exactly, and ranks share by counting."""

import hashlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One sample of a training batch."""

    sample_index: int
    seed: int  # of everything random about this sample: its texts, its augmentation


class Stream:
    """An endless sequence over `size` samples: permutation after permutation, each a function of (seed, name, number).

    A shorter source simply runs on into its next permutation while a longer one is still in its first.

    `weights`  (N,), how often each sample comes in proportion, on average over permutations; None: each once in each.
    `groups`   (N,), the number of the file that each sample stands in: files come in a random order, and samples are shuffled
               in each stretch of `window` of them, so that what is read lies close together. A file of more than that comes
               in pieces, each as if it were a file. None: all samples are shuffled.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        name: str,
        weights: NDArray[np.float64] | None = None,
        groups: NDArray[np.int64] | None = None,
        window: int = 0,
    ) -> None:
        self.size, self.seed, self.name = size, seed, name
        self.ends = None if weights is None else np.cumsum(weights) / weights.sum() * size
        self.groups, self.window = groups, window
        self._permutation = (-1, torch.empty(0, dtype=torch.long))  # the last one used, with its number

    def __getitem__(self, position: int) -> Draw:
        number, place = divmod(position, self.size)
        if number != self._permutation[0]:
            generator = torch.Generator().manual_seed(self._hash("permutation", number))
            self._permutation = number, self._permuted(generator)
        return Draw(int(self._permutation[1][place]), self._hash("sample", position))

    def _permuted(self, generator: torch.Generator) -> Tensor:
        rows = torch.arange(self.size)
        if self.ends is not None:  # systematic sampling: as often as its weight says, rounded up or down by chance
            start = torch.rand((), generator=generator, dtype=torch.float64).item()
            chosen = np.searchsorted(self.ends, np.arange(self.size) + start, side="right")
            rows = torch.from_numpy(chosen.clip(max=int(np.flatnonzero(np.diff(self.ends, prepend=0))[-1])))
        if self.groups is None:
            return rows[torch.randperm(self.size, generator=generator)]
        pieces = self._pieces(self.groups[rows.numpy()], generator)
        ranks = torch.randperm(int(max(self.groups.max(), pieces.max())) + 1, generator=generator)
        rows = rows[torch.argsort(ranks[torch.from_numpy(pieces)], stable=True)]
        stretches = rows.split(self.window)
        return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in stretches])

    def _pieces(self, groups: NDArray[np.int64], generator: torch.Generator) -> NDArray[np.int64]:
        """The number of the piece that each row is in, of the rows' groups (N,): a group, or a part of one.

        Groups of more than the window are cut, in each permutation at other places.
        """
        counts = np.bincount(groups)
        is_cut = counts > self.window
        if not is_cut.any():
            return groups
        start = int(torch.randint(self.window, (), generator=generator))
        order = np.argsort(groups, kind="stable")
        place = np.empty_like(groups)
        place[order] = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
        pieces = np.where(is_cut, (counts - 1 + start) // self.window + 1, 1)
        within = np.where(is_cut[groups], (place + start) // self.window, 0)
        return (np.cumsum(pieces) - pieces)[groups] + within

    def _hash(self, what: str, number: int) -> int:
        text = f"{self.seed}/{self.name}/{what}/{number}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1  # torch takes 63 bits


class Begin(NamedTuple):
    """Where batches of one size begin: those before were of another, of fewer or more ranks."""

    batch: int = 0  # the number of the first of them
    position: int = 0  # its first sample in the stream

    def after(self, batch: int, size: int) -> "Begin":
        """Where batches of a new size begin, when those of `size` samples, of all ranks, end before a batch."""
        return Begin(batch, self.position + (batch - self.batch) * size)


START = Begin()


class StreamBatches(Sampler[list[Draw]]):
    """Batches of a stream for one of `world_size` ranks: global batch t is the t-th stretch of the stream, from `begin` on.

    `window` tells, when an epoch starts, the number of its first batch since training began and how many follow;
    `len()` is the length of a whole epoch, also while the rest of one is run after a resume.
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        steps: int,
        window: Callable[[], tuple[int, int]],
        rank: int = 0,
        world_size: int = 1,
        begin: Begin = START,
    ) -> None:
        self.stream, self.batch_size, self.steps, self.window = stream, batch_size, steps, window
        self.rank, self.world_size, self.begin = rank, world_size, begin

    def batch(self, number: int) -> list[Draw]:
        """This rank's part of a global batch."""
        first = self.begin.position + ((number - self.begin.batch) * self.world_size + self.rank) * self.batch_size
        return [self.stream[position] for position in range(first, first + self.batch_size)]

    def __iter__(self) -> Iterator[list[Draw]]:
        first, count = self.window()
        return map(self.batch, range(first, first + count))

    def __len__(self) -> int:
        return self.steps


class ShardBatches(Sampler[list[int]]):
    """Every sample once over all ranks, in order: rank r has the samples r, r + world_size, ...

    All ranks have equally many batches, as collective operations want it, save where a shard is too short to fill them. Where
    there are more ranks than samples a rank has the last one again, since none may be without a batch; records count once.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(min(rank, max(size - 1, 0)), size, world_size)
        longest = -(-size // world_size)
        self.count = min(-(-longest // batch_size), len(self.indices))

    def __iter__(self) -> Iterator[list[int]]:
        edges = [len(self.indices) * number // self.count for number in range(self.count + 1)] if self.count else []
        return (list(self.indices[start:stop]) for start, stop in pairwise(edges))

    def __len__(self) -> int:
        return self.count
