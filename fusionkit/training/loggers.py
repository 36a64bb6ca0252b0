"""Where the numbers of a run go: W&B without a network or a key, and the resolved configuration, once."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.utilities import rank_zero_only

from fusionkit.config import flatten
from fusionkit.data.sample import Sample
from fusionkit.errors import ConfigError
from fusionkit.internals import replace_run, wandb_options, wandb_run
from fusionkit.scoring.base import BaseScorer
from fusionkit.scoring.examples import Example
from fusionkit.scoring.records import Record
from fusionkit.scoring.sample_scores import Row, is_error


class ScoreWandbLogger(WandbLogger):
    """W&B whose dashboards group by fusion, tasks and data, and whose summary keeps the best of every validation score.

    ``offline`` (the default) asks for no account and sends nothing; ``wandb sync`` uploads the folder later; the
    environment's WANDB_MODE has the last word. ``group`` and ``tags`` come from the configuration where they are not given.
    ``tables`` is how many rows a table of predictions has, 0 for none. What W&B writes stays below ``save_dir``. Options go to
    ``wandb.init``. Where W&B fails the run goes on without it: that is told once.
    """

    def __init__(
        self,
        save_dir: str,
        project: str = "fusionkit",
        offline: bool = True,
        group: str | None = None,
        tags: Sequence[str] | None = None,
        tables: int = 32,
        **options: Any,
    ) -> None:
        _require_place(Path(save_dir).resolve())
        for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
            os.environ.setdefault(name, str(Path(save_dir).resolve() / "wandb"))
        import wandb

        settings = wandb.Settings(silent=True, console="off")
        mode = os.environ.get("WANDB_MODE", "offline" if offline else "online")
        if mode == "online" and getattr(rank_zero_only, "rank", 0) == 0:
            require_key("logger.wandb.offline=false", "leave offline=true and send the run later with wandb sync")
        super().__init__(
            save_dir=save_dir,
            project=project,
            mode=mode,
            settings=settings,
            group=group,
            tags=list(tags or ()) or None,
            **options,
        )
        wandb_options(self).pop("anonymous", None)  # W&B warns of it, whatever its value
        self._defined: set[str] = set()
        self.directions: dict[str, bool] = {}  # by score, whether more is better, as far as scorers say
        self.tables = tables

    @rank_zero_only
    def describe(self, labels: Mapping[str, list[str]], job_type: str) -> None:
        """Say what the dashboards group by; called once, before anything is logged."""
        tags = list(dict.fromkeys(tag for names in labels.values() for tag in names))
        for key, value in {"group": "+".join(labels["fusion"]), "tags": tags, "job_type": job_type}.items():
            if wandb_options(self).get(key) is None:
                wandb_options(self)[key] = value
        Path(str(self.save_dir)).mkdir(parents=True, exist_ok=True)  # W&B would write to another folder and say nothing

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """The configuration of the run."""
        self._attempt(lambda: super(ScoreWandbLogger, self).log_hyperparams(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log as Lightning does; a score is declared by its exact name first (a pattern would be ignored)."""
        self._attempt(lambda: self._log_metrics(metrics, step))

    def _log_metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        for name in metrics:
            if step is not None and name.startswith("val/") and name not in self._defined:
                best = "max" if self.directions.get(name, not is_error(name)) else "min"
                self.experiment.define_metric(name, summary=best, step_metric="trainer/global_step")
                self._defined.add(name)
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_examples(self, name: str, examples: Sequence[Example], step: int | None = None) -> None:
        """Log what was answered as the table ``predictions/<name>``, with the pictures and the boxes in them."""
        from fusionkit.training.answer_table import table_of

        def log() -> None:
            table: Any = {f"predictions/{name}": table_of(examples)}
            super(ScoreWandbLogger, self).log_metrics(table, step)

        if examples:
            self._attempt(log)

    @rank_zero_only
    def alert(self, title: str, text: str) -> None:
        """Tell whoever watches the project."""
        self._attempt(lambda: self.experiment.alert(title, text, level="WARN"))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """The run is over."""
        self._attempt(lambda: super(ScoreWandbLogger, self).finalize(status))

    def _attempt(self, log: Callable[[], None]) -> None:
        """Log something, unless W&B has failed before: no failure of it may cost a run."""
        if isinstance(wandb_run(self), DummyExperiment):
            return
        try:
            log()
        except Exception as error:
            replace_run(self, DummyExperiment())
            _tell(_reason(error))


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


