"""Runs one of our entry points on a configuration that Hydra composes: options, sweeps, exit codes, readable mistakes."""

import argparse
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.composition import TRAINED, command_config, settle
from fusionkit.cli.error_messages import composing, translate
from fusionkit.cli.main import COMMANDS, Command, load
from fusionkit.cli.schemas import check
from fusionkit.config import conf_dir, group_choices, leaves, primary_groups, register_resolvers
from fusionkit.errors import ConfigError, UserError, clean, is_named

LONGEST = 2000  # letters of a sentence
_GRAMMAR = OverridesParser.create()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


def parse(name: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options and overrides in any order -> Hydra's options, then the overrides (Hydra wants them in this order)."""
    parser = _Parser(prog=f"fusionkit {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--config-dir")
    parser.add_argument("--cfg", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("overrides", nargs="*")
    parsed = parser.parse_intermixed_args(arguments)
    options = [flag for flag, is_set in (("--multirun", parsed.multirun), ("--resolve", parsed.resolve)) if is_set]
    config_dir = parsed.config_dir and os.path.expanduser(parsed.config_dir)
    for flag, value in (("--config-dir", config_dir), ("--cfg", parsed.cfg)):
        options += [flag, value] if value else []
    return options, parsed.overrides


def open_sections(overrides: Sequence[str], sections: Sequence[str]) -> list[str]:
    """Let overrides below these sections name keys that only the checkpoint's own configuration knows."""
    return [f"++{text}" if text.partition("=")[0].partition(".")[0] in sections else text for text in overrides]


def without_null(overrides: Sequence[str], groups: Mapping[str, Any]) -> list[str]:
    """A group that is set to null, which Hydra does not take, as ``none`` (``fixed``), an empty list, or as left out.

    ``groups`` have their defaults.
    """
    found = []
    for override in overrides:
        key, _, value = override.partition("=")
        if value != "null" or key not in groups:
            found.append(override)
        elif neutral := next((name for name in ("none", "fixed") if name in group_choices(key)), None):
            found.append(f"{key}={neutral}")
        elif groups[key] is not None:  # where it is null by default there is nothing to do
            found.append(f"{key}=[]" if isinstance(groups[key], list) else f"~{key}")
    return found


def quote_paths(overrides: Sequence[str], paths: Sequence[str], is_sweep: bool = False) -> list[str]:
    """Quote a path that Hydra would take for something else, and any value that it cannot read but as a text.

    ``paths`` are the keys of paths; a value of any other key is one where such a file exists. ``~`` is the home folder, as a
    shell has it, which leaves it alone behind the =. Of a sweep, commas and calls stay what they are.
    """
    return [_with_path(override, paths, is_sweep) for override in overrides]


def _with_path(override: str, paths: Sequence[str], is_sweep: bool) -> str:
    key, _, value = override.partition("=")
    if not value or value == "null" or _is_quoted(value):
        return override
    name, path = key.lstrip("+"), os.path.expanduser(value)
    is_there = os.sep in path and os.path.lexists(path)
    if "${" in path:  # a reference, unless a folder is called so
        path = path.replace("${", "\\${") if is_there else path
    try:
        parsed = _GRAMMAR.parse_override(override)
        read = parsed.value()
    except HydraException:  # a list or section that is not closed is a mistake, and no text
        return f"{key}={_quoted(path)}" if name in paths or is_there or value[0] not in "[{'\"" else override
    is_text = is_there or (name in paths and not (is_sweep and parsed.is_sweep_override()) and not _is_container(read))
    return f"{key}={_quoted(path)}" if path != value or (is_text and read != path) else override


def _is_container(value: Any) -> bool:
    return isinstance(value, dict | list)


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


def quote_texts(overrides: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Quote what the user says in words, in which Hydra would read commas as a sweep and parentheses as a call.

    What stands in quotes already is left alone, and so is null.
    """
    quoted = []
    for override in overrides:
        key, _, value = override.partition("=")
        is_plain = not _is_quoted(value) and value != "null"
        quoted.append(f"{key}={_quoted(value)}" if key in texts and is_plain else override)
    return quoted


def gather(overrides: Sequence[str], key: str | None) -> list[str]:
    """Words that name no key, as one list of the key: "a b c=1" is "c=1 runs=['a','b']". A word that is a file is no override."""
    if key is None:
        return list(overrides)
    words = [text for text in overrides if "=" not in text or os.path.exists(os.path.expanduser(text))]
    folders = ",".join(_quoted(os.path.expanduser(word)) for word in words)
    return [text for text in overrides if text not in words] + ([f"{key}=[{folders}]"] if words else [])


def _quoted(text: str) -> str:
    escaped = re.sub(r"(\\*)'", r"\1\1\'", text)  # a backslash before a quote has to be doubled
    return "'" + escaped + "\\" * (len(escaped) - len(escaped.rstrip("\\"))) + "'"


def run_app(name: str, command: Command, arguments: Sequence[str]) -> int:
    """Compose the command's configuration with the arguments and do its job on it, or on each of a sweep; gives the exit code.

    A user's mistake is told in one sentence; a sweep then goes on with its next job. Other exceptions are raised.
    """
    assert command.config_name is not None
    register_resolvers()
    see_working_folder()
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it prints what it raises, too
    warnings.formatwarning = lambda message, *place, **more: f"warning: {message}\n"  # without the place in our code
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its exceptions to us, rather than print them
    shell_line, groups, failures = sys.argv, primary_groups(command.config_name), list[int]()
    begun: list[bool] = []  # whether a job has, whose errors are not Hydra's

    def run_job(config: DictConfig) -> Any:
        begun.append(True)
        try:
            notes = settle(config, HydraConfig.get()) if command.config_name in TRAINED else []
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                begin_sweep_job(config)
            expand_home(config, command.texts)
            if shown:
                return print(OmegaConf.to_yaml(config, resolve="--resolve" in options), end="")
            if command.schema:
                check(config, command.schema)
            for note in notes:
                print(note, flush=True)
            return load(command.target)(config)  # imported now: a mistake is told without waiting for torch
        except Exception as error:
            failures.append(report(error, groups, own_files(arguments)))
            return float("nan")

    options: list[str] = []
    shown: list[str] = []  # where the configuration is to be shown: by Hydra it would be before our changes
    try:
        options, overrides = parse(name, arguments)
        if options[-2:] == ["--cfg", "job"] and "--multirun" not in options:
            shown, options = options[-2:], options[:-2]
        overrides = as_hydra_reads(command, overrides, groups, "--multirun" in options)
        sys.argv = [
            f"fusionkit {name}",
            *(option for option in options if not (shown and option == "--resolve")),
            *overrides,
        ]
        conf = str(conf_dir().resolve())
        hydra.main(version_base="1.3", config_path=conf, config_name=command.config_name)(run_job)()
    except Exception as error:
        files = own_files(arguments)
        failures.append(report(error if begun else composing(error, files), groups, files))
    finally:
        sys.argv = shell_line
    return failures[0] if failures else 0


def as_hydra_reads(
    command: Command, overrides: Sequence[str], groups: Mapping[str, Any], is_sweep: bool = False
) -> list[str]:
    """The overrides of a command as the user writes them, in Hydra's grammar; ``groups`` have their defaults."""
    found = quote_texts(gather(without_null(overrides, groups), command.operands), command.texts)
    return open_sections(quote_paths(found, command.paths, is_sweep), command.sections)


def composed(name: str, overrides: Sequence[str], config_dir: str | Path | None = None) -> DictConfig:
    """The configuration that a command with these overrides works on; a mistake in them is a ConfigError."""
    command = COMMANDS[name]
    assert command.config_name is not None
    if config_dir is not None and not Path(config_dir).expanduser().is_dir():
        raise ConfigError(f"config_dir={config_dir} is no folder; give one that holds GROUP/NAME.yaml files")
    groups = primary_groups(command.config_name)
    try:
        config = command_config(command.config_name, as_hydra_reads(command, overrides, groups), config_dir)
    except Exception as error:
        folder = [] if config_dir is None else ["--config-dir", str(config_dir)]
        files = own_files([*folder, *overrides])
        mistake = mistake_of(composing(error, files), groups, files)
        if mistake is None:
            raise
        raise mistake from None
    expand_home(config, command.texts)
    return config


def see_working_folder() -> None:
    """Let a configuration name the user's own modules: unlike ``python -m``, a console script does not look where it is run.

    At the end of the path, so that a file of the user's shadows no library.
    """
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def begin_sweep_job(config: DictConfig) -> None:
    """Give a job of a sweep its own folder, and say which one begins."""
    job = HydraConfig.get().job
    if "output_dir" in config:
        config.output_dir = os.path.relpath(HydraConfig.get().runtime.output_dir)
        join_study(config)
    print(f"job {job.num}: {' '.join(HydraConfig.get().overrides.task)}", flush=True)


def expand_home(config: DictConfig, texts: Sequence[str]) -> None:
    """Let a path in a file begin with ~ too; ``texts`` are keys of words."""
    for key, value in leaves(OmegaConf.to_container(config, resolve=False)):
        if isinstance(value, str) and value.startswith("~/") and key not in texts:
            OmegaConf.update(config, key, os.path.expanduser(value))


def own_files(arguments: Sequence[str]) -> list[Path]:
    """The files of --config-dir that these arguments choose, such as its experiment/mine.yaml; the folder where none."""
    with suppress(ConfigError):
        options, overrides = parse("", arguments)
        if "--config-dir" in options:
            folder = Path(options[options.index("--config-dir") + 1])
            chosen = (text.lstrip("+").partition("=") for text in overrides)
            return [path for group, _, name in chosen if (path := folder / group / f"{name}.yaml").is_file()] or [
                folder
            ]
    return []


def join_study(config: DictConfig) -> None:
    """Let loggers that group runs group those of a sweep by its name, and tell them apart by their folders."""
    for block in (config.get("logger") or {}).values():
        if config.get("name") and "group" in (block or {}) and block.group is None:
            block.group, block.name = config.name, "/".join(config.output_dir.split(os.sep)[-2:])


def report(error: Exception, groups: Iterable[str] = (), files: Sequence[Path] = ()) -> int:
    """Tell a user's mistake on stderr and give its exit code; raise anything else. FUSIONKIT_TRACE=1 adds the trace."""
    mistake = mistake_of(error, groups, files)
    if mistake is None:
        raise error
    if os.environ.get("FUSIONKIT_TRACE") == "1":
        traceback.print_exception(error)
    print(f"error: {clean(' '.join(str(mistake).split()))}", file=sys.stderr)
    return mistake.exit_code


def mistake_of(error: Exception, groups: Iterable[str], files: Sequence[Path]) -> UserError | None:
    """As ``translate``; one in the configuration names the ``files`` of the user's that it is composed with."""
    mistake = translate(error, groups)
    if mistake and len(text := str(mistake)) > LONGEST:  # a value of the user's
        mistake = type(mistake)(f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}")
    if isinstance(mistake, ConfigError) and files and not any(is_named(path, mistake) for path in files):
        return ConfigError(f"{mistake} (composed with {', '.join(map(str, files))})")
    return mistake
