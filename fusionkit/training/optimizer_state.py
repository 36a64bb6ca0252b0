"""The state of an optimiser and its schedule in a run that goes on: by parameter name, with the options of the command line."""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fusionkit.errors import ConfigError, DataError

Named = Iterable[tuple[str, nn.Parameter]]
State = Mapping[str, Any]
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # as large as their parameter


def parameter_names(optimizer: Optimizer, named: Named) -> list[str]:
    """The names of an optimiser's parameters, in the order of its state."""
    return [name for part in _named_groups(optimizer, named) for group in part for name in group]


def is_fitting(states: Sequence[State], schedules: Sequence[State]) -> bool:
    """Whether options can change: parameters are numbered, as they are unless a strategy splits them, and rates are factors."""
    numbers = [number for state in states for part in _parts(state) for number in _numbers(part)]
    return all(isinstance(number, int) for number in numbers) and all("lr_lambdas" in state for state in schedules)


def refit(checkpoint: MutableMapping[str, Any], optimizer: Optimizer, named: Named, *, has_schedule: bool) -> None:
    """Make a checkpoint's states of optimiser and schedule those of a new optimiser; what cannot be changed stays as it is."""
    states, schedules = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    if not is_fitting(states, schedules):
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    if has_schedule:
        checkpoint["lr_schedulers"] = [fitted_schedule(schedules, rates, checkpoint["global_step"])]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["initial_lr"] = rate
    names = checkpoint["progress"].get("parameters")
    checkpoint["optimizer_states"] = [fitted_state(states[0], names, optimizer, named, "to resume from")]


def fitted_state(
    stored: State, names: Sequence[str] | None, optimizer: Optimizer, named: Named, path: str | Path
) -> dict[str, Any]:
    """The stored state as that of a new optimiser, in its groups and with its options, whatever they were before.

    ``names`` are those of the stored parameters, in order; None for a checkpoint without them, whose groups have to be the
    new ones. Raises ConfigError where other parameters train, or one moves by another rule, and DataError for damage.
    """
    named = list(named)
    own: Sequence[Optimizer] = getattr(optimizer, "parts", [optimizer])
    parts: Sequence[State] = _parts(stored)
    groups = _named_groups(optimizer, named)
    if names is None:
        sizes = [[len(group["params"]) for group in part["param_groups"]] for part in parts]
        if sizes != [[len(group) for group in part] for part in groups]:
            raise ConfigError(
                f"optimizer: {path} was written by an earlier fusionkit and goes on only with the groups of parameters that it "
                "had; leave optimizer, stages and what is frozen as they were"
            )
        names = parameter_names(optimizer, named)
    places = [(part, number) for part, state in enumerate(parts) for number in _numbers(state)]
    if len(places) != len(names):
        raise DataError(f"checkpoint {path}: the optimiser's state is not whole; is the file damaged?")
    there = dict(zip(names, places, strict=True))
    here = {name: part for part, rows in enumerate(groups) for row in rows for name in row}
    _require_same(here, {name: part for name, (part, _) in there.items()}, path)
    states = {name: parts[part]["state"].get(number) for name, (part, number) in there.items()}
    _require_shapes(states, dict(named), path)
    fitted = [
        _part_state(part.param_groups, rows, {name: states[name] for row in rows for name in row})
        for part, rows in zip(own, groups, strict=True)
    ]
    return {"parts": fitted} if "parts" in stored else fitted[0]


def fitted_schedule(stored: Sequence[State], rates: Sequence[float], step: int) -> dict[str, Any]:
    """The stored state of a schedule of factors for groups with these base rates; without one, that of a run at this step."""
    state: State = stored[0] if stored else {"last_epoch": step, "_step_count": step + 1, "lr_lambdas": [None]}
    return {**state, "base_lrs": list(rates), "lr_lambdas": list(state["lr_lambdas"][:1]) * len(rates)}


def set_rates(schedule: Any) -> None:
    """Give the groups the rates of the step that a restored schedule is at: it may be another one than was stored."""
    if not isinstance(schedule, LambdaLR):
        if hasattr(schedule, "lr_lambdas"):  # has been given the state of one
            raise ConfigError(
                f"scheduler: {type(schedule).__name__} cannot go on where a schedule of factors stopped; give it as it was"
            )
        return
    for group, base, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(schedule.last_epoch)


def _named_groups(optimizer: Optimizer, named: Named) -> list[list[list[str]]]:
    """The names in each group of each optimiser that stands behind this one."""
    name_of = {parameter: name for name, parameter in named}
    parts = getattr(optimizer, "parts", [optimizer])
    return [[[name_of[p] for p in group["params"]] for group in part.param_groups] for part in parts]


def _part_state(options: Sequence[State], groups: Sequence[Sequence[str]], states: State) -> dict[str, Any]:
    """What torch's ``load_state_dict`` takes, for parameters by name."""
    number_of = {name: number for number, name in enumerate(states)}
    return {
        "state": {number_of[name]: state for name, state in states.items() if state is not None},
        "param_groups": [
            {**group, "params": [number_of[name] for name in names]}
            for group, names in zip(options, groups, strict=True)
        ],
    }


def _parts(state: State) -> Sequence[State]:
    parts: Sequence[Mapping[str, Any]] = state.get("parts", [state])
    return parts


def _numbers(part: State) -> list[Any]:
    return [number for group in part["param_groups"] for number in group["params"]]


def _require_same(here: Mapping[str, int], there: Mapping[str, int], path: str | Path) -> None:
    """The same parameters train, each by the same of an optimiser's parts."""
    for name in {**there, **here}:
        if name not in here or name not in there:
            told = "was trained, and is not any more" if name in there else "was not trained, and now is"
            raise ConfigError(
                f"{name} {told}, but a run that goes on trains the same parameters; freeze as before, or start a new run "
                f"from its weights with checkpoint={path} and another output_dir"
            )
        if here[name] != there[name]:
            raise ConfigError(
                f"optimizer: {name} was moved by another rule in {path}; give optimizer.matrices as it was"
            )


def _require_shapes(
    states: Mapping[str, State | None], parameters: Mapping[str, nn.Parameter], path: str | Path
) -> None:
    for name, state in states.items():
        for key in MOMENTS:
            if state and key in state and getattr(state[key], "shape", None) != parameters[name].shape:
                raise DataError(f"checkpoint {path}: the optimiser's {key} of {name} has another shape; is it damaged?")
