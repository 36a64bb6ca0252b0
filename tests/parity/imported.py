"""A published checkpoint as a network of ours, and comparisons with what the published code computed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from fusionkit.checkpoints.base import Plan, convert
from fusionkit.checkpoints.build import Network, build_network, compose_plan
from fusionkit.checkpoints.source import Source, read_source
from fusionkit.config import conf_dir
from fusionkit.tasks.base import Task

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def planned(family: str, options: Mapping[str, Any]) -> Callable[[Source], Plan]:
    """What ``fusionkit import`` with these options makes of a checkpoint of the family."""
    config = OmegaConf.merge(OmegaConf.load(conf_dir() / "import" / f"{family}.yaml"), options)
    return instantiate(config)


def imported(family: str, path: Path, options: Mapping[str, Any]) -> tuple[Network, Source, Plan]:
    """The network with the weights of a checkpoint, in evaluation mode."""
    source = read_source(path)
    plan = planned(family, options)(source)
    network = build_network(compose_plan(plan, plan.tokenizer), plan.ids, plan.answers)
    module = network.module
    module.load_state_dict(convert(source, plan, module.state_dict()), strict=True)
    module.eval()
    return network, source, plan


def task_of(network: Network, name: str) -> Task[Any]:
    """A task of the network; the test is skipped where the checkpoint has no head for it."""
    if name not in network.tasks:
        pytest.skip(f"this checkpoint has no {name} head")
    return network.tasks[name]


def gradient_norms(module: nn.Module, source: Source, plan: Plan) -> dict[str, float]:
    """The norm of the gradient of each published tensor that has one: our gradients, taken back through the import."""
    leaves = {n: t.detach().clone().requires_grad_() if t.is_floating_point() else t for n, t in source.state.items()}
    ours = convert(replace(source, state=leaves), plan, module.state_dict())
    given = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    trained = [n for n, t in leaves.items() if t.requires_grad]
    reached = sum((ours[name] * gradient).sum() for name, gradient in given.items())
    gradients = torch.autograd.grad(reached, [leaves[n] for n in trained], allow_unused=True)
    return {n: g.norm().item() for n, g in zip(trained, gradients, strict=True) if g is not None}


def compare_gradient_norms(
    ours: Mapping[str, float], io: Mapping[str, Tensor], prefix: str, tied: Iterable[Sequence[str]] = ()
) -> None:
    """Equal to 1e-4 with a floor of 1e-6; the norm of tied tensors stands under the name of the first."""
    theirs = {name.removeprefix(prefix): norm.item() for name, norm in io.items() if name.startswith(prefix)}
    found = dict(ours)
    for first, *others in tied:
        parts = [found.pop(name) for name in (first, *others) if name in found]
        found |= {first: sum(part**2 for part in parts) ** 0.5} if parts else {}
    assert theirs
    assert {n for n in theirs.keys() ^ found.keys() if max(theirs.get(n, 0), found.get(n, 0)) > 1e-6} == set()
    for name in theirs.keys() & found.keys():
        assert found[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name


def compare_losses(case: tuple[Network, Source, Plan, Mapping[str, Tensor]], name: str, loss: Tensor) -> None:
    """A loss of an imported network, and after its backward pass the gradients, against a fixture's of that name."""
    network, source, plan, io = case
    network.module.zero_grad()
    loss.backward()
    close(loss, io[f"loss_{name}"])
    compare_gradient_norms(gradient_norms(network.module, source, plan), io, f"grad_norm_{name}.")


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours.detach(), theirs, rtol=tolerance, atol=tolerance)


def text_rows(ids: Tensor, mask: Tensor, **facts: Tensor) -> dict[str, Any]:
    """Texts, one for each image."""
    return {"input_ids": ids, "attention_mask": mask, "image_index": torch.arange(len(ids)), "word_index": ids, **facts}
