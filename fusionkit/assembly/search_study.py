"""What a search (``hydra/sweeper=search``) keeps in a file, for the sweeper that proposes its trials and for their runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusionkit.errors import ConfigError, DataError, UserError, install_extra, suggest
from fusionkit.files.plain import reason_of

STUDY, PRUNED = "search", "pruned"  # the study's name, and how a trial is marked that was cut short


def storage_in(log: Path) -> Any:
    """Optuna's storage in a file, which processes share; ConfigError where Optuna is not installed."""
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ConfigError(f"hydra/sweeper=search needs the package optuna: {install_extra('search')}") from error
    return optuna.storages.JournalStorage(JournalFileBackend(str(log)))


def cuts_short(log: Path, number: int, pruner: Mapping[str, Any], step: int, value: float, may_end: bool) -> bool:
    """Keep a trial's value at a step, and say whether it is so bad beside the others' that the trial, if it may, ends here.

    DataError where the file holds no such trial. A trial that has been told before is neither changed nor ended.
    """
    with told_of(log):
        storage = storage_in(log)
        import optuna

        place = storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(STUDY), number)
        if storage.get_trial(place).state.is_finished():
            return False
        study = optuna.load_study(study_name=STUDY, storage=storage, pruner=pruner_of(pruner))
        trial = optuna.trial.Trial(study, place)
        trial.report(value, step)
        ends = bool(may_end and trial.should_prune())
        if ends:
            trial.set_user_attr(PRUNED, step)
        return ends


def pruner_of(options: Mapping[str, Any]) -> Any:
    """One of Optuna's pruners, of {"name": its class, and its arguments}; ConfigError where there is no such one."""
    from optuna import pruners

    known = [name for name in pruners.__all__ if name not in ("BasePruner", "NopPruner")]
    name = options.get("name") if isinstance(options, Mapping) else options
    if name not in known or not isinstance(options, Mapping):
        raise ConfigError(
            f"hydra.sweeper.pruner is {options!r}; give {{name: MedianPruner}}, with its arguments: {suggest(str(name), known)}"
        )
    inner = {key: pruner_of(value) if isinstance(value, Mapping) else value for key, value in options.items()}
    del inner["name"]
    try:
        return getattr(pruners, name)(**inner)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"hydra.sweeper.pruner: {error}") from error


@contextmanager
def told_of(log: Path) -> Iterator[None]:
    """Say which file it is where what a search has kept makes no sense."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:  # the search itself may be whole
        raise DataError(
            f"{log} cannot be read or written ({error.strerror or error}); mend that, or give another name=NAME"
        ) from error
    except Exception as error:  # Optuna reads what stands there as its own words
        raise DataError(
            f"{log} is damaged, or of another version of Optuna ({reason_of(error)[:200]}); give another name=NAME, or remove it "
            "to search anew"
        ) from error
