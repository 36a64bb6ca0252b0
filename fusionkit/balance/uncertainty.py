"""Weighting by learnt uncertainty."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusionkit.balance.base import Balancer, Step


class Uncertainty(Balancer):
    """loss_i -> exp(-s_i) * loss_i + s_i / 2 with a learnt log variance s_i, 0 at first (Kendall et al. 2018, eq. 10).

    This is the equation's term of a classification, for every objective; that of a regression has half the first part.
    At rest exp(s_i) = 2 * loss_i, so the factor tends to 1 / (2 * loss_i): a loss that is small gets a large weight, without
    bound as it goes to 0. The log variances are parameters ("balance.log_variances") without weight decay; a rule such as
    optimizer.rules=[['^balance', 10, 0]] lets them move faster. No cost.
    """

    log_variances: nn.Parameter

    def start(self, objectives: Sequence[str]) -> None:
        super().start(objectives)
        self.log_variances = nn.Parameter(torch.zeros(len(objectives)))

    def factors(self, losses: Tensor, step: Step) -> Tensor:
        return (-self.log_variances).exp()

    def penalty(self, weights: Tensor) -> Tensor:
        return (weights * self.log_variances).sum() / 2
