"""What benchmarks share: rivals that take turns, where they ran, and what is printed and written of them."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fusionkit.files.atomic import write_text


class Turn(NamedTuple):
    """What one turn of a rival took."""

    seconds: float  # by the clock, or by CUDA's events
    processor: float  # seconds of all processors of this process: others on a busy machine lengthen them little


def take_turns(
    rivals: Mapping[str, Callable[[], object]], rounds: int, device: torch.device | str = "cpu"
) -> dict[str, list[Turn]]:
    """The turns of each rival, one a round, behind a warm-up round; every other round goes through them backwards."""
    turns: dict[str, list[Turn]] = {name: [] for name in rivals}
    for number in range(rounds + 1):
        for name in list(rivals)[:: -1 if number % 2 else 1]:
            turn = _turn(rivals[name], torch.device(device))
            if number:
                turns[name].append(turn)
    return turns


def _turn(run: Callable[[], object], device: torch.device) -> Turn:
    processor = time.process_time()
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return Turn(time.perf_counter() - start, time.process_time() - processor)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    torch.cuda.synchronize(device)
    return Turn(first.elapsed_time(last) / 1e3, time.process_time() - processor)


def medians(turns: Mapping[str, list[Turn]]) -> dict[str, Turn]:
    """The median turn of each rival, number by number."""
    return {
        name: Turn(*(statistics.median(column) for column in zip(*took, strict=True))) for name, took in turns.items()
    }


def report(title: str, medians: Mapping[str, float], base: str, output: Path | None = None, **facts: Any) -> None:
    """Print the medians, each with its ratio to ``base``; write them to a json file, with facts beside them."""
    print(title)
    for name, seconds in medians.items():
        print(f"  {name:<44}{1e3 * seconds:8.1f} ms   {medians[base] / seconds:5.2f} x")
    if output is not None:
        ratios = {name: medians[base] / seconds for name, seconds in medians.items()}
        write(output, title, {"base": base, "seconds": dict(medians), "ratios": ratios} | facts)


def write(output: Path, title: str, found: Mapping[str, Any]) -> None:
    """Write what was found to a json file, with the machine and the command; ``ratios`` by name are what ``suite`` draws."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps({"title": title} | machine() | dict(found), indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Where this runs, when, and how it was asked for."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python -m", _module(), *sys.argv[1:]]),
    }


def _module() -> str:
    """The module that was started, by its dotted name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name
