"""What a sweep does when all its runs are done: measure what they cost, and compare them (a Hydra callback)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class WriteStudy(Callback):
    """Comparison at the end of a sweep, over seeds, written to ``out``; costs are measured where the sweep has no ``cost.json``.

    ``timed``   the tasks whose training step is measured, so that all variants do the same work; None: all that they train.
    ``growth``  whether the variants are fusions, measured also alone and by the size of their input.
    ``sort``    the metric whose best run comes first.
    """

    def __init__(
        self, out: str, timed: Sequence[str] | None = None, growth: bool = False, sort: str | None = None
    ) -> None:
        self.out, self.timed, self.growth, self.sort = Path(out), timed, growth, sort

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from fusionkit.reporting.comparison import compare_runs
        from fusionkit.reporting.measure_cost import measure, write_costs
        from fusionkit.reporting.reading import read_runs
        from fusionkit.reporting.report import write_report
        from fusionkit.reporting.run_costs import FILE

        sweep = Path(config.hydra.sweep.dir)
        jobs = [path.parents[1] for path in sweep.rglob("slurm/job")]
        if waiting := [folder for folder in jobs if not (folder / "metrics.json").exists()]:
            told = f"{len(waiting)} of {len(jobs)} runs of {sweep} are still with SLURM"
            print(f"{told}; the same command with resume=auto compares them when all are done")
            return
        if not (path := sweep / FILE).exists():
            print("measuring costs, some minutes; let the machine do nothing else", flush=True)
            write_costs(path, measure(sweep, self.timed, self.growth))
        comparison = compare_runs(read_runs([str(sweep)]), seeds_together=True, sort=self.sort)
        write_report(comparison, self.out, load=lambda run, label: [], count=0)
