"""What the variants of a sweep cost: FLOPs, time and memory of one training step, and how a fusion's grow with its input.

``python -m fusionkit.reporting.measure_cost SWEEP`` writes SWEEP/cost.json, which ``fusionkit compare`` reads. Apart from the
training and in processor time of one thread, so that nothing it competes with is measured: the variants take turns, and
the medians count. It builds what the configurations of the runs name, as training did: give it sweeps of your own.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fusionkit.assembly.objectives import text_kinds
from fusionkit.assembly.parts import build_parts
from fusionkit.assembly.precision import resolve_precision
from fusionkit.assembly.trust import read_stored
from fusionkit.balance import Step
from fusionkit.config import register_resolvers
from fusionkit.errors import DataError, UserError
from fusionkit.files.atomic import write_text
from fusionkit.fusion.base import Fusion
from fusionkit.reporting.run_costs import FILE
from fusionkit.training.trainer import build_module
from fusionkit.types import Encoded, Tokens

ROUNDS = 5
TEXT_TOKENS, IMAGE_TOKENS, TEXTS = 16, 64, 6  # where they do not vary
SIZES = {"image_tokens": (64, 128, 256, 512, 1024, 2048, 4096), "texts_per_image": (1, 4, 16, 64, 128, 256)}
WIDTH = 128
THEORY = {  # of a layer, for N image tokens, T texts of L tokens each, Q queries, width D
    "late": "D²·(1 + T)",  # not a layer but all of it
    "gated": "N·D² + T·(N·D + L·D²)",
    "cross_attention": "N·D² + T·(L·N·D + L²·D + L·D²)",
    "alternating_cross_attention": "N·D² + T·(L·N·D + L²·D + L·D²)",
    "mixed_cross_attention": "N·D² + T·(L·N·D + L²·D + L·D²)",
    "gated_cross_attention": "N·D² + T·(L·N·D + L²·D + L·D²)",
    "coca": "N·D² + T·(L·N·D + L²·D + L·D²)",
    "bottleneck": "N·D² + T·(Q·N·D + (Q + L)²·D + (Q + L)·D²)",
    "merged_attention": "T·((N + L)²·D + (N + L)·D²)",
    "co_embedding": "T·((N + L)²·D + (N + L)·D²)",
    "co_attention": "T·((N² + N·L + L²)·D + (N + L)·D²)",
    "dual_stream_sequential": "T·((N² + N·L + L²)·D + (N + L)·D²)",
    "bridge": "T·((N² + N·L + L²)·D + (N + L)·D²)",
}


class TrainingStep:
    """One training step of a run on one fixed batch: forward, balance, backward, optimiser; of the named tasks, or of all."""

    def __init__(self, config: DictConfig, tasks: Sequence[str] | None = None) -> None:
        (source, weights), *_ = config.objectives.items()  # the studies train on one source
        off = {source: {task: 0 for task in weights if task not in (tasks or weights)}}
        chosen: Any = OmegaConf.merge(config, {"objectives": off})
        torch.manual_seed(config.seed)
        parts = build_parts(chosen)
        self.module = build_module(parts)
        self.tasks: dict[str, Any] = {name: self.module.tasks[name] for name in self.module.objectives[source]}
        self.optimizer = self.module.build_optimizer()
        batch, *_ = next(iter(parts.datamodule.train_dataloader()))
        self.source, self.batch = source, batch[source]
        self.is_mixed = resolve_precision(config.trainer.precision, "cpu") == "bf16-mixed"
        self.samples = sum(len(self.batch[task.reads]["image_index"]) for task in self.tasks.values())

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_mixed):
            losses = self.losses(self.encode())
            step = Step(number=0, total=1, is_first=True, parameters=self.module.stages.training)
            loss = self.module.balance(losses, self.module.weights, step).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def encode(self) -> Encoded:
        encoded: Encoded = self.module.model.encode(self.batch, text_kinds(self.tasks.values()))
        return encoded

    def losses(self, encoded: Encoded) -> dict[str, Tensor]:
        """Return the loss of each objective."""
        model = self.module.model
        return {f"{self.source}/{n}": task(model, self.batch, encoded, None).loss for n, task in self.tasks.items()}

    def flops(self) -> float:
        """Count multiplications and additions of the forward pass per text row, of matrix products and convolutions."""
        with FlopCounterMode(display=False) as counter:
            self.losses(self.encode())
        flops: float = counter.get_total_flops() / self.samples
        return flops


def measure_steps(configs: Mapping[str, DictConfig], tasks: Sequence[str] | None) -> dict[str, dict[str, float]]:
    """Measure by variant: parameters of the fusion, FLOPs a sample, training samples a second, peak memory in MB.

    A sample is a text with its image. The memory is the resident peak of a process that trains, libraries included.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:  # first: a peak is inherited
        peaks = {name: pool.submit(peak_memory, config, tasks) for name, config in configs.items()}
    steps = {name: TrainingStep(config, tasks) for name, config in configs.items()}
    seconds = race(steps, ROUNDS, process_time)
    return {
        name: {
            "parameters": sum(
                parameter.numel() for parameter in step.module.model.get_submodule("fusion").parameters()
            ),
            "flops_per_sample": step.flops(),
            "step_seconds": seconds[name],
            "samples_per_s": step.samples / seconds[name],
            "peak_mb": peaks[name].result(),
        }
        for name, step in steps.items()
    }


