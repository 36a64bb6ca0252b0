"""The two mistakes a user can make, each told in one sentence that names the place and the fix.

The command line prints the sentence without a stack trace; anything else that is raised is a defect of ours and keeps its trace.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

CONTROLS = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160)), "\ufffd") | {13: " "}


class UserError(ValueError):
    """Base of the errors whose message is all the user needs."""

    exit_code = 1


class ConfigError(UserError):
    """The configuration asks for something that does not exist or cannot work (exit code 2)."""

    exit_code = 2


class DataError(UserError):
    """A file (annotation, image, checkpoint) is missing, unreadable or says something impossible (exit code 1)."""


class LostRankError(UserError):
    """Another rank has ended, or does not answer."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"rank {number} has lost the connection to another rank, which has ended or does not answer; resume=auto goes on "
            "from the last checkpoint"
        )


def clean(text: str) -> str:
    """A text that may be another's, without control characters, which no document may hold and terminals obey."""
    return text.translate(CONTROLS).encode("utf-8", "replace").decode("utf-8")


def is_named(place: object, text: object) -> bool:
    """Whether a sentence names a file or folder: not within a word, in which a short name may stand by chance."""
    return re.search(rf"(?<!\w){re.escape(str(place))}(?!\w)", str(text)) is not None


@contextmanager
def refusals(section: str) -> Iterator[None]:
    """Where a library refuses a value of a section while a part is built from it (ValueError), say which section it was."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(f"{section}: {str(error).splitlines()[0]}") from error


def install_extra(name: str) -> str:
    """The tail of a sentence about a package that an extra brings: how to install it, from the sources of fusionkit."""
    return f"run in fusionkit's repository: pip install '.[{name}]'"


def suggest(name: str, choices: Iterable[str]) -> str:
    """The tail of a sentence about an unknown name: the nearest known one, then all of them."""
    known = sorted(str(choice) for choice in choices)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}known: {', '.join(known) if known else '(none)'}"


def find_names(
    key: str, pattern: str, names: Iterable[str], search: Callable[[str, str], object] = re.search
) -> list[str]:
    """The parameter names that a regex is found in; ConfigError for ``key`` where it is none, or is found in none."""
    known = list(names)
    try:
        found = [name for name in known if search(pattern, name)]
    except re.error as error:
        raise ConfigError(f"{key}: '{pattern}' is no regular expression ({error})") from error
    if not found:
        parts = sorted({".".join(name.split(".")[:2]) for name in known})
        raise ConfigError(
            f"{key}: '{pattern}' matches none of the parameters, whose names begin with {', '.join(parts)}"
        )
    return found
