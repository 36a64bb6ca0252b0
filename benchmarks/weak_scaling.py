"""Weak scaling on processes of this machine, and how well ``fusionkit plan``'s simulation tells what it adds to a step.

    python -m benchmarks.weak_scaling [--ranks 1 2 4] [--rounds 5] [--steps 6] [key=value ...]

Each process (one thread, gloo) makes steps of a small configuration on a batch of its own. Processes share the cores, so for each
number N of them there are two conditions: N that know nothing of each other, side by side, and N that train together by DDP. The
first is the ``compute`` that goes into the simulation, contention and all; what has to be told is what exchanging adds. Exchanges
are timed alone too: sums of 8 bytes and of all gradients give the link its latency and bandwidth. The conditions take turns in
each round; medians over rounds count, and of what is added the median of the rounds' differences.
"""

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fusionkit.assembly.composition import training_config
from fusionkit.balance import Step
from fusionkit.commands.train import build
from fusionkit.training.memory.plan import batch_of, losses_of
from fusionkit.training.scaling.measured import Passes
from fusionkit.training.scaling.step_time import (
    ALL_GATHER,
    ALL_REDUCE_ROWS,
    Cluster,
    Exchange,
    Link,
    StepTime,
    Work,
    step_time,
)

SMALL = (  # wide on few rows, so that exchanging its gradients takes a while beside computing them
    *("experiment=quickstart", "logger=none", "trainer=cpu", "trainer.precision=32-true", "data.num_workers=0"),
    *("data.prepare.scenes=48", "data.sources.shapes.batch_size=2", "data.sources.shapes.texts_per_image.questions=1"),
    *("text_encoder.config.hidden_size=256", "text_encoder.config.intermediate_size=1024", "optimizer=adamw"),
    *("task=[itc,itm,mlm]", "data.sources.shapes.texts_per_image.expressions=1"),
)
ALONE, TOGETHER = "alone", "together"
EXCHANGES = ("sum of 8 bytes", "sum of gradients", "exchanges of a pass")
REPEATS = 6


class Loss(nn.Module):
    """A training module's loss of a batch, as a module that DDP takes."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Tensor:
        step = Step(number=0, total=2, is_first=True, parameters=self.module.stages.training)
        loss: Tensor = self.module.balance(losses_of(self.module, batch), self.module.weights, step).loss
        return loss


class World(NamedTuple):
    """What all processes are forked with; no pass has been made of it, which torch would not let forks go on from."""

    module: Any
    batch: Any
    gradients: int
    exchanges: Sequence[Exchange]


def build_world(options: Sequence[str], folder: str) -> World:
    """The configuration's module and a batch. Exchanges are rehearsed in a process of their own."""
    config = training_config(*SMALL, f"output_dir={folder}/run", f"data.root={folder}/shapes", *options)
    torch.manual_seed(0)
    parts, module = build(config, None)
    module.train()
    batch = batch_of(parts, {name: parts.datamodule.sources[name].batch_size for name in module.objectives})
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    here, there = multiprocessing.Pipe()

    def rehearse() -> None:
        there.send(Passes(parts, module, "32-true", torch.device("cpu")).exchanges())

    run_all([rehearse])
    return World(module, batch, sum(parameter.nbytes for parameter in trained), here.recv())