def peak_memory(config: DictConfig, tasks: Sequence[str] | None) -> float:
    """Return the peak memory of this process in MB after some steps; call it in a fresh process."""
    torch.set_num_threads(1)
    register_resolvers()
    step = TrainingStep(config, tasks)
    for _ in range(3):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_growth(fusions: Mapping[str, Fusion]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Measure by fusion and by what grows (SIZES): the sizes, seconds of forward and backward, MB kept for the backward pass."""
    growth: dict[str, dict[str, dict[str, list[float]]]] = {name: {} for name in fusions}
    for axis, sizes in SIZES.items():
        for row in growth.values():
            row[axis] = {"sizes": [float(size) for size in sizes], "seconds": [], "megabytes": []}
        for size in sizes:
            tokens, texts = (size, 1) if axis == "image_tokens" else (IMAGE_TOKENS, size)
            passes = {name: Pass(fusion, tokens, texts) for name, fusion in fusions.items()}
            for name, seconds in race(passes, ROUNDS, process_time).items():
                growth[name][axis]["seconds"].append(seconds)
                growth[name][axis]["megabytes"].append(passes[name].kept() / 2**20)
    return growth


class Pass:
    """Forward and backward through a fusion alone: one image of random tokens, and texts about it; fp32."""

    def __init__(self, fusion: Fusion, image_tokens: int, texts: int) -> None:
        assert isinstance(fusion, nn.Module)
        self.fusion = fusion
        self.index = torch.zeros(texts, dtype=torch.int64)
        image, text = torch.randn(1, image_tokens, WIDTH), torch.randn(texts, TEXT_TOKENS, WIDTH)
        self.image = Tokens(image.requires_grad_(), None, image.mean(dim=1))
        self.text = Tokens(text.requires_grad_(), torch.ones(texts, TEXT_TOKENS, dtype=torch.int64), text[:, 0])

    def __call__(self) -> None:
        self.loss().backward()

    def loss(self) -> Tensor:
        fused = self.fusion(self.fusion.prepare(self.image), self.text, self.index)
        return torch.stack([part.square().mean() for part in fused if part is not None]).sum()

    def flops(self) -> float:
        """Count multiplications and additions of the forward pass, of matrix products alone."""
        with FlopCounterMode(display=False) as counter:
            self.loss()
        flops: float = counter.get_total_flops()
        return flops

    def kept(self) -> int:
        """Count the bytes that the forward pass keeps for the backward pass, without parameters."""
        return kept_bytes(self.loss, self.fusion)


def kept_bytes(forward: Callable[[], object], *modules: nn.Module) -> int:
    """Count the bytes that a forward pass keeps for the backward pass, without parameters and buffers of the modules.

    What ``forward`` returns has to hold the graph.
    """
    own = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = forward()
    del graph  # until here it holds what was counted, so that no address is used twice
    return sum(kept.values())


def measure(sweep: Path, tasks: Sequence[str] | None, growth: bool) -> dict[str, Any]:
    """Measure all costs of a sweep's variants, built from the configuration of the first run of each.

    DataError where there is no SWEEP/VARIANT/SEED.
    """
    register_resolvers()
    configs = {
        path.parent.parent.name: read_stored(path.read_text(encoding="utf-8"), path)
        for path in sorted(sweep.glob("*/*/config.yaml"), reverse=True)
    }
    if not configs:
        raise DataError(f"{sweep} holds no run (VARIANT/SEED/config.yaml); name the folder of a sweep")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        costs: dict[str, Any] = {"steps": measure_steps(configs, tasks)}
        if growth:
            built = {
                name: instantiate(config.fusion)(image_size=WIDTH, text_size=WIDTH) for name, config in configs.items()
            }
            costs |= {"growth": measure_growth(built), "theory": THEORY}
            for name, fusion in built.items():
                costs["steps"][name]["fusion_flops_per_sample"] = Pass(fusion, IMAGE_TOKENS, TEXTS).flops() / TEXTS
    finally:
        torch.set_num_threads(threads)
    return costs


def write_costs(path: Path, costs: Mapping[str, Any]) -> None:
    """Write the json file."""
    write_text(path, json.dumps(costs, indent=1))


def race(
    rivals: Mapping[str, Callable[[], object]], rounds: int = 15, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the median seconds of each rival over ``rounds`` rounds in which each runs once, after one warm-up round.

    ``clock`` time.process_time counts the seconds of processors instead, which others on a busy machine do not lengthen.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(rounds + 1):
        for name, run in rivals.items():
            start = clock()
            run()
            if number:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fusionkit.reporting.measure_cost", description="Measure what the runs of your own sweep cost."
    )
    parser.add_argument("sweep", type=Path, help="folder of the runs, SWEEP/VARIANT/SEED; its cost.json is written")
    parser.add_argument("--tasks", nargs="+", help="whose training step is measured; without it all that a run trains")
    parser.add_argument("--growth", action="store_true", help="also how the fusion's cost grows with its input")
    options = parser.parse_args(arguments)
    try:
        write_costs(options.sweep / FILE, measure(options.sweep, options.tasks, options.growth))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(options.sweep / FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
