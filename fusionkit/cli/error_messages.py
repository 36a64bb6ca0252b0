"""Hydra's and OmegaConf's exceptions as one sentence that names the key, the nearest known name and the choices."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
    SearchPathException,
)
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from fusionkit.cli.shortages import shortage
from fusionkit.config import conf_dir, first_cause, group_choices
from fusionkit.errors import ConfigError, UserError, suggest
from fusionkit.files.atomic import refused
from fusionkit.files.plain import YAML, other_kind

SOUND = ("fusionkit.", "hydra.utils.", "lightning.")  # what one raises as it is built is about the values it was given
WRONG = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def translate(error: Exception, groups: Iterable[str] = ()) -> UserError | None:
    """The user's mistake behind an exception, or None where it is a defect that deserves its trace.

    ``groups`` are the configuration groups that the command line may choose from.
    """
    chain = [error]
    while isinstance(cause := chain[-1].__cause__, Exception):
        chain.append(cause)
    for link in chain:  # our own sentence, however deeply a library has wrapped it
        if isinstance(link, UserError):
            return link
        if isinstance(link, OSError) and (refusal := refused(link)):
            return refusal
        if told := shortage(link):
            return told
    if _is_refused_by_lightning(chain[-1]):
        return ConfigError(f"trainer: {_first_line(chain[-1])}")
    if isinstance(error, InstantiationException | TypeError):
        return _instantiation(error, chain[-1])
    if isinstance(error, yaml.YAMLError):
        return ConfigError(f"not valid yaml: {' '.join(str(error).split())}")
    if isinstance(error, HydraException | OmegaConfBaseException):
        found = next(
            (told for link in chain if (told := _configuration(link, groups))), ConfigError(_first_line(error))
        )
        return ConfigError(
            ": ".join([*getattr(error, "__notes__", ()), str(found)])
        )  # what it is in, where that is known
    return None


def composing(error: Exception, files: Sequence[Path]) -> Exception:
    """The mistake in one of the user's files behind what Hydra raised while it read them; the error itself where none is.

    ``files`` are those that were chosen, or their folder. Of a file that is no yaml Hydra names neither the file nor, mostly, the
    place, and of one whose parts are of a wrong kind it raises nearly anything.
    """
    if not files or isinstance(error, UserError):
        return error
    folder = files[0] if files[0].is_dir() else files[0].parent.parent
    for path in dict.fromkeys([*files, *sorted(folder.rglob("*.yaml"))]):
        if path.is_file() and (fault := _fault_of_yaml(path)):
            return ConfigError(fault)
    if translate(error) is None:
        named = ", ".join(map(str, files))
        return ConfigError(f"{named}: no configuration can be composed of it ({_first_line(error)[:200]}); correct it")
    return error


def _fault_of_yaml(path: Path) -> str | None:
    """Why a file cannot be read as yaml, in words; None where it can."""
    try:
        yaml.load(path.read_bytes().decode(), LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        told = other_kind(path, YAML, "fill it or leave it out")
        return told or f"{path} is not valid yaml ({' '.join(str(error).split())[:300]}); correct it"
    return None


def _configuration(error: Exception, groups: Iterable[str]) -> ConfigError | None:
    if isinstance(error, MissingConfigException):
        return _missing_file(error)
    if isinstance(error, OverrideParseException):
        if "=" not in error.override:
            return ConfigError(
                f"'{error.override}' says no key; write KEY={error.override}, without spaces around the ="
            )
        reason = next(line for line in error.message.splitlines() if "Error parsing override" not in line)
        return ConfigError(
            f"override '{error.override}' cannot be read ({reason}); write key=value, and quote odd characters"
        )
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(error, groups)
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(f"'{error.full_key}' has no value yet; give it as {error.full_key}=VALUE")
    if isinstance(error, InterpolationKeyError) and not error.full_key:
        return ConfigError(
            f"{_first_line(error)}; a value that holds ${{...}} names another key, unless it is written \\${{...}}"
        )
    if isinstance(error, OmegaConfBaseException):
        return ConfigError(f"{error.full_key}: {_first_line(error)}" if error.full_key else _first_line(error))
    if isinstance(error, ConfigCompositionException | SearchPathException) and error.__cause__ is None:
        return _composition(str(error), groups)
    return None


def _missing_file(error: MissingConfigException) -> ConfigError:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    choices = error.options or group_choices(group)
    if not group:
        return ConfigError(f"no configuration named '{name}'; {suggest(name, choices)}")
    return ConfigError(f"{group} has no choice '{name}'; {suggest(name, choices)}")


def _unknown_key(error: ConfigKeyError | ConfigAttributeError, groups: Iterable[str]) -> ConfigError:
    known = [str(key) for key in error.parent_node or () if key != "hydra" and not str(key).startswith("_")]
    parent, _, key = str(error.full_key or error.key).rpartition(".")
    if not parent:
        known += [group for group in groups if group not in known]
    if not parent and key in groups:  # an empty list of choices leaves the whole section out
        return ConfigError(f"{key}: nothing is chosen; {suggest('', group_choices(key))}")
    if not known:  # Hydra has made an empty section of a single value before it looks for the key
        return ConfigError(
            f"'{parent}' is a single value or an empty section, so it has no key '{key}'; to a section, add it with "
            f"+{parent}.{key}=VALUE"
        )
    told = f"unknown key '{key}' in {parent or 'the configuration'}; {suggest(key, known)}"
    if parent and "did you mean" not in told:
        told += f"; what has no value in the configuration yet is added as +{parent}.{key}=VALUE"
    return ConfigError(told)


def _composition(message: str, known: Iterable[str]) -> ConfigError:
    if group := re.search(r"Could not override '([^']+)'\. No match in the defaults list", message):
        groups = [path.name for path in conf_dir().iterdir() if path.is_dir()]
        if group[1] in groups:
            return ConfigError(f"{group[1]} is no choice of this command; {suggest(group[1], known)}")
        return ConfigError(f"unknown group '{group[1]}' in a defaults list; {suggest(group[1], groups)}")
    if group := re.search(r"You must specify '([^']+)'", message):
        return ConfigError(
            f"'{group[1]}' has no value yet; give it as {group[1]}=NAME, {suggest('', group_choices(group[1]))}"
        )
    if value := re.search(r"Ambiguous value for argument '([^']+)'", message):
        return ConfigError(f"'{value[1]}' names several values; write [a,b] for a list, or add -m to run each in turn")
    return ConfigError(" ".join(message.split()))


def _instantiation(error: Exception, cause: Exception) -> ConfigError | None:
    place = re.search(r"full_key: (\S+)", str(error))
    target = re.search(r"(?:call to|locating) target '([^']+)'", str(error))
    is_about_values = target and target[1].startswith(SOUND) and isinstance(cause, WRONG)
    if is_about_values or _is_signature_mismatch(cause) or (target and isinstance(cause, ImportError)):
        return ConfigError(f"{place[1] if place else 'configuration'} cannot be built: {first_cause(cause)}")
    return None


def _is_signature_mismatch(cause: Exception) -> bool:
    """True for the TypeError of a call by Hydra that does not fit the target's signature; deeper calls are our defects."""
    return isinstance(cause, TypeError) and "argument" in str(cause) and _is_raised_in("hydra", cause)


def _is_refused_by_lightning(cause: Exception) -> bool:
    """True where Lightning itself raises because it cannot work with an option of the trainer."""
    is_refusal = isinstance(cause, ValueError) or type(cause).__name__ == "MisconfigurationException"
    return is_refusal and _is_raised_in("lightning", cause)


def _is_raised_in(package: str, error: Exception) -> bool:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and str(frame.tb_frame.f_globals.get("__name__")).startswith(f"{package}.")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
