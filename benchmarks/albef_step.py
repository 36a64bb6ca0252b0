"""ALBEF's pre-training step as published against fusionkit's, in turns in one process.

Both have the same weights (copied tensor by tensor), inputs, masks and negatives, and no dropout; first their losses and
gradients have to be equal, in fp32, or this ends with 1. ``--size S``: ViT-S/16 of 384 on images of 224 pixels, text and fusion
layers 3 + 3, 16 pairs. ``B``: ViT-B/16 on 256 pixels, 6 + 6, 8 pairs. Texts are padded to 30 tokens and have ``--shortest`` at
least; contrast with a queue of 65,536 and a momentum model, matching, masked words, distilled; AdamW.
Run: python -m benchmarks.albef_step [--size S] [--precision 32] [--rounds 7] [--output FILE.json] [--profile]
"""

import argparse
import itertools
import resource
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import albef_flops
from benchmarks.albef_ours import CLS, MASK, PAD, SEP, build, losses, pairs, share
from benchmarks.albef_published import Given, Published, Shape
from benchmarks.timing import Turn, medians, report, take_turns
from fusionkit.reporting.measure_cost import kept_bytes
from fusionkit.training.memory.live import LiveMemory
from fusionkit.training.steps.gradients import total_norm

ALPHA, LENGTH, MASKED = 0.4, 30, 0.15
PUBLISHED, OURS, GEMM = "published", "fusionkit", "matrix product"
SIZES = {  # the shape, pairs in a batch, features in a queue
    "S": (Shape(224, 16, 384, 12, 6, 384, 6, 3, 3, 30522, 512, 256), 16, 65536),
    "B": (Shape(256, 16, 768, 12, 12, 768, 12, 6, 6, 30522, 512, 256), 8, 65536),
    "tiny": (Shape(32, 8, 32, 2, 4, 32, 4, 2, 2, 2000, 40, 16), 4, 4096),
}
LOSSES, GRADIENTS = 1e-5, 1e-4  # how far apart they may be, relative
# what a profile counts as matrix products: the names of torch's operations on CPUs and GPUs
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "scaled_dot_product", "_flash_attention", "linear")


@dataclass
class Rival:
    """A formulation: what gives the loss, what follows the backward pass, and what it keeps between steps."""

    forward: Callable[[], tuple[Tensor, dict[str, Tensor]]]
    optimizer: torch.optim.Optimizer
    parts: list[nn.Module]
    after: Callable[[], object] = field(default=lambda: None)
    autocast: Callable[[], Any] = field(default=lambda: torch.autocast("cpu", enabled=False))

    def loss(self) -> Tensor:
        """The loss of a step, its graph not yet gone through."""
        with self.autocast():
            return self.forward()[0]

    def __call__(self) -> None:
        """A whole step."""
        self.loss().backward()
        self.after()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def standing(self) -> int:
        """Bytes of weights, momentum model, queues and the optimiser's moments."""
        kept = [tensor for part in self.parts for tensor in (*part.parameters(), *part.buffers())]
        kept += [value for state in self.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in kept}.values())


def draw(shape: Shape, size: int, shortest: int, device: torch.device) -> tuple[dict[str, Any], Given]:
    """A random batch of ``size`` pairs, and what chance chose for it."""
    longest = min(LENGTH, shape.places)
    lengths = torch.randint(min(shortest, longest), longest + 1, (size, 1))
    lengths[0] = longest
    places = torch.arange(longest)[None]
    ids = torch.randint(MASK + 1, shape.words, (size, longest))
    ids[:, 0] = CLS
    ids = torch.where(places == lengths - 1, SEP, torch.where(places < lengths, ids, PAD))
    words = torch.where((places > 0) & (places < lengths - 1), places - 1, -1)
    is_masked = (torch.rand(ids.shape) < MASKED) & (words >= 0)
    is_masked[:, 1] = True
    others = (torch.arange(size)[:, None] + torch.randint(1, size, (size, 2))) % size
    given = Given(ids.masked_fill(is_masked, MASK), ids.masked_fill(~is_masked, -100), others[:, 0], others[:, 1])
    pixels = torch.randn(size, 3, shape.image_size, shape.image_size)
    captions = {"input_ids": ids, "attention_mask": (places < lengths).long(), "word_index": words}
    captions["image_index"] = torch.arange(size)
    batch = {"source": "pairs", "image_ids": list(range(size)), "image_keys": torch.arange(size).to(device)}
    batch |= {"pixel_values": pixels.to(device), "captions": {name: rows.to(device) for name, rows in captions.items()}}
    return batch, Given(*(part.to(device) for part in given))


