"""How far what a changed model says lies from what it said before: the mean KL divergence of its distributions."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit.assembly.evaluation_options import EvaluationOptions
from fusionkit.inference.evaluate import Split
from fusionkit.inference.prediction import EvaluationData, evaluating, moved, present_tasks
from fusionkit.losses import IGNORE
from fusionkit.model.model import VisionLanguageModel
from fusionkit.tasks.base import Task
from fusionkit.types import Batch, TaskOutput

Tasks = Mapping[str, Task[Any]]


@dataclass(frozen=True)
class Divergence:
    """``kl`` in nats, the mean over ``rows`` distributions; ``agreement``, the share of those whose likeliest class stays."""

    kl: float
    rows: int
    agreement: float


def divergences(
    before: tuple[VisionLanguageModel, Tasks],
    after: tuple[VisionLanguageModel, Tasks],
    splits: Sequence[Split],
    datamodule: EvaluationData,
    device: torch.device,
    options: EvaluationOptions,
) -> dict[str, Divergence]:
    """KL(before || after) over all of each split, by the label of each task that has a ``distribution``.

    Both read the same batches, and of what is said the words of the data before each next one. What is drawn (the words that
    MLM hides) is the same for both. Of several processes each computes all: losses, which are not read, are put together.
    """
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(3, dtype=torch.float64))
    for split in splits:
        told = {name: task for name, task in split.tasks.items() if task.distribution is not None}
        if not told:
            continue
        others = [*before[1].values(), after[0], *after[1].values()]
        with evaluating(before[0], others, device, options):
            for number, loaded in enumerate(datamodule.eval_loader(split.source, split.role)):
                batch = moved(loaded, device)
                names = list(present_tasks(told, batch))
                ours, theirs = (_said(*each, batch, names, number) for each in (before, after))
                for name in names:
                    rows = divergence(ours[name], theirs[name], str(told[name].distribution))
                    sums[split.labels.get(name, name)] += rows.cpu()
    return {
        label: Divergence(float(kl / rows), int(rows), float(same / rows))
        for label, (kl, rows, same) in sums.items()
        if rows
    }


def _said(
    model: VisionLanguageModel, tasks: Tasks, batch: Batch, names: Sequence[str], number: int
) -> dict[str, TaskOutput]:
    kinds = sorted({tasks[name].reads for name in names if tasks[name].encodes})
    encoded = model.encode(batch, kinds)
    found = {}
    for name in names:
        with torch.random.fork_rng():
            torch.manual_seed(number)
            found[name] = tasks[name](model, batch, encoded)
    return found


def divergence(before: TaskOutput, after: TaskOutput, distribution: str) -> Tensor:
    """(3,) float64: the sum of KL(before || after) over rows of logits (R, C), their number, and at how many the best stays.

    "softmax": each row is one distribution; "sigmoid": each number is one of yes and no, summed over a row. Rows whose target is
    IGNORE are left out.
    """
    ours, theirs, targets = before.logits.double(), after.logits.double(), before.targets
    if targets.dim() == 1:
        ours, theirs = ours[targets != IGNORE], theirs[targets != IGNORE]
    if distribution == "softmax":
        kl = _weighted(F.log_softmax(ours, dim=1), F.log_softmax(theirs, dim=1))
    else:
        kl = _weighted(F.logsigmoid(ours), F.logsigmoid(theirs)) + _weighted(F.logsigmoid(-ours), F.logsigmoid(-theirs))
    same = (ours.argmax(dim=1) == theirs.argmax(dim=1)).sum()
    return torch.stack([kl.sum(), kl.new_tensor(len(kl)), same.to(kl)])


def _weighted(ours: Tensor, theirs: Tensor) -> Tensor:
    """p (log p - log q), 0 where p is 0."""
    return torch.where(ours == -torch.inf, 0.0, ours.exp() * (ours - theirs))
