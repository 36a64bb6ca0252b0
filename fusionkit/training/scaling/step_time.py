"""A simulation of an optimiser step's time on many ranks: what each computes, what they exchange, who is waited for, data.

Pure arithmetic in seconds and bytes, without torch. Costs are those of a link with a latency and a bandwidth (Hockney 1994):
rings of Patarasuk & Yuan (2009), two trees of Sanders, Speck & Träff (2009; NCCL's for few bytes), buckets as in torch's DDP
(Li et al. 2020).
What it takes for granted stands in docs/scaling.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

ALL_GATHER, ALL_REDUCE, ALL_REDUCE_ROWS, BROADCAST = "all_gather", "all_reduce", "all_reduce_rows", "broadcast"
"""Kinds of exchange: rows of all ranks for each; a sum of what each has; a sum over the rows of all ranks (gradients of the
first); what one rank has for all."""
POINTS, WIDTH = 4000, 9.0  # of the integral over a normal distribution: how many, and to how many deviations from 0


@dataclass(frozen=True)
class Link:
    """What joins two ranks: bytes a second in each direction, and seconds until the first byte is there."""

    bandwidth: float
    latency: float = 0.0

    def all_gather(self, size: float, ranks: int) -> float:
        """Seconds until each of the ranks has what all bring, ``size`` bytes each: a ring."""
        return (ranks - 1) * (self.latency + size / self.bandwidth)

    def reduce_scatter(self, size: float, ranks: int) -> float:
        """Seconds until each has its part of the sum of what all bring, ``size`` bytes each: the ring again."""
        return self.all_gather(size / ranks, ranks)

    def all_reduce(self, size: float, ranks: int) -> float:
        """Seconds until each has the sum of what all bring, ``size`` bytes each: a ring, or two trees where these are faster."""
        if ranks == 1:
            return 0.0
        ring = self.reduce_scatter(size, ranks) + self.all_gather(size / ranks, ranks)
        return min(ring, 2 * (math.ceil(math.log2(ranks)) * self.latency + size / self.bandwidth))

    def broadcast(self, size: float, ranks: int) -> float:
        """Seconds until each has what one brings: a tree, through which the bytes flow piece by piece."""
        return 0.0 if ranks == 1 else math.ceil(math.log2(ranks)) * self.latency + size / self.bandwidth


@dataclass(frozen=True)
class Cluster:
    """Nodes of so many ranks each. ``spread``: standard deviation of a rank's step time as a part of its mean."""

    ranks_per_node: int
    within: Link
    between: Link  # of one rank: each has its own way to the other nodes
    spread: float = 0.0

    def all_gather(self, size: float, ranks: int) -> float:
        """Between the nodes first, each rank with its twins, then within each node."""
        node, nodes = self._shape(ranks)
        return self.between.all_gather(size, nodes) + self.within.all_gather(size * nodes, node)

    def reduce_scatter(self, size: float, ranks: int) -> float:
        """The way back of ``all_gather``."""
        return self.all_gather(size / ranks, ranks)

    def all_reduce(self, size: float, ranks: int) -> float:
        """Summed within each node, each rank a part; the parts between the nodes; and put together again within each."""
        node, nodes = self._shape(ranks)
        if nodes == 1:
            return self.within.all_reduce(size, node)
        inside = self.within.reduce_scatter(size, node) + self.within.all_gather(size / node, node)
        return inside + self.between.all_reduce(size / node, nodes)

    def broadcast(self, size: float, ranks: int) -> float:
        """Between the nodes each rank of a node carries a part, then all of it flows to each within."""
        node, nodes = self._shape(ranks)
        return self.between.broadcast(size / node, nodes) + self.within.broadcast(size, node)

    def _shape(self, ranks: int) -> tuple[int, int]:
        node = min(ranks, self.ranks_per_node)
        return node, ranks // node


