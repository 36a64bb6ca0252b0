"""What a sweep does when all its runs are done: measure what they cost, write table and plots (a Hydra callback)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class WriteStudy(Callback):
    """Writes the study of the sweep to ``out``; costs are measured where ``out``/cost.json is missing.

    ``timed``   the tasks whose training step is measured, so that all variants do the same work; None: all that they train.
    ``growth``  whether the variants are fusions, measured also alone and by the size of their input.
    """

    def __init__(self, out: str, timed: Sequence[str] | None = None, growth: bool = False) -> None:
        self.out, self.timed, self.growth = Path(out), timed, growth

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from fusionkit.reporting.cost import measure, write_costs
        from fusionkit.reporting.study import write_study

        sweep = Path(config.hydra.sweep.dir)
        if not (path := self.out / "cost.json").exists():
            print("measuring costs, some minutes; let the machine do nothing else", flush=True)
            write_costs(path, measure(sweep, self.timed, self.growth))
        write_study(sweep, self.out)
