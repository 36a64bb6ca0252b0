"""``hydra/launcher=parallel``: the runs of a sweep in processes of their own, some at a time (Hydra looks for plugins here)."""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

JOB = "job.yaml"  # in the folder of a run


class Failed(JobReturn):
    """A run that failed: who asks for its score is told why, without a word more on the terminal."""

    def __init__(self, overrides: Sequence[str], failure: Exception) -> None:
        super().__init__(overrides=overrides, status=JobStatus.FAILED, _return_value=failure)

    @property
    def return_value(self) -> float:
        raise self._return_value


class ParallelLauncher(Launcher):
    """Starts ``jobs`` runs at a time, each with its share of the processors; what a run prints goes to log.txt in its folder.

    A run that fails stops no other; all of them are named at the end. For training runs alone.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.load, self.config = hydra_context.config_loader.load_sweep_config, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from fusionkit.commands.processes import pass_on
        from fusionkit.commands.worker import score_of
        from fusionkit.errors import UserError
        from fusionkit.signals import Stopped, started

        runs = [self._compose(initial_job_idx + number, list(o)) for number, o in enumerate(job_overrides)]
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                codes = list(pool.map(self._train, *zip(*runs, strict=True)))
            except (KeyboardInterrupt, Stopped) as stop:
                pool.shutdown(wait=False, cancel_futures=True)
                pass_on(started(), stop)  # they keep what they have
                raise
        folders = [run.output_dir for run, _ in runs]
        failed = [folder for folder, code in zip(folders, codes, strict=True) if code]
        failure = UserError(
            f"{len(failed)} of {len(runs)} runs failed; see log.txt in {', '.join(failed)} (resume=auto: the same command "
            "runs only what is not finished)"
        )
        return [
            Failed(overrides, failure)
            if code
            else JobReturn(overrides, status=JobStatus.COMPLETED, _return_value=score_of(Path(folder) / JOB))
            for overrides, folder, code in zip(job_overrides, folders, codes, strict=True)
        ]

    def _compose(self, number: int, overrides: list[str]) -> tuple[DictConfig, DictConfig]:
        """The configuration of one run, in its own folder of the sweep, and Hydra's."""
        from fusionkit.assembly.composition import settle
        from fusionkit.cli.app import join_study

        config = self.load(self.config, overrides)
        with open_dict(config):
            hydra = config.hydra
            hydra.job.num = hydra.job.id = number
            folder = Path(hydra.sweep.dir) / hydra.sweep.subdir
            hydra.runtime.output_dir = os.path.abspath(folder)
            HydraConfig.instance().set_config(config)  # what calls ${hydra:...} from here on has this run's
            settle(config, hydra)
            del config["hydra"]
            config.output_dir = os.path.relpath(folder)
        join_study(config)
        return config, hydra

    def _train(self, config: DictConfig, hydra: DictConfig) -> int:
        """Train in a process of its own; gives the exit code."""
        from fusionkit.commands.processes import run_one
        from fusionkit.commands.run_folder import is_finished
        from fusionkit.commands.worker import save

        folder = Path(config.output_dir)
        if config.resume == "auto" and is_finished(config):
            print(f"{folder}: finished before", flush=True)
            return 0
        print(f"{folder}: begins", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        save(config, folder / JOB, hydra)
        share = str(max(1, (os.cpu_count() or 1) // self.jobs))
        command = [
            sys.executable,
            "-m",
            "fusionkit.commands.worker",
            "fusionkit.commands.train:train",
            str(folder / JOB),
        ]
        is_job = bool(config.trainer.get("slurm"))  # which has processors of its own
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            code = run_one(command, {} if is_job else {"OMP_NUM_THREADS": share}, log)
        done = f"submitted, see {folder / 'log.txt'}" if is_job else "done"
        print(f"{folder}: {f'failed, exit code {code}' if code else done}", flush=True)
        return code
