"""What waiting threads cost: training steps with spinning and with passive OpenMP threads, alone and beside a busy program.

    python -m benchmarks.busy_neighbour [--steps 10] [--rounds 7]

The four conditions are measured in turn in each round; prints the median milliseconds a step of each and the two ratios.
"""

import argparse
import os
import statistics
import subprocess
import sys

STEPS = """
import sys, time, torch
from torch import nn
layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True), 4)
rows = torch.randn(16, 64, 256)
def step():
    layers(rows).square().mean().backward()
step()
start = time.perf_counter()
for _ in range(int(sys.argv[1])):
    step()
print((time.perf_counter() - start) / int(sys.argv[1]))
"""
NEIGHBOUR = "while True: pass"


def milliseconds(policy: str, steps: int, neighbours: int) -> float:
    """A step's time in a process of its own, on all processors, with so many busy programs beside it."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | {
        "OMP_WAIT_POLICY": policy
    }
    busy = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) for _ in range(neighbours)]
    try:
        command = [sys.executable, "-c", STEPS, str(steps)]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return 1000 * float(said)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    conditions = [(policy, beside) for beside in (0, os.cpu_count() or 1) for policy in ("ACTIVE", "PASSIVE")]
    times: dict[tuple[str, int], list[float]] = {condition: [] for condition in conditions}
    for _ in range(given.rounds):
        for condition in conditions:
            times[condition].append(milliseconds(condition[0], given.steps, condition[1]))
    median = {condition: statistics.median(row) for condition, row in times.items()}
    for (policy, beside), value in median.items():
        print(f"{policy.lower():8} {beside} busy programs: {value:8.1f} ms a step")
    for beside in dict.fromkeys(beside for _, beside in conditions):
        print(f"beside {beside}: active / passive = {median['ACTIVE', beside] / median['PASSIVE', beside]:.2f}")


if __name__ == "__main__":
    main()
