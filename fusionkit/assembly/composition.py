"""Composition of a training configuration: what an experiment says of parts that were not chosen is left out."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from fusionkit.assembly.signatures import Unreadable, attribute_of, signature_of
from fusionkit.config import conf_dir, group_choices, leaves, primary_groups, register_resolvers

ABOVE = ("experiment", "sweep")  # the groups whose files speak of all others
TRAINED = ("train", "plan", "profile")  # the commands whose configuration is that of a training
WHOLE = ("image_encoder", "text_encoder")  # what is said of one of these says nothing of another
CHOICE = re.compile(r"\$\{hydra:runtime\.choices\.(\w+)\}")
Load = Callable[[list[str]], DictConfig]


def training_config(*overrides: str) -> DictConfig:
    """What ``fusionkit train`` with these overrides would be given; its open values stay open."""
    return command_config("train", overrides)


def command_config(name: str, overrides: Sequence[str], config_dir: str | Path | None = None) -> DictConfig:
    """What the command of that configuration would be given; ``config_dir`` also holds choices of its groups."""
    register_resolvers()
    searched = [f"hydra.searchpath=['file://{Path(config_dir).expanduser().resolve()}']"] if config_dir else []
    state, above = GlobalHydra.instance(), GlobalHydra.instance().hydra  # of an entry point, which has its own
    state.clear()
    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            config = compose(name, [*searched, *overrides], return_hydra_config=True)
            hydra = config.hydra
            with open_dict(config):
                del config["hydra"]
            if name in TRAINED:
                settle(config, hydra)
            return config
    finally:
        state.hydra = above


def _name_choices(config: DictConfig, hydra: Any) -> None:
    """Write the choices of groups where a value asks Hydra for them: whoever reads the run's checkpoints has chosen others."""
    for key, value in list(leaves(OmegaConf.to_container(config))):
        if isinstance(value, str) and "${hydra:runtime.choices." in value:
            named = CHOICE.sub(lambda found: str(hydra.runtime.choices.get(found[1], found[0])), value)
            OmegaConf.update(config, key, named)


def settle(config: DictConfig, hydra: Any) -> list[str]:
    """Finish a composed training: what follows from a user's own table, and without what was not chosen.

    ``hydra`` is the node of that name; gives sentences about what was decided.
    """
    notes = []
    _name_choices(config, hydra)
    if hydra.runtime.choices.get("data") == "table":
        from fusionkit.assembly.table_choices import (
            complete_table,
        )  # reads pictures: other commands need not wait for it

        notes = complete_table(config, hydra, partial(_load, hydra.job.config_name))
    return notes + leave_out_unchosen(config, hydra)


def leave_out_unchosen(config: DictConfig, hydra: Any) -> list[str]:
    """Take from a composed ``config`` what its experiment says of parts in whose place the user chose others.

    An option stays where the chosen part takes it as well, and where the user gave it, and so does one that no choice of the
    group has, for the checks to tell. An objective that the chosen fusion cannot feed gets the weight 0. ``hydra`` is the node
    of that name; gives sentences about objectives that were on.
    """
    parser = OverridesParser.create()
    given = [parser.parse_override(text) for text in hydra.overrides.task]
    groups = primary_groups("train")
    is_choice = [
        o.key_or_group in groups and not isinstance(o.value(), dict) for o in given
    ]  # fusion={...} gives options
    named = {key for o, chooses in zip(given, is_choice, strict=True) if not chooses for key in _keys_given(o)}
    asked = {o.key_or_group: o for o, chooses in zip(given, is_choice, strict=True) if chooses}
    swept = set(hydra.sweeper.get("params") or ()) & groups.keys()
    chosen = {group: override.value() for group, override in asked.items() if group not in ABOVE}
    chosen |= {group: hydra.runtime.choices[group] for group in swept - chosen.keys()}
    if not chosen:
        return []
    above = [str(override.input_line) for group, override in asked.items() if group in ABOVE]
    place = [text for text in hydra.overrides.hydra if text.startswith("hydra.searchpath=")]
    written = _load("train", [*place, *above]) if above else None
    own = written.hydra.runtime.choices if written else groups
    foreign = {g: choice for g, choice in chosen.items() if choice is not None and (g in swept or choice != own.get(g))}
    off = {group for group, choice in chosen.items() if choice is None} & config.keys() if written else set()
    with open_dict(config):
        for group in off:  # nothing is chosen, so nothing takes options
            config[group] = _fit(config[group], None, None, group, named)
        if written and foreign:
            words = [f"{group}={_word(choice)}" for group, choice in foreign.items()]
            # the files of these groups alone take a fifth of the time; one's own may speak of other groups as well
            folders = {source.path for source in hydra.runtime.config_sources if source.schema == "file"}
            is_ours = folders == {str(conf_dir().resolve())}
            bare = _load(None, [f"+{word}" for word in words]) if is_ours else _load("train", [*place, *words])
            for group in sorted(foreign.keys() & config.keys()):
                config[group] = _fit(config[group], bare.get(group) or {}, written.get(group), group, named)
        if "task" in foreign and "objectives" not in chosen:
            _drop_objectives(config, named)
        return _switch_off(config, named) if "fusion" in foreign else []


