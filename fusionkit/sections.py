"""What the sections of a run's configuration have to be, before anything looks into them."""

from collections.abc import Iterator, Mapping
from typing import Any

from fusionkit.errors import ConfigError

BUILT = ("image_encoder", "text_encoder", "fusion", "model", "data", "optimizer", "trainer")
"""Sections with a ``_target_``, without which nothing is built."""
OPTIONAL = ("scheduler", "teacher", "balance")  # also None
HOLDERS = ("task", "data.sources")  # of sections that are built
NAMED = ("logger", "callbacks", "stages")  # of sections that are built, or None
TRAINING = (
    "optimizer",
    "scheduler",
    "teacher",
    "balance",
    "logger",
    "callbacks",
    "stages",
)  # what an evaluation builds not
PLAIN = ("objectives", "evaluation", "evaluation.options")


def check_sections(plain: Mapping[Any, Any]) -> None:
    """Raise ConfigError, with the key, for a section that is none, or that is to be built and does not say of what class."""
    for key in (*BUILT, *OPTIONAL, *HOLDERS, *NAMED, *PLAIN):
        value = _at(plain, key)
        is_left_out = value is None and (key in (*OPTIONAL, *NAMED) or key.partition(".")[0] not in plain)
        if is_left_out or (isinstance(value, str) and "${" in value):
            continue
        _require_section(key, value)
        if key in BUILT or (key in OPTIONAL and value):
            _require_target(key, value)
    for key, value in _inner(plain):
        is_of_another = value is None or (isinstance(value, Mapping) and "_target_" not in value)
        if key.startswith("data.sources.") and is_of_another:
            continue  # settings of a source that this data has not: ``check_objectives`` says so
        _require_section(key, value)
        _require_target(key, value)
    for key, value in (_at(plain, "objectives") or {}).items():
        if value is not None:
            _require_section(f"objectives.{key}", value)


def _inner(plain: Any) -> Iterator[tuple[str, Any]]:
    """The sections within others, but those that are left out as they may be."""
    for holder in (*HOLDERS, *NAMED):
        for name, value in (_at(plain, holder) or {}).items():
            if not (value is None and holder in NAMED):
                yield f"{holder}.{name}", value


def _at(plain: Any, key: str) -> Any:
    for name in key.split("."):
        plain = plain.get(name) if isinstance(plain, dict) else None
    return plain


def _require_section(key: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is {_short(value)}, but has to be a section of keys; choose or write one")


def _require_target(key: str, value: Mapping[Any, Any]) -> None:
    name = value.get("_target_")
    if not isinstance(name, str) or not name:
        told = f"is {_short(name)}" if "_target_" in value else "is not there"
        raise ConfigError(f"{key}._target_ {told}, but has to be the name of the class that {key} is built from")


def _short(value: Any) -> str:
    text = "null" if value is None else ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
