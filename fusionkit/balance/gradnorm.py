"""Weighting by gradient norms."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusionkit.balance.base import Balancer, Step, relation_metrics
from fusionkit.balance.gradients import gradient_matrix, inner_products, is_on_cadence
from fusionkit.distributed import mean_over_ranks
from fusionkit.errors import ConfigError, find_names
from fusionkit.types import at_least_fp32

LEAST = 1e-3  # a factor stays above 0, where its objective could not come back


class GradNorm(Balancer):
    """Factors that bring the gradient norms to mean norm * (relative inverse training rate) ** alpha (Chen et al. 2018).

    With n_i the norm of the gradient of loss i over the shared parameters, G_i = factor_i * n_i and r_i = (loss_i / its first
    value) over the mean of these, one step of gradient descent at rate ``lr`` on sum_i |G_i - mean(G) * r_i ** alpha| (the
    target held constant) gives factor_i <- factor_i - lr * sign(G_i - target_i) * n_i / mean(n); then the factors are scaled
    to sum to K. Dividing by the mean norm, which the paper does not, makes ``lr`` free of the losses' scale. As in
    the paper the new factors count from the next step on.

    ``parameters`` a regex for the shared parameters that the norms are taken over; a few upper layers are the paper's
                   cheap choice: the pass then goes no deeper. The default takes all.
    ``every_n_steps`` how often the factors move. Such a step costs one more backward pass an objective, down to those
                   parameters, their gradients' memory once an objective, and averaging these over the ranks.
    """

    next_factors: Tensor  # (K,)
    used_factors: Tensor  # (K,)
    first_losses: Tensor  # (K,), 0 before the first step

    def __init__(
        self,
        alpha: float = 1.5,
        lr: float = 0.025,
        parameters: str = r"^model\.",
        every_n_steps: int = 1,
        gradients_every_n_steps: int = 0,
    ) -> None:
        super().__init__(gradients_every_n_steps)
        if lr <= 0 or every_n_steps < 1:
            raise ConfigError(f"balance: lr must be above 0 and every_n_steps at least 1, got {lr} and {every_n_steps}")
        self.alpha, self.lr, self.every_n_steps = alpha, lr, every_n_steps
        self.pattern = parameters

    @property
    def reads_gradients(self) -> bool:
        return True

    def start(self, objectives: Sequence[str]) -> None:
        super().start(objectives)
        self.register_buffer("next_factors", torch.ones(len(objectives)))
        self.register_buffer("used_factors", torch.ones(len(objectives)))
        self.register_buffer("first_losses", torch.zeros(len(objectives)))

    def factors(self, losses: Tensor, step: Step) -> Tensor:
        if step.is_first:
            self.used_factors.copy_(self.next_factors)
        return self.used_factors.clone()

    def read_gradients(self, losses: Tensor, step: Step) -> dict[str, Tensor]:
        """Move the factors, where it is time; the gradients are then logged for nothing."""
        if not is_on_cadence(step.number, step.is_first, self.every_n_steps):
            return super().read_gradients(losses, step)
        gram = inner_products(gradient_matrix(losses, self._chosen(step)))
        self._move(mean_over_ranks(at_least_fp32(losses.detach())), gram.diagonal().clamp(min=0).sqrt())
        return relation_metrics(self.objectives, gram)

    def _chosen(self, step: Step) -> list[nn.Parameter]:
        return [step.parameters[name] for name in find_names("balance.parameters", self.pattern, step.parameters)]

    @torch.no_grad()
    def _move(self, losses: Tensor, norms: Tensor) -> None:
        if not self.first_losses.any():
            self.first_losses.copy_(losses)
        rates = losses / self.first_losses.clamp(min=torch.finfo(losses.dtype).tiny)
        weighted = self.used_factors * norms
        target = weighted.mean() * (rates / rates.mean().clamp(min=torch.finfo(losses.dtype).tiny)) ** self.alpha
        scaled = norms / norms.mean().clamp(min=torch.finfo(norms.dtype).tiny)
        moved = (self.used_factors - self.lr * torch.sign(weighted - target) * scaled).clamp(min=LEAST)
        self.next_factors.copy_(moved * len(moved) / moved.sum())
