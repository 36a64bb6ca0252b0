"""Gradient cache: encoders and fusion in chunks of rows, of which the backward pass keeps what enters and nothing within.

The source is GradCache (Gao, Zhang, Han and Callan 2021, arXiv:2101.06983), here for a step of several objectives. Let a part f
with weights w read rows x_1 ... x_B, and let the loss be any function of what it gives, L(y), y = (f(x_1; w), ..., f(x_B; w)): a
contrast of all rows with all, means over rows that differ in number, a balancer's sum. As a row of y hangs on its own x alone,

    u_i = dL / dy_i,      dL/dw = sum_k sum_{i in chunk k} (df(x_i; w) / dw)^T u_i,      dL/dx_i = (df(x_i; w) / dx_i)^T u_i

whatever L is. So the forward pass computes y chunk by chunk without a graph and keeps y; L and its gradient u are those of the
full batch, exactly; and the backward pass computes each chunk again, from the random state that it had, and adds up. GradCache
cuts once, at the vectors of a contrast. Here each call of a part is cut: the image encoder, the text encoder (of each kind of
text, and of masked ones) and the fusion of pairs, whose chunk prepares its images itself (keys and values of all images would
weigh more than a tower's layers). Tasks, negatives, queues, balancers and collectives see the whole batch and know nothing of it;
there is one backward pass, so DDP sums gradients once, and a scaler of fp16, clipping and the optimiser do what they always do.

What is kept of all B rows: the inputs, the encoders' tokens and their gradients, the fused states that tasks read, and whatever
heads and losses keep. What is not exact: a batch norm that trains takes the statistics of a chunk. Without dropout the gradient
is that of the full batch; with it, that of the full batch in which each chunk draws in turn.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fusionkit.encoders.recompute import StatisticsKept
from fusionkit.errors import ConfigError
from fusionkit.model.nested import graph_leaves, tensors_of, with_tensors
from fusionkit.types import Fused, Memory, Nested, Tokens

PARTS = frozenset(Fused._fields)
_rows: int | None = None
_parts = PARTS


class Unprepared(NamedTuple):
    """A memory of images that the fusion has not prepared yet: each chunk of pairs prepares its own."""

    image: Tokens


@contextmanager
def in_chunks(rows: int | None, parts: frozenset[str] = PARTS) -> Iterator[None]:
    """Within, models read so many rows at a time (None: all at once), and keep these parts of ``Fused`` alone."""
    global _rows, _parts
    before = _rows, _parts
    _rows, _parts = rows, parts
    try:
        yield
    finally:
        _rows, _parts = before


def is_on() -> bool:
    """Whether models are to read in chunks."""
    return _rows is not None


class Chunk(NamedTuple):
    """What one call computes: rows (R,) of the result, from these rows of each thing that is given, and a further argument."""

    rows: Tensor
    picks: tuple[Tensor, ...]
    more: tuple[Tensor, ...] = ()


def by_rows(function: Callable[..., Any], given: Sequence[Nested], parts: Sequence[nn.Module]) -> Any:
    """``function(*given)``, whose rows are those of what is given, in chunks; its weights are those of ``parts``."""
    first = tensors_of(given)[0]
    places = torch.arange(len(first), device=first.device).split(_size())
    return _call(function, given, [Chunk(rows, (rows,) * len(given)) for rows in places], parts)


def fuse(fusion: Any, memory: Memory, text: Tokens, image_index: Tensor, parts: Sequence[nn.Module]) -> Fused:
    """``fusion(memory, text, image_index)`` in chunks of pairs, an image's beside each other, so that few prepare it twice."""
    wanted = _parts

    def run(memory: Any, text: Tokens, places: Tensor) -> Fused:
        ready = fusion.prepare(memory.image) if isinstance(memory, Unprepared) else memory
        fused = fusion(ready, text, places)
        return Fused(*(part if name in wanted else None for name, part in zip(Fused._fields, fused, strict=True)))

    if image_index.dim() > 1:
        raise ConfigError(
            "gradient_cache: texts that are about several images at once are not read in chunks; set it to null"
        )
    chunks = []
    for rows in image_index.argsort(stable=True).split(_size()):
        used, places = image_index[rows].unique(return_inverse=True)
        chunks.append(Chunk(rows, (used, rows), (places,)))
    fused: Fused = _call(run, (memory, text), chunks, parts)
    return fused


def _size() -> int:
    assert _rows is not None
    return _rows


def _call(
    function: Callable[..., Any], given: Sequence[Nested], chunks: list[Chunk], parts: Sequence[nn.Module]
) -> Any:
    tensors = tensors_of(given)
    owners = [place for place, part in enumerate(given) for _ in tensors_of(part)]
    weights = list({id(p): p for part in parts for p in part.parameters() if p.requires_grad}.values())
    work = _Work(function, tuple(given), owners, chunks, parts, _Autocast.now(tensors[0].device))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*tensors, *weights)):
        out = _Chunked.apply(work, *tensors, *weights)
    else:
        with torch.no_grad():
            out = work.forward(tensors)
    return with_tensors(work.shape, iter(out))


class _Autocast(NamedTuple):
    """The number format that a forward pass is made in, so that it is made in it again."""

    device: str
    is_on: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, device: torch.device) -> "_Autocast":
        return cls(device.type, torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type))

    def again(self) -> AbstractContextManager[Any]:
        # a cached cast that was made without a graph would keep later gradients from the weight
        return torch.autocast(self.device, self.dtype, enabled=self.is_on, cache_enabled=False)


