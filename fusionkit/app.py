"""Runs one of our entry points on a configuration that Hydra composes: options, sweeps, exit codes, readable mistakes."""

import argparse
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fusionkit.cli import Command, load
from fusionkit.config import conf_dir, primary_groups, register_resolvers
from fusionkit.errors import ConfigError, UserError
from fusionkit.mistakes import translate


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
    for flag, value in (("--config-dir", parsed.config_dir), ("--cfg", parsed.cfg)):
        options += [flag, value] if value else []
    return options, parsed.overrides


def open_sections(overrides: Sequence[str], sections: Sequence[str]) -> list[str]:
    """Let overrides below these sections name keys that only the checkpoint's own configuration knows."""
    return [f"++{text}" if text.split(".")[0] in sections else text for text in overrides]


def quote_paths(overrides: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Quote a path that has parentheses, such as the published refs(unc).p, which Hydra would take for a function call."""
    quoted = []
    for override in overrides:
        key, _, value = override.partition("=")
        is_call = key in paths and "(" in value and value[0] not in "'\""
        quoted.append(f"{key}={_quoted(value)}" if is_call else override)
    return quoted


def quote_texts(overrides: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Quote what the user says in words, in which Hydra would read commas as a sweep and parentheses as a call.

    What stands in quotes already is left alone, and so is null.
    """
    quoted = []
    for override in overrides:
        key, _, value = override.partition("=")
        is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        quoted.append(f"{key}={_quoted(value)}" if key in texts and not is_quoted and value != "null" else override)
    return quoted


def gather(overrides: Sequence[str], key: str | None) -> list[str]:
    """Words that name no key, as one list of the key: "a b c=1" is "c=1 runs=['a','b']". A word that is a file is no override."""
    if key is None:
        return list(overrides)
    words = [text for text in overrides if "=" not in text or os.path.exists(text)]
    return [text for text in overrides if text not in words] + (
        [f"{key}=[{','.join(map(_quoted, words))}]"] if words else []
    )


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

    def run_job(config: DictConfig) -> Any:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            begin_sweep_job(config)
        try:
            return load(command.target)(config)  # imported now: a wrong override is told without waiting for torch
        except Exception as error:
            failures.append(report(error, groups))
            return float("nan")

    try:
        options, overrides = parse(name, arguments)
        overrides = quote_texts(gather(overrides, command.operands), command.texts)
        overrides = quote_paths(open_sections(overrides, command.sections), command.paths)
        sys.argv = [f"fusionkit {name}", *options, *overrides]
        conf = str(conf_dir().resolve())
        hydra.main(version_base="1.3", config_path=conf, config_name=command.config_name)(run_job)()
    except Exception as error:
        failures.append(report(error, groups))
    finally:
        sys.argv = shell_line
    return failures[0] if failures else 0


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


def join_study(config: DictConfig) -> None:
    """Let loggers that group runs group those of a sweep by its name, and tell them apart by their folders."""
    for block in (config.get("logger") or {}).values():
        if config.get("name") and "group" in (block or {}) and block.group is None:
            block.group, block.name = config.name, "/".join(config.output_dir.split(os.sep)[-2:])


def report(error: Exception, groups: Iterable[str] = ()) -> int:
    """Tell a user's mistake on stderr and give its exit code; raise anything else. FUSIONKIT_TRACE=1 adds the trace."""
    mistake: UserError | None = translate(error, groups)
    if mistake is None:
        raise error
    if os.environ.get("FUSIONKIT_TRACE") == "1":
        traceback.print_exception(error)
    print(f"error: {' '.join(str(mistake).split())}", file=sys.stderr)
    return mistake.exit_code
