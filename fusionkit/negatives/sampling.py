"""The distribution that wrong partners are drawn by. Imports torch only."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusionkit.errors import ConfigError, DataError
from fusionkit.files.plain import read_json
from fusionkit.negatives.pool import OwnBatch, Pool
from fusionkit.types import Batch, at_least_fp32


class Drawn(NamedTuple):
    """``k`` wrong columns for each row, all different."""

    columns: Tensor  # (R, k) int64
    is_valid: Tensor  # (R, k) bool; a row with fewer than k allowed columns has invalid ones
    entropy: (
        Tensor  # scalar: entropy of the distribution in nats, mean over rows with a partner; 0: one certain, NaN: none
    )


class Negatives(nn.Module):
    """Base of all: draws ``k`` columns a row, without replacement, by softmax(``logits``) over those not excluded.

    Excluded columns are -inf *before* the softmax, so they are never drawn and no floor distorts the distribution.
    Vectorised: one multinomial draw, no host synchronisation.

    ``pool``  where the partners come from (fusionkit.negatives.pool); None: the rank's own batch.
    ``k``     wrong partners for each true pair and side; with few columns there may be fewer.
    ``teacher_threshold`` also excludes columns whose cosine by the momentum teacher is at least this (false negatives).
    ``by_teacher`` compares each row with the teacher's features of the columns, where there is a teacher (as ALBEF and BLIP
                  do when they pre-train); False: with the student's.
    """

    def __init__(
        self,
        pool: Pool | None = None,
        k: int = 1,
        teacher_threshold: float | None = None,
        by_teacher: bool = False,
    ) -> None:
        super().__init__()
        if k < 1:
            raise ConfigError(f"negatives.k is {k}; a true pair needs at least 1 wrong partner")
        self.pool = pool or OwnBatch()
        if teacher_threshold is not None and not self.pool.has_teacher:
            raise ConfigError(
                f"negatives.teacher_threshold: {type(self.pool).__name__} keeps no states of the teacher; set it to null, "
                "or use negatives=in_batch or all_rank"
            )
        if by_teacher and not self.pool.has_teacher:
            raise ConfigError(
                f"negatives.by_teacher: {type(self.pool).__name__} keeps no states of the teacher; set it to false, or use "
                "negatives=in_batch or all_rank"
            )
        self.k, self.teacher_threshold, self.by_teacher = k, teacher_threshold, by_teacher

    @property
    def asks_teacher(self) -> bool:
        """Whether a momentum teacher has a say in what is drawn."""
        return self.by_teacher or self.teacher_threshold is not None

    def logits(self, similarity: Tensor, mined: Tensor | None) -> Tensor:
        """Log of the distribution (R, C), up to a constant a row."""
        raise NotImplementedError

    def mined(self, batch: Batch) -> Tensor | None:
        """Which image of a batch was named beforehand as a partner for which, (I, I) bool, where a distribution asks for it."""
        return None

    def forward(self, similarity: Tensor, is_excluded: Tensor, mined: Tensor | None = None) -> Drawn:
        """similarity, is_excluded and mined (R, C): the columns drawn."""
        if not similarity.numel():  # no text in the batch: nothing to draw from
            columns = torch.zeros(len(is_excluded), min(self.k, 1), dtype=torch.int64, device=is_excluded.device)
            return Drawn(columns, torch.zeros_like(columns, dtype=torch.bool), similarity.new_zeros(()))
        distribution = self.distribution(similarity, is_excluded, mined)
        # a distribution that is not finite draws any column, for torch.multinomial would end the process; its entropy says so
        columns = torch.multinomial(
            torch.where(distribution.isfinite(), distribution, 1.0), min(self.k, distribution.shape[1])
        )
        return Drawn(columns, ~is_excluded.gather(1, columns), _entropy(distribution, ~is_excluded.all(dim=1)))

    def distribution(self, similarity: Tensor, is_excluded: Tensor, mined: Tensor | None = None) -> Tensor:
        """The probabilities (R, C); of a row with no column to draw any, for it is dropped."""
        logits = self.logits(at_least_fp32(similarity), None if mined is None else mined & ~is_excluded)
        logits = logits.masked_fill(is_excluded, float("-inf"))
        has_any = ~is_excluded.all(dim=1, keepdim=True)
        return torch.where(has_any, logits, torch.zeros_like(logits)).softmax(dim=1)


class HardNegatives(Negatives):
    """Draws column j of row i with probability softmax(similarity_ij) over the columns that show another image (ALBEF).

    ``floor`` is what BLIP (1e-4) and X-VLM (1e-5) add to every softmax value, to keep torch.multinomial from failing: in a
    large batch most draws are then uniform. It is here to reproduce them; the distribution needs none.
    """

    def __init__(
        self,
        pool: Pool | None = None,
        k: int = 1,
        teacher_threshold: float | None = None,
        by_teacher: bool = False,
        floor: float = 0.0,
    ) -> None:
        super().__init__(pool, k, teacher_threshold, by_teacher)
        self.floor = floor

    def logits(self, similarity: Tensor, mined: Tensor | None) -> Tensor:
        return (similarity.softmax(dim=1) + self.floor).log() if self.floor else similarity


class RandomNegatives(Negatives):
    """Draws uniformly over the columns that show another image."""

    def logits(self, similarity: Tensor, mined: Tensor | None) -> Tensor:
        return torch.zeros_like(similarity)


class OfflineNegatives(Negatives):
    """Draws uniformly over the partners that a file names for the row's image; from that of HardNegatives where none is there.

    ``file`` json, {image id: [ids of images that are hard to tell from it]}, as an earlier model mined them. It chooses among
    the images of the batch, so it tells the more the larger the batch.
    """

    def __init__(self, file: str | None, k: int = 1, teacher_threshold: float | None = None) -> None:
        super().__init__(None, k, teacher_threshold)
        if not file:
            raise ConfigError("negatives.file: name the json file of mined partners, negatives.file=PATH")
        self.table = _read_table(Path(file))

    def mined(self, batch: Batch) -> Tensor:
        names = [str(image_id) for image_id in batch["image_ids"]]
        partners = [self.table.get(name, frozenset()) for name in names]
        return torch.tensor([[name in named for name in names] for named in partners])

    def logits(self, similarity: Tensor, mined: Tensor | None) -> Tensor:
        assert mined is not None
        named = torch.zeros_like(similarity).masked_fill(~mined, float("-inf"))
        return torch.where(mined.any(dim=1, keepdim=True), named, similarity)


def _entropy(distribution: Tensor, has_any: Tensor) -> Tensor:
    rows = torch.special.entr(distribution).sum(dim=1) * has_any
    mean: Tensor = rows.sum() / has_any.sum().clamp(min=1)
    return mean


def _read_table(path: Path) -> dict[str, frozenset[str]]:
    content = read_json(path)
    is_table = isinstance(content, dict) and all(isinstance(partners, list) for partners in content.values())
    if not is_table or not all(type(partner) in (int, str) for row in content.values() for partner in row):
        raise DataError(f"negatives.file {path}: expected json {{image id: [image ids]}}")
    return {image: frozenset(map(str, partners)) for image, partners in content.items()}