@dataclass(frozen=True)
class Exchange:
    """Something the ranks exchange in the middle of a pass, which waits for it; ``size`` in bytes of one rank."""

    kind: str
    size: float

    def seconds(self, cluster: Cluster, ranks: int) -> float:
        if self.kind == ALL_GATHER:
            return cluster.all_gather(self.size, ranks)
        if self.kind == BROADCAST:
            return cluster.broadcast(self.size, ranks)
        return cluster.all_reduce(self.size * (ranks if self.kind == ALL_REDUCE_ROWS else 1), ranks)


@dataclass(frozen=True)
class Work:
    """What a rank does in an optimiser step of ``passes`` batches."""

    compute: float  # seconds of a pass, forwards and backwards, alone
    gradients: float  # bytes
    exchanges: Sequence[Exchange] = ()  # of each pass
    weights: float = 0.0  # bytes that are gathered to compute, twice a pass, where the ranks have them split; else 0
    passes: int = 1
    backward: float = 2 / 3  # the backward pass's part of ``compute``
    bucket: float = (
        25 * 2**20
    )  # bytes of gradients, or of weights, that travel together; inf: nothing travels during the pass
    data: float = 0.0  # seconds until the loader has the next batch, which it makes meanwhile
    between: float = 0.0  # seconds between passes in which the rank makes its batch itself


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, by what they go to."""

    compute: float
    gradients: float  # exchange of gradients, and of split weights, that no computation hides
    exchanges: float
    slowest: float  # how much later than the mean the slowest rank comes
    data: float

    @property
    def total(self) -> float:
        return self.compute + self.gradients + self.exchanges + self.slowest + self.data

    @property
    def efficiency(self) -> float:
        """The part of the time in which a rank computes: of weak scaling, against a rank alone whose data are there."""
        return self.compute / self.total


def step_time(work: Work, cluster: Cluster, ranks: int) -> StepTime:
    """The expected time of a step on so many ranks, each with a batch of its own (weak scaling)."""
    compute = work.passes * work.compute
    exchanged = work.passes * sum(each.seconds(cluster, ranks) for each in work.exchanges)
    slowest = compute * cluster.spread * expected_largest(ranks)
    gradients = _split(work, cluster, ranks) if work.weights else _buckets(work, cluster, ranks)
    own = work.passes * work.between
    busy = own + compute + exchanged + slowest + gradients
    return StepTime(compute, gradients, exchanged, slowest, own + max(0.0, work.passes * work.data - busy))


def _buckets(work: Work, cluster: Cluster, ranks: int) -> float:
    """How much longer than the last backward pass the sums of gradients take: a bucket sets off when it is full, one by one.

    Gradients come evenly over the backward pass, so the last bucket's sum lies behind it, however fast the others were.
    """
    count = max(1, math.ceil(work.gradients / work.bucket))
    seconds = cluster.all_reduce(work.gradients / count, ranks)
    duration, free = work.compute * work.backward, 0.0
    for number in range(1, count + 1):
        free = max(free, duration * number / count) + seconds
    return free - duration


def _split(work: Work, cluster: Cluster, ranks: int) -> float:
    """Split weights: gathered for both passes, gradients summed in parts; all but first and last bucket while others compute."""
    gather = cluster.all_gather(work.weights / ranks, ranks)
    scatter = cluster.reduce_scatter(work.gradients, ranks)
    share = min(1.0, work.bucket / work.weights)  # of the first block, for which everything waits
    forwards, backwards = work.compute * (1 - work.backward), work.compute * work.backward
    first = share * gather
    plain = _exposed(gather, first, forwards) + _exposed(gather, first, backwards)
    last = _exposed(gather, first, forwards) + _exposed(gather + scatter, first + share * scatter, backwards)
    return (work.passes - 1) * plain + last


def _exposed(exchange: float, bare: float, computing: float) -> float:
    """Seconds of an exchange beyond the computing that hides all but a bare part of it."""
    return max(bare, exchange - computing)


def expected_largest(count: int) -> float:
    """The expected largest of so many independent draws of a normal distribution, in its standard deviations, from the mean."""
    if count == 1:
        return 0.0
    normal, step = NormalDist(), 2 * WIDTH / POINTS
    points = (-WIDTH + step * number for number in range(POINTS + 1))
    return step * sum(x * count * normal.pdf(x) * normal.cdf(x) ** (count - 1) for x in points)
