"""The parts of a run that an option may be about: all of them, none, or some by name."""

from collections.abc import Iterable
from typing import Any

from fusionkit.errors import ConfigError, suggest

PARTS = ("image_encoder", "text_encoder", "fusion", "task")


def chosen_parts(key: str, chosen: Any) -> tuple[str, ...]:
    """What an option ``key`` chooses of ``PARTS``: true all of them, false or null none, else one by name or a list.

    ConfigError for anything else.
    """
    if isinstance(chosen, bool) or chosen is None:
        return PARTS if chosen else ()
    names = (chosen,) if isinstance(chosen, str) or not isinstance(chosen, Iterable) else tuple(chosen)
    for name in names:
        if name not in PARTS:
            raise ConfigError(f"{key} is '{name}'; give true, false or parts: {suggest(name, PARTS)}")
    return names
