"""What a run that goes on may change: all that can be applied is, the rest is refused before anything is lost."""

import copy
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.artifacts import is_all
from fusionkit.assembly.trust import inert, read_stored
from fusionkit.checkpoints.match import require_fit
from fusionkit.config import leaves
from fusionkit.data.tables.order import SIZE
from fusionkit.errors import ConfigError, DataError
from fusionkit.training.module import TrainingModule
from fusionkit.training.optimizer_state import fitted_state, is_fitting

KEPT = (  # what Lightning and we write, and need to go on
    "epoch",
    "global_step",
    "pytorch-lightning_version",
    "loops",
    "callbacks",
    "optimizer_states",
    "lr_schedulers",
    "progress",
)
LARGE = 2**63  # no run makes as many steps
TOLD = (
    "optimizer",
    "scheduler",
    "stages",
    "balance",
    "teacher",
    "adapters",
    "ema",
    "objectives",
    "trainer",
    "task",
    "data",
)


def is_count(value: Any) -> bool:
    """Whether it is a number of steps or epochs."""
    return type(value) is int and 0 <= value < LARGE


def is_progress(value: Any) -> bool:
    """Whether it is what our module writes, as far as it is not read before the training has begun, or is needed earlier."""
    if not isinstance(value, Mapping) or not (
        value.get("parameters") is None or is_all(value["parameters"], list, str)
    ):
        return False
    seed = value.get("seed", 0)  # without one Lightning's own loading is refused
    return type(seed) is int and 0 <= seed < 2 * LARGE


def is_state(value: Mapping[str, Any]) -> bool:
    """Whether it is the state of an optimiser, or of the parts of one: its groups number or name their parameters."""
    parts = value.get("parts", [value])
    return is_all(parts, list, Mapping) and all(
        isinstance(part.get("state"), Mapping)
        and is_all(part["state"].values(), None, Mapping)
        and is_all(part.get("param_groups"), list, Mapping)
        and all(is_all(group.get("params"), list, int | str) for group in part["param_groups"])
        for part in parts
    )


def is_place(value: Any) -> bool:
    """Whether it is what the data module writes of the place to go on from; places of other classes are theirs."""
    if not isinstance(value, Mapping) or "order" not in value:
        return True
    sizes, begin = value["order"], value.get("begin", {})
    if not isinstance(sizes, Mapping) or not isinstance(begin, Mapping):
        return False
    sizes = sizes.get(SIZE, {})
    counts = [value.get("batches"), value.get("steps", 0)]
    return (
        isinstance(sizes, Mapping)
        and all(map(is_count, [*counts, *sizes.values()]))
        and all(isinstance(pair, list) and len(pair) == 2 and all(map(is_count, pair)) for pair in begin.values())
    )


RIGHT: Mapping[str, Callable[[Any], bool]] = {
    "epoch": is_count,
    "global_step": is_count,
    "optimizer_states": lambda value: is_all(value, list, Mapping) and bool(value) and all(map(is_state, value)),
    "lr_schedulers": lambda value: is_all(value, list, Mapping),
    "progress": is_progress,
    "DataModule": is_place,
}


def require_resumable(config: DictConfig, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Raise for what a configuration asks of a run that goes on and cannot have; needs no model.

    DataError where the checkpoint has no state of a training, ConfigError, by name, for another seed, optimiser or other
    objectives, and for an end that the run is past.
    """
    for key in KEPT:
        if key not in checkpoint:
            raise DataError(f"checkpoint {path} has no '{key}', so no run can go on from it; {_anew(path)}")
    for key, is_right in RIGHT.items():
        if key in checkpoint and not is_right(checkpoint[key]):
            raise DataError(
                f"checkpoint {path} is damaged: its {key} is {reprlib.repr(checkpoint[key])}; {_anew(path)}"
            )
    there, config = read_stored(checkpoint["fusionkit"]["config"], path), inert(config)
    for key, what in (
        ("seed", "draws are a function of it; give data.seed to have the samples alone in another order"),
        ("optimizer._target_", "its state is another optimiser's"),
    ):
        before, now = OmegaConf.select(there, key), OmegaConf.select(config, key)
        if before != now:
            raise ConfigError(f"{key} is {now}, but was {before}, and {what}; leave it as it was, or {_anew(path)}")
    before, now = _objectives(there), _objectives(config)
    if before != now:
        gone = [f"{name} was trained and is not" for name in before if name not in now]
        new = [f"{name} is new" for name in now if name not in before]
        told = ", ".join([*gone, *new]) or f"they were {', '.join(before)}, and are {', '.join(now)}"
        raise ConfigError(
            f"objectives: {told}; a run that goes on trains the same ones in the same order (their weights may change): "
            f"name them again, or {_anew(path)}"
        )
    for key, done in (("max_steps", checkpoint["global_step"]), ("max_epochs", checkpoint["epoch"])):
        if (end := config.trainer.get(key)) is not None and 0 <= end < done:
            raise ConfigError(
                f"trainer.{key} is {end}, but the run has made {done} already (checkpoint {path}); give a later end"
            )


def require_state(module: TrainingModule, config: DictConfig, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Raise where weights or the optimiser's state do not fit the module that is to go on."""
    if module.distillation is not None:
        module.distillation.require_same(checkpoint["progress"].get("taught_by"))
    require_fit(module.state_dict(), checkpoint["state_dict"], path)
    optimizer, states = module.build_optimizer(), checkpoint["optimizer_states"]
    if is_fitting(states, checkpoint["lr_schedulers"]):
        fitted_state(states[0], checkpoint["progress"].get("parameters"), optimizer, module.named_parameters(), path)
        return
    there = read_stored(checkpoint["fusionkit"]["config"], path)
    if changes := changed(
        there, config, ("optimizer", "scheduler")
    ):  # such a state holds its options: it is kept whole
        raise ConfigError(f"{changes[0]}, but this strategy or schedule goes on only as it began; give it as it was")


def changed(there: DictConfig, here: DictConfig, sections: Sequence[str] = TOLD) -> list[str]:
    """What differs between the configurations of a run before and now, in words; what follows from it is not repeated."""
    there, here = copy.deepcopy(there), inert(here)
    OmegaConf.update(there, "output_dir", here.output_dir)  # what lies in the folder has moved with it
    before, now = (_values(config, sections) for config in (there, here))
    written, rewritten = (_values(config, sections, resolve=False) for config in (there, here))
    causes = tuple(f"${{{section}." for section in sections)
    return [
        f"{key} was {before.get(key)} and is {now.get(key)}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
        and not (written.get(key) == rewritten.get(key) and any(cause in str(written.get(key)) for cause in causes))
    ]


def _values(config: DictConfig, sections: Sequence[str], resolve: bool = True) -> dict[str, Any]:
    nodes = {section: config.get(section) for section in sections}
    plain = {s: OmegaConf.to_container(n, resolve=resolve) if OmegaConf.is_config(n) else n for s, n in nodes.items()}
    return dict(leaves(plain))


def _objectives(config: DictConfig) -> list[str]:
    rows: Any = OmegaConf.to_container(config.objectives, resolve=True)
    return [f"{source}/{task}" for source, row in rows.items() for task, weight in (row or {}).items() if weight > 0]


def _anew(path: Path) -> str:
    return f"start a new run from its weights with checkpoint={path} and another output_dir"