def run_all(jobs: Sequence[Callable[[], None]]) -> None:
    """Each job in a fork of this process, side by side; raises where one fails."""
    context: Any = multiprocessing.get_context("fork")
    processes = [context.Process(target=job) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("a process of the benchmark failed")


def measure(world: World, kind: str, ranks: int, steps: int, folder: str) -> dict[str, float]:
    """Mean seconds of a step over ranks and steps, and of a rank's alone their spread; or those of the exchanges."""
    barrier: Any = multiprocessing.Barrier(ranks)
    pipes = [multiprocessing.Pipe() for _ in range(ranks)]
    store = tempfile.mktemp(dir=folder)

    def job(rank: int) -> None:
        torch.set_num_threads(1)
        if kind == TOGETHER:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
        times = timed_steps(world, kind, steps, barrier)
        found = timed_exchanges(world) if kind == TOGETHER else {}
        pipes[rank][1].send((times, found))
        if kind == TOGETHER:
            dist.destroy_process_group()

    run_all([lambda rank=rank: job(rank) for rank in range(ranks)])
    heard = [here.recv() for here, _ in pipes]
    times = [one for each, _ in heard for one in each]
    mean = statistics.fmean(times)
    return {
        "step": mean,
        "spread": statistics.stdev(times) / mean,
        **{name: statistics.fmean(each[name] for _, each in heard) for name in heard[0][1]},
    }


def timed_steps(world: World, kind: str, steps: int, barrier: Any) -> list[float]:
    """Seconds of steps, behind two that are not counted."""
    loss = Loss(world.module)
    optimizer = world.module.build_optimizer()
    model = DistributedDataParallel(loss) if kind == TOGETHER else loss
    found = []
    for number in range(2 + steps):
        if number == 2:
            barrier.wait()
        start = time.perf_counter()
        optimizer.zero_grad()
        model(world.batch).backward()
        optimizer.step()
        found.append(time.perf_counter() - start)
    return found[2:]


def timed_exchanges(world: World) -> dict[str, float]:
    """Mean seconds of the exchanges alone."""
    small, gradients = torch.zeros(2), torch.zeros(world.gradients // 4)
    jobs: tuple[Callable[[], Any], ...] = (
        lambda: dist.all_reduce(small),
        lambda: dist.all_reduce(gradients),
        lambda: [exchange(one) for one in world.exchanges],
    )
    found = {}
    for name, job in zip(EXCHANGES, jobs, strict=True):
        job()
        dist.barrier()
        start = time.perf_counter()
        for _ in range(REPEATS):
            job()
        found[name] = (time.perf_counter() - start) / REPEATS
    return found


def exchange(one: Exchange) -> None:
    """Make it, with zeros."""
    count, ranks = max(1, round(one.size / 4)), dist.get_world_size()
    if one.kind == ALL_GATHER:
        dist.all_gather([torch.zeros(count) for _ in range(ranks)], torch.zeros(count))
    else:
        dist.all_reduce(torch.zeros(count * (ranks if one.kind == ALL_REDUCE_ROWS else 1)))


def link_of(found: dict[str, float], gradients: int, ranks: int) -> Link:
    """What joins the ranks, from the two sums that were timed alone: read off the trees' formula, and the ring's."""
    latency = found[EXCHANGES[0]] / (2 * math.ceil(math.log2(ranks)))
    left = max(1e-9, found[EXCHANGES[1]] - 2 * (ranks - 1) * latency)
    return Link(2 * (ranks - 1) / ranks * gradients / left, latency)


def simulated(world: World, alone: dict[str, float], link: Link, ranks: int, bucket: float = math.inf) -> StepTime:
    """The step of the simulation; by default no sum goes on beside the backward pass, for which there is no core here."""
    work = Work(alone["step"], world.gradients, world.exchanges, bucket=bucket)
    return step_time(work, Cluster(ranks, link, link, alone["spread"]), ranks)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    torch.set_num_threads(1)
    conditions = [(kind, ranks) for ranks in given.ranks for kind in (ALONE, TOGETHER)]
    rows: dict[tuple[str, int], list[dict[str, float]]] = {condition: [] for condition in conditions}
    with tempfile.TemporaryDirectory() as folder:
        world = build_world(given.overrides, folder)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {world.gradients / 2**20:.1f} MB of gradients")
        for number in range(given.rounds):
            for kind, ranks in conditions[:: -1 if number % 2 else 1]:
                rows[kind, ranks].append(measure(world, kind, ranks, given.steps, folder))
                print(f"  round {number + 1}: {ranks} {kind} {1e3 * rows[kind, ranks][-1]['step']:.0f} ms", flush=True)
    found = {
        condition: {name: statistics.median(one[name] for one in several) for name in several[0]}
        for condition, several in rows.items()
    }
    for ranks in given.ranks:  # what is added, within a round
        pairs = zip(rows[ALONE, ranks], rows[TOGETHER, ranks], strict=True)
        found[TOGETHER, ranks]["added"] = statistics.median(more["step"] - less["step"] for less, more in pairs)
    report(world, found, given.ranks)
    print(f"load at the end {os.getloadavg()[0]:.1f}; file {Path(__file__).name}, torch {torch.__version__}")


def report(world: World, found: dict[tuple[str, int], dict[str, float]], counts: Sequence[int]) -> None:
    """The tables of medians in ms, measured and simulated."""
    print("\n| ranks | side by side | spread | together | simulated | off by | added | simulated |")
    print("|---|---|---|---|---|---|---|---|")
    details = []
    for ranks in counts:
        alone, together = found[ALONE, ranks], found[TOGETHER, ranks]
        link = Link(math.inf) if ranks == 1 else link_of(together, world.gradients, ranks)
        told = simulated(world, alone, link, ranks)
        off, spread = f"{100 * (told.total / together['step'] - 1):+.1f}%", f"{100 * alone['spread']:.1f}%"
        row = [milliseconds(one) for one in (alone["step"], together["step"], told.total, together["added"])]
        row = [row[0], spread, row[1], row[2], off, row[3], milliseconds(told.total - told.compute)]
        print(f"| {' | '.join([str(ranks), *row])} |")
        if ranks > 1:
            parts = (link.latency, together[EXCHANGES[1]], together[EXCHANGES[2]], told.exchanges, told.slowest)
            hidden = simulated(world, alone, link, ranks, bucket=25 * 2**20)
            speed, *cells = f"{link.bandwidth / 1e9:.2f}", *map(milliseconds, (*parts, hidden.total - hidden.compute))
            details.append([str(ranks), speed, *cells])
    print(
        "\n| ranks | GB/s | a hop | sum of gradients | exchanges of a pass | simulated | the slowest | added if sums hid |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in details:
        print(f"| {' | '.join(row)} |")
    for less, more in [(less, more) for less in counts for more in counts if 1 < less < more]:
        told = simulated(world, found[ALONE, more], link_of(found[TOGETHER, less], world.gradients, less), more)
        off = f"{100 * (told.total / found[TOGETHER, more]['step'] - 1):+.1f}%"
        print(
            f"with the link of {less} ranks {more} take {milliseconds(told.total)} ms, {off}, their sum of gradients "
            f"{milliseconds(told.gradients)}"
        )


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"


if __name__ == "__main__":
    main()
