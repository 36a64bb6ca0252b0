"""What a benchmark prints of rivals that took turns (fusionkit.reporting.measure_cost)."""

from collections.abc import Mapping


def report(title: str, medians: Mapping[str, float], base: str) -> None:
    """Print the medians, each with its ratio to ``base``."""
    print(title)
    for name, seconds in medians.items():
        print(f"  {name:<44}{1e3 * seconds:8.1f} ms   {medians[base] / seconds:5.2f} x")