def rivals(
    size: str, shortest: int, dtype: torch.dtype, device: torch.device, only: str | None = None
) -> tuple[dict[str, Rival], Callable[[], list[tuple[str, nn.Parameter, nn.Parameter]]], int]:
    """The rivals on one batch, their parameters side by side, and the operations that a step needs; or ``only`` one."""
    shape, pairs_of_batch, queue = SIZES[size]
    torch.manual_seed(0)
    batch, given = draw(shape, pairs_of_batch, shortest, device)
    found: dict[str, Rival] = {}
    ours, theirs = None, None

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)

    if only != OURS:
        theirs = Published(shape, queue).to(device).train()
        captions, published = batch["captions"], theirs

        def forward() -> tuple[Tensor, dict[str, Tensor]]:
            each = published(batch["pixel_values"], captions["input_ids"], captions["attention_mask"], given, ALPHA)
            return sum(each.values(), torch.zeros((), device=device)), each

        decayed = [p for p in theirs.parameters() if p.requires_grad and p.dim() != 1]
        others = [p for p in theirs.parameters() if p.requires_grad and p.dim() == 1]
        groups = [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-4)  # torch's own choice: one by one on a CPU
        found[PUBLISHED] = Rival(forward, optimizer, [theirs], autocast=autocast)
    if only != PUBLISHED:
        module = ours = build(shape, queue, given).to(device)
        fused = module.build_optimizer()
        parameters = [p for group in fused.param_groups for p in group["params"]]
        steps = itertools.count()

        def ours_forward() -> tuple[Tensor, dict[str, Tensor]]:  # other images at each step, as in a training
            keys = batch["image_keys"] + pairs_of_batch * next(steps)
            return losses(module, {**batch, "image_keys": keys}, ALPHA)

        found[OURS] = Rival(ours_forward, fused, [module], lambda: total_norm(parameters), autocast)
    if ours is not None and theirs is not None:
        share(ours, theirs)
    flops = albef_flops.needed(shape, queue, batch["captions"]["attention_mask"].cpu(), given)
    return found, lambda: list(pairs(ours, theirs)) if ours is not None and theirs is not None else [], flops


def compare(both: Mapping[str, Rival], parameters: list[tuple[str, nn.Parameter, nn.Parameter]]) -> dict[str, float]:
    """How far apart, relatively, two steps' losses and the first one's gradients are: all of them, and the worst tensor's.

    A tensor's are relative to its own norm, or where that is next to none (biases of keys have no gradient but for rounding)
    to a thousandth of the norm of all.
    """
    found = {"losses": _losses_apart(both)}
    for rival in both.values():
        rival.after()
    gradients = [(a.grad, b.grad) for _, a, b in parameters if a.grad is not None and b.grad is not None]
    if len(gradients) != len(parameters):
        raise AssertionError("a parameter has no gradient")
    squares = [((a - b).double().square().sum(), b.double().square().sum()) for a, b in gradients]
    whole = torch.stack([norm for _, norm in squares]).sum()
    found["gradients"] = float((torch.stack([gap for gap, _ in squares]).sum() / whole).sqrt())
    found["worst_gradient"] = max(float((gap / norm.clamp(min=1e-6 * whole)).sqrt()) for gap, norm in squares)
    for rival in both.values():
        rival.optimizer.step()
        rival.optimizer.zero_grad()
    found["losses_of_next_step"] = _losses_apart(both)
    for rival in both.values():
        rival.optimizer.zero_grad()
    return found


def _losses_apart(both: Mapping[str, Rival]) -> float:
    """Of one forward and backward pass of each, the largest relative difference between losses of a name."""
    seen = []
    for rival in both.values():
        loss, each = rival.forward()
        loss.backward()
        seen.append({name: value.item() for name, value in each.items()})
    first, second = seen
    print(", ".join(f"{name} {first[name]:.6f} and {second[name]:.6f}" for name in first))
    return max(abs(second[name] / first[name] - 1) for name in first)


def products(dtype: torch.dtype, device: torch.device, side: int = 2048) -> tuple[Callable[[], object], int]:
    """A matrix product that takes turns with the rivals, and its operations."""
    side = 8192 if device.type == "cuda" else side
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return lambda: one @ other, 2 * side**3


def speed(turn: Turn, device: torch.device) -> float:
    """What operations are divided by: on a CPU the seconds of its cores, which others on a busy machine lengthen little."""
    return turn.processor if device.type == "cpu" else turn.seconds


