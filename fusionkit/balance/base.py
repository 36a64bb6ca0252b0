"""What the training module expects of a balancer, and the weighted sum. Imports torch only.

An objective is named "source/task". Whatever a balancer does, the weight that the user gave an objective multiplies: the
objective's gradient is weight * factor * gradient of its loss, and a balancer chooses the factors. Learnt parameters are
optimised with the rest and averaged by DDP; other state lies in buffers, computed from values averaged over the ranks, so
that it is the same on all of them and an interrupted run goes on exactly.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusionkit.balance.gradients import gradient_matrix, inner_products, is_on_cadence, relations
from fusionkit.errors import ConfigError


class Step(NamedTuple):
    """Where the training is, and what it trains."""

    number: int  # optimiser steps made so far; the micro-batches of one step share it
    total: float  # optimiser steps of the whole run, inf where it has no end
    is_first: bool  # of the micro-batches of its step
    parameters: Mapping[str, nn.Parameter]  # what trains: "model." is shared by objectives, "tasks." is a head's

    def shared(self) -> list[nn.Parameter]:
        """The parameters that objectives may compete for."""
        return [parameter for name, parameter in self.parameters.items() if name.startswith("model.")]


class Balanced(NamedTuple):
    """What is optimised and what is logged."""

    loss: Tensor  # scalar
    metrics: Mapping[str, Tensor | float]  # by log key


class Balancer(nn.Module):
    """Base of all: loss = sum over objectives of weight * factor * loss, plus ``penalty``.

    ``gradients_every_n_steps`` logs, on every n-th step, each objective's gradient norm and the cosine of each pair of
    gradients over the shared parameters. Such a step costs one more backward pass an objective and holds a gradient of the
    model for each of them; over several ranks these are averaged. 0: never, at no cost.
    """

    def __init__(self, gradients_every_n_steps: int = 0) -> None:
        super().__init__()
        if gradients_every_n_steps < 0:
            raise ConfigError(
                f"balance.gradients_every_n_steps is {gradients_every_n_steps}; give a number of steps, or 0 for never"
            )
        self.gradients_every_n_steps = gradients_every_n_steps
        self.objectives: tuple[str, ...] = ()

    @property
    def reads_gradients(self) -> bool:
        """Whether it takes gradients of single objectives."""
        return self.gradients_every_n_steps > 0

    def start(self, objectives: Sequence[str]) -> None:
        """Make the state for these objectives; called once, before the optimiser is built."""
        self.objectives = tuple(objectives)

    def factors(self, losses: Tensor, step: Step) -> Tensor:
        """The factor of each objective (K,) for its loss in ``losses`` (K,); may carry a gradient to learnt parameters."""
        raise NotImplementedError

    def penalty(self, weights: Tensor) -> Tensor | float:
        """What is added to the weighted sum, for the user's weights (K,)."""
        return 0.0

    def forward(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], step: Step) -> Balanced:
        """Scalar losses and the user's weights by objective -> the scalar to optimise, and what to log."""
        stacked = torch.stack([losses[name] for name in self.objectives])
        given = stacked.new_tensor([weights[name] for name in self.objectives])
        used = given * self.factors(stacked, step)
        loss = (used * stacked).sum() + self.penalty(given)
        return Balanced(loss, weight_metrics(self.objectives, used) | self.read_gradients(stacked, step))

    def read_gradients(self, losses: Tensor, step: Step) -> dict[str, Tensor]:
        """Look at the gradients of the unweighted objectives on the steps that log them; gives their norms and cosines."""
        if not is_on_cadence(step.number, step.is_first, self.gradients_every_n_steps):
            return {}
        gram = inner_products(gradient_matrix(losses, step.shared()))
        return relation_metrics(self.objectives, gram)


class Fixed(Balancer):
    """The weighted sum: doubling a weight doubles the objective's gradient, whatever the other weights are."""

    def factors(self, losses: Tensor, step: Step) -> Tensor:
        return torch.ones_like(losses)


def weight_metrics(objectives: Sequence[str], used: Tensor) -> dict[str, Tensor | float]:
    """``train/<source>/<task>_weight`` of weights (K,)."""
    return {f"train/{name}_weight": weight for name, weight in zip(objectives, used.detach().unbind(), strict=True)}


def relation_metrics(objectives: Sequence[str], gram: Tensor) -> dict[str, Tensor]:
    """``train/<source>/<task>_gradient_norm`` and ``train/gradient_cosine/<one>-<other>`` from products (K, K) of gradients."""
    norms, cosines = relations(gram)
    metrics = {f"train/{name}_gradient_norm": norm for name, norm in zip(objectives, norms.unbind(), strict=True)}
    dotted = [name.replace("/", ".") for name in objectives]
    for row, one in enumerate(dotted):
        for column in range(row + 1, len(dotted)):
            metrics[f"train/gradient_cosine/{one}-{dotted[column]}"] = cosines[row, column]
    return metrics
