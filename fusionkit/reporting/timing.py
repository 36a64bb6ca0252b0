"""Side-by-side timing: the rivals take turns in one process, so that whatever else the machine does meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping


def race(
    rivals: Mapping[str, Callable[[], object]], rounds: int = 15, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each rival over ``rounds`` rounds in which each runs once, after one round that does not count.

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
