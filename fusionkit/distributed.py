"""Collectives over the ranks of a run; each is the identity where there is one process. Imports torch only."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

LOST = ("Connection", "Broken pipe", "remote process exited", "Timed out", "timed out", "timeout")
TWINS = 2  # ranks in ``rehearsal``
_meetings = 0
_rehearsed: list[tuple[str, int]] | None = None


def rank() -> int:
    """Number of this process, 0 where there is only one."""
    return dist.get_rank() if is_running() else 0


def world_size() -> int:
    """How many processes train together."""
    if _rehearsed is not None:
        return TWINS
    return dist.get_world_size() if is_running() else 1


def is_running() -> bool:
    """Whether there is a process group to talk to."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def rehearsal() -> Iterator[list[tuple[str, int]]]:
    """Let one process compute as if another rank had the very same rows; gives what it would exchange, in order.

    Each as (kind, bytes that a rank brings): "all_gather" of rows; "all_reduce", as large whatever the number of ranks;
    "all_reduce_rows", of the gradients of gathered rows, whose bytes are those of one rank's rows, though all are summed.
    """
    global _rehearsed
    assert not is_running()
    assert _rehearsed is None
    _rehearsed = found = list[tuple[str, int]]()
    try:
        yield found
    finally:
        _rehearsed = None


def join() -> None:
    """Where this process was started as one of several (``RANK``, ``WORLD_SIZE``), join the others to evaluate with them.

    They meet rarely, to put records together, so a rank may wait long for one that is slower.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not is_running():
        dist.init_process_group("gloo", timeout=timedelta(days=7))


def leave() -> None:
    """Go on alone: afterwards there is one process, rank 0 of 1."""
    if is_running():
        dist.destroy_process_group()


def is_lost(error: BaseException) -> bool:
    """Whether it is what a collective raises where another rank has gone or does not answer (gloo, NCCL)."""
    return "gloo/transport" in str(error) or (
        isinstance(error, dist.DistError) and any(word in str(error) for word in LOST)
    )


def meetings() -> int:
    """In how many collectives of ours this rank has been, or is: all ranks are in the same ones, one after the other."""
    return _meetings


def _meet() -> None:
    global _meetings
    _meetings += 1


def own_part(x: Tensor) -> Tensor:
    """What this rank holds of a tensor: it is all of it where no strategy has split it."""
    return x.to_local() if isinstance(x, DTensor) else x


def barrier() -> None:
    """Wait until every rank is here."""
    if is_running() and world_size() > 1:
        _meet()
        dist.barrier()


def gather_with_grad(x: Tensor) -> Tensor:
    """Concatenate x (N_r, ...) of all ranks along the first dimension; N_r may differ, the other dimensions may not.

    The gradient of a rank's rows is the *sum* over what all ranks did with them. A loss that is the mean over a rank's
    own rows against the gathered columns therefore gives, after DDP's averaging, the gradient of the full batch in one
    process.
    """
    return _Gather.apply(x) if world_size() > 1 else x


def gather(x: Tensor) -> Tensor:
    """As ``gather_with_grad``, but the result is a constant."""
    with torch.no_grad():
        return _concatenate(x.detach())[0]


def gather_objects(items: list[Any]) -> list[Any]:
    """The items of all ranks in one list, in the order of the ranks (pickled; every rank gets all)."""
    if not is_running() or world_size() == 1:
        return items
    _meet()
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def from_rank_zero(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if not is_running() or world_size() == 1:
        return value
    _meet()
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@torch.no_grad()
def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of x, of one shape on all ranks, as a constant."""
    if world_size() == 1:
        return x.detach()
    total = x.detach().clone(memory_format=torch.contiguous_format)
    _all_reduce(total)
    return total.div_(world_size())


def mean_by_name(numbers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of numbers by name, floats or scalar tensors, the mean of each over the ranks that have it."""
    if world_size() == 1:
        return numbers
    parts = gather_objects([{name: float(number) for name, number in numbers.items()}])
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: fmean(part[name] for part in parts if name in part) for name in names}


def largest_of_ranks(value: int, device: torch.device) -> int:
    """The largest of the ranks' numbers."""
    if world_size() == 1:
        return value
    box = torch.tensor([value], device=device)
    _all_reduce(box, op=dist.ReduceOp.MAX)
    return int(box)


def _concatenate(x: Tensor) -> tuple[Tensor, list[int]]:
    """The rows of all ranks, and how many each has; the collective wants equal parts, so shorter ones travel padded."""
    if world_size() == 1:
        return x, [len(x)]
    _meet()
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world_size())]
    _all_gather(counts, torch.tensor([len(x)], device=x.device))
    sizes = [int(count) for count in torch.cat(counts).tolist()]
    padded = torch.cat([x, x.new_zeros(max(sizes) - len(x), *x.shape[1:])])
    parts = [torch.empty_like(padded) for _ in sizes]
    _all_gather(parts, padded.contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), sizes


def _all_reduce(x: Tensor, op: Any = dist.ReduceOp.SUM, is_of_rows: bool = False) -> None:
    """Sum, in place, over the ranks."""
    _meet()
    if _rehearsed is None:
        dist.all_reduce(x, op=op)
        return
    _rehearsed.append(("all_reduce_rows", x.nbytes // TWINS) if is_of_rows else ("all_reduce", x.nbytes))
    if op is dist.ReduceOp.SUM:
        x.mul_(TWINS)


def _all_gather(parts: list[Tensor], x: Tensor) -> None:
    """Fill the parts with what the ranks have, in a meeting that has begun."""
    if _rehearsed is None:
        dist.all_gather(parts, x)
        return
    _rehearsed.append(("all_gather", x.nbytes))
    for part in parts:
        part.copy_(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows, sizes = _concatenate(x)
        start = sum(sizes[: rank()])
        ctx.own = slice(start, start + sizes[rank()])
        return rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # a copy, as it is reduced in place and the argument is autograd's
        total = grads[0].clone(memory_format=torch.contiguous_format)
        _all_reduce(total, is_of_rows=True)
        return total[ctx.own]
