"""Gradient surgery."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fusionkit.balance.base import Balanced, Balancer, Step, relation_metrics, weight_metrics
from fusionkit.balance.gradients import combination, flatten_into, gradients, inner_products, with_gradient
from fusionkit.distributed import mean_over_ranks


class PCGrad(Balancer):
    """Each objective's gradient loses its part against every other one that it conflicts with (Yu et al. 2020, alg. 1).

    The gradients are those of the weighted losses, averaged over the ranks, over the shared parameters ("model."); heads
    keep their plain gradient. The projections are made in the K coefficients that express them in the K gradients, from their
    inner products alone. The order in which an objective meets the others is drawn from the step's number, so it is
    the same on all ranks. With accumulation each micro-batch is operated on by itself.

    Every step costs one backward pass an objective instead of one in all, the memory of K gradients of the model,
    and over several ranks the communication of K + 1 gradients instead of one. Norms and cosines are logged at every step.
    """

    def __init__(self) -> None:
        super().__init__()  # the gradients are there at every step, so there is no cadence to choose

    @property
    def reads_gradients(self) -> bool:
        return True

    def forward(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], step: Step) -> Balanced:
        given = [weights[name] for name in self.objectives]
        weighted = torch.stack([weights[name] * losses[name] for name in self.objectives])
        shared = step.shared()
        heads = [parameter for name, parameter in step.parameters.items() if not name.startswith("model.")]
        matrix, head_gradients = self._gradients(weighted, [*shared, *heads], len(shared))
        gram = inner_products(matrix)
        coefficients = surgery(gram, draw_orders(len(given), step.number))
        chosen = combination(coefficients, matrix).split([parameter.numel() for parameter in shared])
        shaped = [flat.view_as(parameter).to(parameter.dtype) for flat, parameter in zip(chosen, shared, strict=True)]
        loss = with_gradient(weighted.sum(), [*shared, *heads], [*shaped, *head_gradients])
        scale = gram.new_tensor([1 / weight for weight in given])
        metrics = weight_metrics(self.objectives, coefficients.to(matrix) / scale)
        return Balanced(loss, metrics | relation_metrics(self.objectives, gram * scale[:, None] * scale))

    def _gradients(
        self, losses: Tensor, parameters: Sequence[nn.Parameter], shared: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Flat gradients (K, N) of the first ``shared`` parameters, averaged over the ranks, and this rank's sum for the rest."""
        matrix = losses.new_empty(len(losses), sum(parameter.numel() for parameter in parameters[:shared]))
        rest = [torch.zeros_like(parameter) for parameter in parameters[shared:]]
        for row, loss in zip(matrix, losses.unbind(), strict=True):
            found = gradients(loss, parameters)
            flatten_into(row, found[:shared])
            rest = [total + gradient for total, gradient in zip(rest, found[shared:], strict=True)]
        return mean_over_ranks(matrix), rest


def surgery(gram: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """PCGrad's result as coefficients (K,) of the gradients, from their inner products (K, K); float64 on the CPU.

    ``orders[i]`` names the objectives in the order in which gradient i meets them.
    """
    products = gram.detach().double().cpu()
    projected = torch.eye(len(products), dtype=torch.float64)
    for row, order in zip(projected, orders, strict=True):
        for other in order:
            product = row @ products[:, other]
            if product < 0:
                row[other] -= product / products[other, other]
    return projected.sum(dim=0)


def draw_orders(count: int, seed: int) -> list[list[int]]:
    """For each of ``count`` objectives a random order of all others."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(count, generator=generator).tolist() for _ in range(count)]
    return [[other for other in order if other != own] for own, order in enumerate(orders)]
