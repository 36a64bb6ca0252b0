"""Weights of W processes against one's after twenty steps of AdamW in fp32: every task, balancer, queue and teacher.

``python -m tests.distributed.twenty_steps 4 .`` prints by case the largest difference of an entry of anything that a checkpoint
keeps, the moving averages too; a third argument is a json file to write them to.
"""

import copy
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fusionkit.distributed import gather_objects
from fusionkit.training.optim import build_optimizer
from tests.distributed.global_batch import Case, Run, cases, joined, rank_batch, run_ranks

STEPS, RATE = 20, 1e-4
NOTHING = 1e-14  # in fp64 the gradient of what no loss depends on is below, of all else far above


class Trained(NamedTuple):
    """What a run kept at its end, and by trained parameter the largest absolute gradient that each entry had."""

    state: dict[str, Tensor]
    gradients: dict[str, Tensor]


def train(
    case: Case, dtype: torch.dtype, batches: Sequence[dict[str, Any]], wrap: Callable[[nn.Module], nn.Module]
) -> Trained:
    """A step on each batch."""
    run = Run(case, dtype)
    wrapped, optimizer = wrap(run), build_optimizer(run.named_parameters(), RATE)
    learnt = {name: p for name, p in run.named_parameters(remove_duplicate=False) if p.requires_grad}
    largest = {name: torch.zeros_like(parameter) for name, parameter in learnt.items()}
    for number, batch in enumerate(batches):
        optimizer.zero_grad()
        wrapped(copy.copy(batch), number).backward()
        for name, parameter in learnt.items():
            torch.maximum(largest[name], parameter.grad.abs(), out=largest[name])
        optimizer.step()
        if run.teacher is not None:
            run.teacher.update(run.model, run.tasks)
    state = run.state_dict()
    if run.teacher is not None:
        state |= {f"teacher.{name}": tensor for name, tensor in run.teacher.state_dict().items()}
    return Trained({name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}, largest)


def unused(exact: Trained) -> dict[str, Tensor]:
    """Which entries of biases no loss depends on: those of keys, and what all scores of a softmax or a difference share.

    Their gradient is rounding alone, which AdamW makes whole steps of.
    """
    found = {name: gradient < NOTHING for name, gradient in exact.gradients.items() if gradient.dim() == 1}
    return found | {f"teacher.{name}": entries for name, entries in found.items()}


def difference(one: Trained, many: Trained, left_out: dict[str, Tensor]) -> float:
    """The largest of any entry; the number of a buffer of integers counts too."""
    assert one.state.keys() == many.state.keys()
    worst = 0.0
    for name, tensor in one.state.items():
        far = (many.state[name].double() - tensor.double()).abs()
        if name in left_out:
            far[left_out[name]] = 0
        worst = max(worst, float(far.max()) if far.numel() else 0.0)
    return worst


def work(number: int, world: int, folder: str, names: Sequence[str]) -> None:
    """One rank; each case is first trained alone, by one of the ranks, in both formats."""
    torch.set_num_threads(1)
    known = cases()

    def batches(name: str, dtype: torch.dtype) -> list[list[dict[str, Any]]]:
        return [[rank_batch(known[name], step, r, world, dtype) for r in range(world)] for step in range(STEPS)]

    def alone(name: str, dtype: torch.dtype) -> Trained:
        whole = [joined(step) for step in batches(name, dtype)]
        return train(known[name]._replace(rows=None), dtype, whole, lambda run: run)

    own = {name: (alone(name, torch.float32), unused(alone(name, torch.float64))) for name in names[number::world]}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=world)
    expected = {name: one for part in gather_objects([own]) for name, one in part.items()}
    found = {}
    for name in names:
        one, left_out = expected[name]
        parts = [step[number] for step in batches(name, torch.float32)]
        many = train(known[name], torch.float32, parts, DistributedDataParallel)
        assert max(float(gradient.max()) for gradient in many.gradients.values()) > 0, name
        for other in gather_objects([many.state]):
            wrong = [key for key, tensor in many.state.items() if not torch.equal(tensor, other[key])]
            assert not wrong, f"{name}: ranks differ in {wrong}"
        found[name] = difference(one, many, left_out)
    if not number:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    world, tried, file = int(sys.argv[1]), re.compile(sys.argv[2]), sys.argv[3:4]
    with TemporaryDirectory() as folder:
        chosen = [name for name in cases() if tried.search(name)]
        run_ranks(world, partial(work, world=world, folder=folder, names=chosen))
        found = torch.load(f"{folder}/found.pt")
    print(
        f"{world} processes against one, after {STEPS} steps",
        *(f"{name:50} {far:.1e}" for name, far in found.items()),
        sep="\n",
    )
    for path in file:
        Path(path).write_text(json.dumps(found))