def _keys_given(override: Any) -> list[str]:
    """The keys to which an override gives values: of a mapping all of those in it."""
    value = override.value()
    inner = [f"{override.key_or_group}.{key}" for key, _ in leaves(value)] if isinstance(value, dict) else []
    return inner or [override.key_or_group]


def _load(name: str | None, overrides: list[str]) -> DictConfig:
    return GlobalHydra.instance().config_loader().load_configuration(name, overrides, RunMode.RUN)


def _word(choice: Any) -> str:
    return str(choice) if isinstance(choice, str) else f"[{','.join(choice)}]"


def _fit(section: Any, bare: Any, written: Any, group: str, named: Iterable[str]) -> Any:
    """Leave out of one section what its file, of which ``bare`` is made, does not take.

    ``written`` is the section of the experiment's own choice.
    """
    section, bare, written = map(_plain, (section, bare, written))
    if isinstance(section, dict) and not bare:
        return {key: value for key, value in section.items() if _is_named(f"{group}.{key}", named)} or bare
    if not isinstance(section, dict) or not isinstance(bare, dict):
        return section
    known = {*_arguments(written, section), *group_choices(group)}  # several choices are entries by their names
    known |= {key for name in group_choices(group) for key in _keys_of(group, name)}
    known |= {key for key, value in (written or {}).items() if isinstance(value, dict) and "_target_" in value}
    strange = {key: section.pop(key) for key in [*section] if key not in known and key not in bare}
    return _fitting(section, bare, group, named, group in WHOLE) | strange


def _fitting(
    section: dict[Any, Any], alone: dict[Any, Any], place: str, named: Iterable[str], is_whole: bool
) -> dict[Any, Any]:
    takes = set() if is_whole else _arguments(alone)
    fitting = {}
    for key in section:
        here = f"{place}.{key}"
        is_named = _is_named(here, named)
        if key not in alone:
            is_part = isinstance(section[key], dict) and "_target_" not in section[key]
            is_taken = key in takes or ("_target_" not in alone and not is_whole)
            if is_named or (is_taken and not is_part):
                fitting[key] = section[key]
        elif isinstance(section[key], dict) and isinstance(alone[key], dict) and alone[key]:  # an empty one is open
            is_same = section[key].get("_target_") == alone[key].get("_target_")
            inner = _fitting(section[key], alone[key], here, named, is_whole) if is_same else alone[key]
            fitting[key] = inner if is_same or not is_named else section[key]
        elif not is_named and (is_whole or str(key).startswith("_") or alone[key] == MISSING):
            fitting[key] = alone[key]
        else:
            fitting[key] = section[key]
    return fitting


def _is_named(key: str, named: Iterable[str]) -> bool:
    """Whether the user gave a value to a key, to one in it or to one that it is in."""
    return any(f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.") for name in named)


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node


def _keys_of(group: str, name: str) -> Iterable[Any]:
    content = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return content or ()


def _arguments(section: Any, options: Iterable[str] = ()) -> set[str]:
    """The arguments by name of what a section builds; where it takes any, ``options`` too."""
    name = section.get("_target_") if isinstance(section, dict) else None
    try:
        accepted = signature_of(name) if name else {}
    except (ImportError, ValueError):  # which the checks tell
        return set()
    is_open = any(one.kind is one.VAR_KEYWORD for one in accepted.values())
    return {key for key, one in accepted.items() if one.kind is not one.VAR_KEYWORD} | set(options if is_open else ())


def _drop_objectives(config: DictConfig, named: Iterable[str]) -> None:
    """Of tasks that were not chosen no objective is asked for, but by the user."""
    left = {}
    for source, weights in (config.get("objectives") or {}).items():
        kept = {task for task in weights or () if task in config.task or f"objectives.{source}.{task}" in named}
        left[source] = {task: weights[task] for task in weights or () if task in kept}
    config.objectives = {source: weights for source, weights in left.items() if weights}


def _switch_off(config: DictConfig, named: Iterable[str]) -> list[str]:
    """Give the weight 0 to objectives whose tasks need what the fusion does not provide, unless none is left."""
    try:
        provides = attribute_of(config.fusion._target_, "provides")
        needs = {task: attribute_of(block._target_, "needs") for task, block in (config.task or {}).items()}
    except (AttributeError, ImportError, Unreadable, ValueError):  # which the checks tell
        return []
    active = [
        (source, task)
        for source, weights in (config.get("objectives") or {}).items()
        for task, weight in (weights or {}).items()
        if weight != 0 and task in needs
    ]
    lacking = [(s, t) for s, t in active if needs[t] - {"feats"} - provides and f"objectives.{s}.{t}" not in named]
    if len(lacking) == len(active):
        return []
    for source, task in lacking:
        config.objectives[source][task] = 0
    off = " ".join(f"objectives.{source}.{task}=0" for source, task in lacking)
    return [f"this fusion cannot feed them: {off}"] if off else []
