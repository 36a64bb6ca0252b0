"""What tasks measure while they train: numbers that are summed over steps and ranks before a mean is taken of them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from fusionkit.losses import IGNORE
from fusionkit.types import TaskOutput


def mean(total: Tensor, count: Tensor) -> Tensor:
    """Total over count; NaN where nothing was counted."""
    return total / count


class Summed(Metric):
    """A formula of numbers, each of them summed over steps and ranks first; by default a mean, of (total, count).

    So W ranks measure what one does, however many rows each has. torchmetrics' own MeanMetric looks for NaN in all that it is
    given, which waits for the device at each step.
    """

    full_state_update = False

    def __init__(self, formula: Callable[..., Tensor] = mean, terms: int = 2) -> None:
        super().__init__()
        self.formula = formula
        self.sums: Tensor
        self.add_state("sums", torch.zeros(terms), dist_reduce_fx="sum")

    def update(self, *numbers: Tensor | float) -> None:
        """Add to each sum its number of one batch."""
        for total, number in zip(self.sums.unbind(), numbers, strict=True):
            total.add_(number)

    def compute(self) -> Tensor:
        """The formula of the sums."""
        return self.formula(*self.sums.unbind())


def means(*names: str) -> MetricCollection:
    """A mean of each name."""
    return MetricCollection({name: Summed() for name in names}, compute_groups=False)


def hits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """How many rows of logits (R, C) are highest at their target (R,), and how many there are; IGNORE left out of both."""
    return (logits.detach().argmax(dim=1) == targets).sum(), (targets != IGNORE).sum()


def row_count(output: TaskOutput) -> Tensor | int:
    """How many rows an output is about: all of its targets, or of classes (R,) those that are not IGNORE."""
    targets = output.targets
    if not isinstance(targets, Tensor) or not targets.dim():  # of a task of one's own
        return 1
    is_class = targets.dim() == 1 and not targets.is_floating_point()
    return (targets != IGNORE).sum() if is_class else len(targets)