class _Work:
    """One call in chunks: what is computed of what, and what each chunk began with."""

    def __init__(
        self,
        function: Callable[..., Any],
        given: tuple[Nested, ...],
        owners: list[int],
        chunks: list[Chunk],
        parts: Sequence[nn.Module],
        autocast: _Autocast,
    ) -> None:
        self.function, self.chunks, self.parts, self.autocast = function, chunks, parts, autocast
        self.owners = owners  # of each tensor, the place of what it belongs to among what is given
        self.given = tuple(with_tensors(part, iter([torch.empty(0)] * len(tensors_of(part)))) for part in given)
        self.shape: Any = None  # of the result: lists and tuples, whose tensors say nothing
        self.states: list[list[Tensor]] = []

    def picks(self, chunk: Chunk) -> list[Tensor]:
        """Of each tensor that is given, the rows that a chunk reads."""
        return [chunk.picks[owner] for owner in self.owners]

    def run(self, chunk: Chunk, tensors: Sequence[Tensor]) -> Any:
        found = iter(tensors)
        with self.autocast.again():
            return self.function(*(with_tensors(part, found) for part in self.given), *chunk.more)

    def forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The whole result, made without a graph."""
        whole: list[Tensor] = []
        count = sum(len(chunk.rows) for chunk in self.chunks)
        for chunk in self.chunks:
            self.states.append(_random_states(tensors[0].device))
            found = self.run(chunk, [x[rows] for x, rows in zip(tensors, self.picks(chunk), strict=True)])
            parts = tensors_of(found)
            if not whole:
                whole = [part.new_empty(count, *part.shape[1:]) for part in parts]
                self.shape = with_tensors(found, iter([torch.empty(0)] * len(parts)))
            for rows, part in zip(whole, parts, strict=True):
                if rows.shape[1:] != part.shape[1:]:
                    raise ConfigError(
                        f"gradient_cache: {type(self.parts[0]).__name__} gives rows of {tuple(part.shape[1:])} for some of "
                        f"a batch and of {tuple(rows.shape[1:])} for others, which cannot be read in chunks; set it to null"
                    )
                rows[chunk.rows] = part
        return tuple(whole)

    def backward(
        self,
        tensors: Sequence[Tensor],
        weights: Sequence[Tensor],
        needed: Sequence[bool],
        grads: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """The gradients of what was given and of the weights, where they are needed."""
        totals: list[Tensor | None] = [None] * (len(tensors) + len(weights))
        wanted = [place for place, is_needed in enumerate(needed) if is_needed]
        for chunk, states in zip(self.chunks, self.states, strict=True):
            picks = self.picks(chunk)
            own = [x[rows].detach() for x, rows in zip(tensors, picks, strict=True)]
            for place in wanted:
                if place < len(own):
                    own[place].requires_grad_()
            with ExitStack() as stack:
                stack.enter_context(_drawing_again(states, tensors[0].device))
                for part in self.parts:
                    stack.enter_context(StatisticsKept(part))
                stack.enter_context(torch.enable_grad())
                parts = tensors_of(self.run(chunk, own))
            if chunk is self.chunks[0]:
                self._require_known(parts, weights)
            pairs = [(y, u[chunk.rows]) for y, u in zip(parts, grads, strict=True) if u is not None and y.requires_grad]
            if not pairs:
                continue
            inputs = [own[place] if place < len(own) else weights[place - len(own)] for place in wanted]
            outputs, given = zip(*pairs, strict=True)
            found = torch.autograd.grad(outputs, inputs, given, allow_unused=True)
            del parts, pairs, outputs, given
            for place, gradient in zip(wanted, found, strict=True):
                if gradient is None:
                    continue
                total = totals[place]
                if place >= len(tensors):
                    totals[place] = gradient.clone() if total is None else total.add_(gradient)
                    continue
                if total is None:
                    total = totals[place] = torch.zeros_like(tensors[place])
                total.index_add_(0, picks[place], gradient)
        return totals

    def _require_known(self, parts: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """ConfigError where the result hangs on weights that nobody named: they would silently have no gradient."""
        known = {id(weight) for weight in weights}
        if any(isinstance(leaf, nn.Parameter) and id(leaf) not in known for leaf in graph_leaves(parts)):
            raise ConfigError(
                f"gradient_cache: {type(self.parts[0]).__name__} reads weights of another part of the model, which would have no "
                "gradient; set it to null"
            )


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Work, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.work = work
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        whole = work.forward(tensors[: len(work.owners)])
        ctx.mark_non_differentiable(*(part for part in whole if not part.is_floating_point()))
        return whole

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        count = len(ctx.work.owners)
        tensors = ctx.saved_tensors
        return None, *ctx.work.backward(tensors[:count], tensors[count:], ctx.needs_input_grad[1:], grads)


def _random_states(device: torch.device) -> list[Tensor]:
    """Where the generators of the CPU and of a device stand."""
    own = [torch.get_rng_state()]
    return own if device.type == "cpu" else [*own, torch.get_device_module(device).get_rng_state()]


def _set_random_states(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module(device).set_rng_state(states[1])


@contextmanager
def _drawing_again(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Within, what is drawn is what was drawn from these states; behind it, as if nothing had been."""
    before = _random_states(device)
    _set_random_states(states, device)
    try:
        yield
    finally:
        _set_random_states(before, device)
