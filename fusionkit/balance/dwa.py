"""Weighting by how fast the losses fall."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fusionkit.balance.base import Balancer, Step
from fusionkit.distributed import mean_over_ranks
from fusionkit.errors import ConfigError
from fusionkit.types import at_least_fp32


class DWA(Balancer):
    """Dynamic weight average: factor_i = K * softmax_i(r / temperature), r_i = the last window's mean loss over that of the
    window before it (Liu et al. 2019, eq. 7); 1 until two windows are over.

    ``window`` is the number of optimiser steps that a mean is taken over (an epoch in the paper). Costs one small
    collective a step.
    """

    sums: Tensor  # (K,) of the window that is running
    count: Tensor  # of its micro-batches
    means: Tensor  # (2, K) of the last window and the one before; 0 where there was none yet
    number: Tensor  # of the running window

    def __init__(self, temperature: float = 2.0, window: int = 100, gradients_every_n_steps: int = 0) -> None:
        super().__init__(gradients_every_n_steps)
        if temperature <= 0 or window < 1:
            raise ConfigError(
                f"balance: temperature must be above 0 and window at least 1 step, got {temperature} and {window}"
            )
        self.temperature, self.window = temperature, window

    def start(self, objectives: Sequence[str]) -> None:
        super().start(objectives)
        self.register_buffer("sums", torch.zeros(len(objectives)))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("means", torch.zeros(2, len(objectives)))
        self.register_buffer("number", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def factors(self, losses: Tensor, step: Step) -> Tensor:
        if step.number // self.window > int(self.number):
            self._turn(step.number // self.window)
        self.sums += mean_over_ranks(at_least_fp32(losses.detach()))
        self.count += 1
        last, before = self.means.unbind()
        if not (before > 0).all():
            return torch.ones_like(losses)
        return len(losses) * torch.softmax(last / before / self.temperature, dim=0)

    def _turn(self, number: int) -> None:
        self.means.copy_(torch.stack([self.sums / self.count.clamp(min=1), self.means[0]]))
        self.sums.zero_()
        self.count.zero_()
        self.number.fill_(number)
