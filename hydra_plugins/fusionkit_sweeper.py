"""``hydra/sweeper=search``: a sweep that looks for the run of the best score, by Optuna (Hydra looks for plugins here)."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, OverrideType, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

INTERRUPTED = "interrupted"
LOG = "search.log"


class Search(Sweeper):
    """Proposes ``trials`` runs, each by the scores (``val/mean`` at the last validation) of those before.

    What is searched are sweeps in Hydra's words, of ``params`` or of the command line: ``choice(a,b)``, ``range(1,9,2)``,
    ``interval(0.1,1)``, ``int(interval(2,9))``, ``tag(log,interval(1e-4,1e-2))``; any other override is one of all runs. A run
    that is refused, or fails, is a trial without a score, and the search goes on. Everything is kept in search.log in the sweep's
    folder: the same command goes on where a search stopped, and begins a trial anew that was cut off.
    ``hydra/launcher=parallel`` makes some at a time.

    ``sampler`` is one of Optuna's; None: TPE (tree-structured Parzen estimator) with this ``seed``.
    ``pruner`` ends trials that do worse than others at their validations: {"name": a class of optuna.pruners, and its arguments};
    None: none is ended.
    """

    def __init__(
        self,
        trials: int,
        direction: str = "maximize",
        seed: int = 1,
        sampler: Any = None,
        params: dict[str, Any] | None = None,
        pruner: dict[str, Any] | None = None,
    ) -> None:
        self.trials, self.direction, self.seed, self.sampler = trials, direction, seed, sampler
        self.params, self.pruner = params or {}, _plain(pruner)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Make the trials that are still to be made; prints the best one."""
        from fusionkit.errors import ConfigError

        if self.direction not in ("maximize", "minimize") or type(self.trials) is not int or self.trials < 1:
            raise ConfigError(
                f"hydra.sweeper: direction is {self.direction} and trials {self.trials}; give maximize or minimize, and a whole "
                "number above 0"
            )
        if type(self.seed) is not int or not 0 <= self.seed < 2**31:
            raise ConfigError(f"hydra.sweeper.seed is {self.seed!r}; give a whole number from 0 up, below 2**31")
        space, fixed = self._space(arguments)
        with suppress(HydraException, OmegaConfBaseException):  # which the trials tell of
            if self.hydra_context.config_loader.load_sweep_config(self.config, fixed).trainer.get("slurm"):
                raise ConfigError(
                    "hydra/sweeper=search goes by the scores of earlier trials, but trainer=slurm submits a job and gives none; "
                    "sweep over given values with -m, or search within one job by trainer=ddp or gpu"
                )
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / "search.lock", timeout=0):
                return self._search(folder, space, fixed)
        except Timeout as error:
            raise ConfigError(
                f"another search runs in {folder}; wait for its end, or give another name=NAME"
            ) from error

    def _search(self, folder: Path, space: dict[str, Any], fixed: list[str]) -> list[JobReturn]:
        from fusionkit.assembly.search_study import told_of
        from fusionkit.errors import ConfigError, UserError

        with told_of(folder / LOG):
            study = self._study(folder)
            from optuna.trial import TrialState

            _begin_anew(study, study.get_trials(states=[TrialState.RUNNING]))  # of a search that was killed
            made = len(_made(study))
        returns: list[JobReturn] = []
        while (left := self.trials - made) > 0:
            at_once = min(left, getattr(self.launcher, "jobs", 1))
            try:
                asked = [study.ask(space) for _ in range(at_once)]
            except ValueError as error:
                raise ConfigError(
                    f"hydra/sweeper=search: {error} A search goes on with what it has searched before; give another "
                    f"name=NAME, or remove {folder}"
                ) from error
            returns += self._run(study, asked, fixed, folder)
            made = len(_made(study))
        counts = Counter(trial.state.name for trial in _made(study))
        if not counts["COMPLETE"]:
            raise UserError(f"none of the {self.trials} trials of the search gave a score; what was wrong stands above")
        best = study.best_trial
        words = " ".join(f"{name}={value}" for name, value in best.params.items())
        told = {"PRUNED": "cut short", "FAIL": "without a score"}
        failed = "".join(f", {counts[state]} {words}" for state, words in told.items() if counts[state])
        print(f"best of {self.trials} trials{failed}: {best.value:.6g} by {words}, trial {best.number} in {folder}")
        OmegaConf.save(
            OmegaConf.create({"score": best.value, "trial": best.number, "params": best.params}), folder / "best.yaml"
        )
        return returns

    def _run(self, study: Any, asked: Sequence[Any], fixed: list[str], folder: Path) -> Sequence[JobReturn]:
        """Make these trials, and tell the study what came of them."""
        from optuna.trial import TrialState

        from fusionkit.assembly.search_study import PRUNED
        from fusionkit.errors import UserError

        overrides = [
            [*fixed, *(f"{name}={value}" for name, value in trial.params.items()), *self._pruned(folder, trial.number)]
            for trial in asked
        ]
        try:
            returns = self.launcher.launch(overrides, initial_job_idx=asked[0].number)
        except (HydraException, OmegaConfBaseException) as error:  # one of them cannot be composed
            if len(asked) > 1:
                return [result for trial in asked for result in self._run(study, [trial], fixed, folder)]
            from fusionkit.cli.app import report

            report(error)
            returns = [JobReturn(overrides=words, status=JobStatus.FAILED) for words in overrides]
        except BaseException:
            _begin_anew(study, asked)
            raise
        for trial, result in zip(asked, returns, strict=True):
            value = result.return_value if result.status == JobStatus.COMPLETED else None
            is_score = isinstance(value, int | float) and value == value
            if is_score and PRUNED in study.trials[trial.number].user_attrs:
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, value if is_score else None, state=None if is_score else TrialState.FAIL)
        for trial, result in zip(asked, returns, strict=True):
            if result.status == JobStatus.COMPLETED and result.return_value is None:
                raise UserError(
                    f"trial {trial.number} gave no validation score, by which the search goes: it made none, or its folder "
                    "holds a run that was finished before; have each run validate (trainer.limit_val_batches, "
                    "trainer.check_val_every_n_epoch), and give another name=NAME"
                )
        return returns

    def _pruned(self, folder: Path, number: int) -> list[str]:
        """The overrides by which a trial is cut short where it does worse than others."""
        if not self.pruner:
            return []
        options = {"log": str((folder / LOG).absolute()), "trial": number, "pruner": self.pruner}
        return [f"+callbacks.pruning={_written({'_target_': 'fusionkit.training.callbacks.Pruning', **options})}"]

    def _study(self, folder: Path) -> Any:
        from fusionkit.assembly.search_study import STUDY, pruner_of, storage_in
        from fusionkit.errors import ConfigError

        _without_broken_line(folder / LOG)
        storage = storage_in(folder / LOG)
        import optuna

        pruner = pruner_of(self.pruner) if self.pruner else None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        known = {study.study_name: study for study in optuna.get_all_study_summaries(storage)}
        before = len(optuna.load_study(study_name=STUDY, storage=storage).trials) if known else 0
        sampler = self.sampler or optuna.samplers.TPESampler(seed=self.seed + before)
        if self.sampler is not None and before:
            sampler.reseed_rng()  # else it would draw the first ones again
        study = optuna.create_study(
            storage=storage,
            sampler=sampler,
            pruner=pruner or optuna.pruners.NopPruner(),
            study_name=STUDY,
            direction=self.direction,
            load_if_exists=True,
        )
        if study.direction.name.lower() != self.direction:
            raise ConfigError(
                f"hydra.sweeper.direction is {self.direction}, but the search in {folder} was begun to "
                f"{study.direction.name.lower()}; give another name=NAME, or remove the folder"
            )
        return study

    def _space(self, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
        """What is searched, and the overrides of all runs."""
        from fusionkit.errors import ConfigError

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        params = [f"{key}={value if isinstance(value, str) else _written(value)}" for key, value in self.params.items()]
        chosen: list[Override] = []
        for override in parser.parse_overrides([*params, *arguments]):
            earlier = [
                each
                for each in chosen
                if (each.key_or_group, each.package) == (override.key_or_group, override.package)
            ]
            if override.is_sweep_override() or any(
                each.is_sweep_override() for each in earlier
            ):  # the last word alone counts
                chosen = [each for each in chosen if each not in earlier or each.is_delete()]
                if override.type == OverrideType.CHANGE and any(each.is_add() for each in earlier):
                    override.type = OverrideType.ADD
            chosen.append(override)
        space, fixed = dict[str, Any](), list[str]()
        for override in chosen:
            key = override.get_key_element()
            if override.is_sweep_override():
                try:
                    space[key] = _distribution(override)
                except (ValueError, OverflowError, HydraException) as error:
                    raise ConfigError(f"{key}={override.value()} cannot be searched: {error}") from error
            elif override.is_delete():
                fixed.append(str(override.input_line))
            else:
                fixed.append(f"{key}={override.get_value_element_as_str()}")
        if not space:
            raise ConfigError(
                "hydra/sweeper=search has nothing to search; give choices or intervals, such as "
                "'optimizer.lr=tag(log,interval(1e-4,1e-2))'"
            )
        return space, fixed


def _without_broken_line(log: Path) -> None:
    """Cut off a last line without an end, of a search that was killed: what is written behind it could not be read."""
    if log.is_file() and (content := log.read_bytes()) and not content.endswith(b"\n"):
        begins = content.rfind(b"\n") + 1
        with log.open("r+b") as file:
            try:
                json.loads(content[begins:])
            except ValueError:
                file.truncate(begins)
            else:  # whole, but for its end
                file.seek(len(content))
                file.write(b"\n")


def _distribution(override: Override) -> Any:
    """What Optuna draws of a sweep in Hydra's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        if not (isfinite(sweep.start) and isfinite(sweep.end)):
            raise ValueError("its bounds have to be finite")
        is_whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
        kind = IntDistribution if is_whole else FloatDistribution
        return kind(sweep.start, sweep.end, log="log" in sweep.tags)
    assert isinstance(sweep, ChoiceSweep | RangeSweep | Glob)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _written(value: Any) -> str:
    """A value of a configuration in Hydra's grammar."""
    value = _plain(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return json.dumps(value)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _begin_anew(study: Any, trials: Sequence[Any]) -> None:
    """Try again what was cut off."""
    from optuna.trial import TrialState

    study.set_user_attr(INTERRUPTED, [*study.user_attrs.get(INTERRUPTED, ()), *(trial.number for trial in trials)])
    for trial in trials:
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def _made(study: Any) -> list[Any]:
    """The trials that have come to an end of their own."""
    cut_off = study.user_attrs.get(INTERRUPTED, ())
    return [trial for trial in study.trials if trial.state.is_finished() and trial.number not in cut_off]