@cache
def _tell(reason: str) -> None:
    """Tell it once, whoever meets it."""
    print(f"warning: W&B failed ({reason}); the run goes on without it", file=sys.stderr, flush=True)


def _require_place(folder: Path) -> None:
    """ConfigError where nothing can be written to a folder, or it cannot be made; makes nothing."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            f"logger.wandb.save_dir={folder} cannot be written to; choose another folder for the run, output_dir=FOLDER, or for "
            "W&B alone"
        )


def log_config(loggers: Iterable[Logger], config: Mapping[str, Any], parameters: int, job_type: str = "train") -> None:
    """Give every logger the resolved configuration as one flat mapping, the labels of the run and its size; call it once."""
    labels = labels_of(config)
    flat = flatten(config) | {f"label_{name}": "+".join(values) for name, values in labels.items()}
    for logger in loggers:
        if isinstance(logger, ScoreWandbLogger):
            logger.describe(labels, job_type)
        logger.log_hyperparams(flat)
        logger.log_metrics({"parameters": parameters}, 0)


def _names(part: Any) -> tuple[str, str]:
    """The module and the class that a configuration names."""
    path = str(part["_target_"]) if isinstance(part, Mapping) and "_target_" in part else ""
    module, _, name = path.rpartition(".")
    return module.rpartition(".")[2], name


# What a fusion's file is called behind the fusion's name, by projector; any other: as the projector.
_ENDINGS = {"": "", "MLP": "", "PixelShuffle": "_shuffle", "InstructedQFormer": "_instructed"}


def labels_of(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """What runs are grouped by: the ``fusion`` as its file is called, and what has weight of the ``tasks`` and ``sources``."""
    cross = [
        (source, task)
        for source, row in config["objectives"].items()
        for task, weight in (row or {}).items()
        if weight > 0
    ]
    module, name = _names(config["fusion"])
    _, projector = _names(config["fusion"].get("projector"))
    is_alone = module.replace("_", "") == name.lower()  # CoCa of coca.py
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.removeprefix("Instructed"))
    fusion = module if is_alone else words.lower()
    return {
        "fusion": [fusion + _ENDINGS.get(projector, f"_{projector.lower()}")],
        "tasks": sorted({task for _, task in cross}),
        "sources": sorted({source for source, _ in cross}),
    }


def finish() -> None:
    """Close the W&B run, if there is one: the next run in this process would otherwise write into it.

    Where an exception is on its way the run is marked as failed. W&B's service is ended too, and with it the last write.
    """
    if "wandb" in sys.modules:
        _end_run(int(sys.exc_info()[0] is not None))
    _tell.cache_clear()  # the next run of this process has failures of its own


def _end_run(exit_code: int) -> None:
    import wandb
    from wandb.sdk.lib.module import unset_globals

    for end in (wandb.finish, wandb.teardown) if wandb.run is not None else ():
        try:
            end(exit_code=exit_code)
        except Exception as error:
            _tell(_reason(error))
            unset_globals()  # what is broken is not taken for the run of the next one


class Watch:
    """Passes on what is found out under names that begin with ``prefix``, as of an optimiser step (None: of no training).

    A logger shows answers if it has ``log_examples(name, examples, step)`` and says with ``tables`` how many.
    """

    def __init__(self, loggers: Iterable[Any], prefix: str, step: int | None = None) -> None:
        self.loggers, self.prefix, self.step = list(loggers), prefix, step

    def log_scores(self, metrics: Mapping[str, float]) -> None:
        """``<prefix>/<source>/<metric>``."""
        for logger in self.loggers:
            logger.log_metrics({f"{self.prefix}/{name}": value for name, value in metrics.items()}, self.step)
            logger.save()  # what is logged after a training would not reach the csv file

    def log_answers(
        self,
        label: str,
        scorer: BaseScorer,
        records: Sequence[Record],
        samples: Sequence[Sample],
        rows: Sequence[Row],
    ) -> None:
        """Some of the records, with what the scorer says of them in ``rows``."""
        for logger in self.loggers:
            if hasattr(logger, "log_examples"):
                shown = scorer.examples(records, samples, rows, logger.tables)
                logger.log_examples(f"{self.prefix}/{label}", shown, self.step)


def require_key(wish: str, instead: str) -> None:
    """ConfigError where W&B has no key for this machine; in a terminal it asks for one first."""
    import wandb

    try:
        if wandb.login(verify=False):
            return
    except wandb.errors.Error:  # no terminal to ask in
        pass
    raise ConfigError(
        f"{wish} needs a W&B account, and there is no key: set WANDB_API_KEY, run wandb login, or {instead}"
    )