def measure(rival: Rival, size: str, shortest: int, dtype: torch.dtype, name: str) -> dict[str, float]:
    """Operations done, and the memory of a step."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        rival()
        peak = torch.cuda.max_memory_allocated()
        resident = 0
    else:
        with LiveMemory() as memory:
            rival()
        peak = memory.peak + rival.standing()
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
            resident = pool.submit(resident_peak, name, size, shortest, dtype, torch.get_num_threads()).result()
    kept = kept_bytes(rival.loss, *rival.parts)
    flops = albef_flops.done(rival)
    return {"flops_done": flops, "kept_mb": kept / 2**20, "peak_mb": peak / 2**20, "resident_mb": resident / 2**20}


def resident_peak(name: str, size: str, shortest: int, dtype: torch.dtype, threads: int) -> int:
    """Bytes that a fresh process has in memory at most in two steps of one rival."""
    torch.set_num_threads(threads)
    rival = rivals(size, shortest, dtype, torch.device("cpu"), only=name)[0][name]
    for _ in range(2):
        rival()
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells is at least what the process that started this one had
        (most,) = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(most) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def profile(rival: Rival, rows: int = 12) -> dict[str, float]:
    """Shares of the processor's (or the GPU's) time by operation, the largest first, and that of matrix products."""
    rival()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as seen:
        rival()
    cuda = torch.cuda.is_available()
    spent = {
        event.key: event.self_device_time_total if cuda else event.self_cpu_time_total for event in seen.key_averages()
    }
    total = sum(spent.values())
    largest = dict(sorted(spent.items(), key=lambda pair: -pair[1])[:rows])
    shared = sum(time for name, time in spent.items() if any(name.endswith(p) or f"{p}_" in name for p in PRODUCTS))
    return {"matrix products": shared / total} | {name: spent / total for name, spent in largest.items()}


def run(options: argparse.Namespace) -> int:
    """Compare, measure, print; the exit code."""
    device = torch.device(options.device)
    dtype = {"32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    both, parameters, needed = rivals(options.size, options.shortest, dtype, device)
    apart = compare(both, parameters())
    told = ", ".join(f"{name} {value:.1e}" for name, value in apart.items())
    print(f"apart by, in fp32: {told}", flush=True)
    bounds = {"losses": LOSSES, "gradients": GRADIENTS, "worst_gradient": GRADIENTS, "losses_of_next_step": GRADIENTS}
    if any(not apart[name] <= bound for name, bound in bounds.items()):
        print(f"error: the two formulations differ: {told}", file=sys.stderr)
        return 1
    if not options.rounds:
        return 0
    product, operations = products(dtype, device)
    turns: dict[str, list[Turn]] = take_turns({**both, GEMM: product}, options.rounds, device)
    best = operations / min(speed(turn, device) for turn in turns[GEMM])
    taken = medians({name: turns[name] for name in both})
    each = " a core" if device.type == "cpu" else ""
    print(f"seconds, and those of processors: {taken}; {best / 1e9:.0f} GFLOP/s{each}", flush=True)
    facts: dict[str, Any] = {}
    for name, rival in both.items():
        facts[name] = measure(rival, options.size, options.shortest, dtype, name)
        facts[name] |= {
            "seconds": taken[name].seconds,
            "processor_seconds": taken[name].processor,
            "samples_per_s": SIZES[options.size][1] / taken[name].seconds,
            "mfu": needed / speed(taken[name], device) / best,
            "done_per_peak": facts[name]["flops_done"] / speed(taken[name], device) / best,
        }
        if options.profile:
            facts[name]["profile"] = profile(rival)
    tell(options, taken, facts, {"apart": apart, "flops_needed": needed, "gemm_flops_per_s": best})
    return 0


def tell(
    options: argparse.Namespace, taken: Mapping[str, Turn], facts: Mapping[str, Any], found: dict[str, Any]
) -> None:
    """Print a table, and write it where an output is named."""
    title = (
        f"ALBEF's step, size {options.size}, {options.precision}, texts of {options.shortest} to {LENGTH} tokens, "
        f"{options.rounds} rounds, {torch.get_num_threads()} thread(s)"
    )
    ratios = {
        "processor": taken[PUBLISHED].processor / taken[OURS].processor,
        **{key: facts[PUBLISHED][key] / facts[OURS][key] for key in ("kept_mb", "peak_mb", "flops_done")},
    }
    more = {"rivals": dict(facts), "more_ratios": ratios} | found
    report(title, {name: turn.seconds for name, turn in taken.items()}, PUBLISHED, options.output, **more)
    for name, facts_of in facts.items():
        print(f"  {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in facts_of.items() if key != "profile"))
        for operation, share_of in facts_of.get("profile", {}).items():
            print(f"    {share_of:6.1%} {operation}")
    print("  published / fusionkit: " + ", ".join(f"{key} {value:.2f}" for key, value in ratios.items()))
    told = f"{found['gemm_flops_per_s'] / 1e9:.0f} GFLOP/s (on a CPU: a core)"
    print(f"  needed {found['flops_needed'] / 1e9:.0f} GFLOP; peak of a matrix product {told}")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--rounds", type=int, default=7, help="0: compare alone")
    parser.add_argument("--shortest", type=int, default=10, help="tokens of the shortest text; 30: no padding at all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--profile", action="store_true", help="also where the time goes, by operation")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    code = run(options)
    print(f"took {time.perf_counter() - start:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
