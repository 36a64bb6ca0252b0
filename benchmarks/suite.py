"""What ``make bench`` runs: benchmarks one after the other, each in a process of its own, then one table and one plot.

Each writes FOLDER/NAME.json: ratios by name, side by side in one process, with what was measured, the machine and the command.
Run: python -m benchmarks.suite [--size S] [--rounds 7] [--folder outputs/bench] [--only NAME ...]
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window, and no display needed
import matplotlib.pyplot as plt

from fusionkit.assembly.precision import resolve_precision

SUITE: dict[str, list[str]] = {  # file -> module and options; SIZE and ROUNDS are put in
    "albef_step": ["albef_step", "--size=SIZE", "--precision=32", "--rounds=ROUNDS"],
    "albef_step_no_padding": ["albef_step", "--size=SIZE", "--precision=32", "--rounds=ROUNDS", "--shortest=30"],
    "one_encoding": ["one_encoding", "--rounds=ROUNDS"],
    "shared_prefix": ["shared_prefix", "--rounds=ROUNDS"],
    "reranking": ["reranking", "--rounds=ROUNDS"],
    "activation_memory": ["activation_memory", "--images=4", "--rounds=1"],
}
BF16 = ["albef_step", "--size=SIZE", "--precision=bf16", "--rounds=ROUNDS"]  # where the machine is fast at it


def main() -> int:
    """Run them; the exit code of the first that fails, at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="S", choices=("S", "B", "tiny"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench"))
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    suite = SUITE | ({"albef_step_bf16": BF16} if resolve_precision("auto") == "bf16-mixed" else {})
    found, code = {}, 0
    for name, (module, *words) in suite.items():
        if options.only and name not in options.only:
            continue
        words = [word.replace("SIZE", options.size).replace("ROUNDS", str(options.rounds)) for word in words]
        output = options.folder / f"{name}.json"
        print(f"-- {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{module}", *words, "--output", str(output)]
        if failed := subprocess.run(command, check=False).returncode:
            code = code or failed
            continue
        found[name] = json.loads(output.read_text(encoding="utf-8"))
    tell(found)
    if found:
        draw(found, options.folder / "bench.png")
        print(f"{options.folder}/bench.png")
    return code


def rows(found: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Benchmark, what is compared, how many times less it takes than its base, without the bases."""
    return [
        (name, what, ratio)
        for name, facts in found.items()
        for what, ratio in (facts["ratios"] | facts.get("more_ratios", {})).items()
        if what != facts.get("base")
    ]


def tell(found: Mapping[str, Any]) -> None:
    """Print the table."""
    print(f"\n{'benchmark':<24}{'against its base':<48}{'times':>8}")
    for name, what, ratio in rows(found):
        print(f"{name:<24}{what:<48}{ratio:>7.2f}x")


def draw(found: Mapping[str, Any], path: Path) -> None:
    """One bar a ratio."""
    table = rows(found)[::-1]
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.28 * len(table)))
    bars = axes.barh(range(len(table)), [ratio for *_, ratio in table], color="#4c78a8")
    axes.bar_label(bars, [f"{ratio:.2f}" for *_, ratio in table], padding=2, fontsize=8)
    axes.set_yticks(range(len(table)), [f"{name}: {what}" for name, what, _ in table], fontsize=8)
    axes.axvline(1, color="#1f2328", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("times less than the base (time, bytes or operations)")
    first = next(iter(found.values()))
    axes.set_title(f"{first['processor']}, {first['device']}, torch {first['torch']}, {first['date']}", fontsize=9)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
