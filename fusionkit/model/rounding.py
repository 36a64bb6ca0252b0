"""The libraries that round weights: torchao and bitsandbytes, of the extra ``quantised``, imported where they are used."""

import importlib
from typing import Any

from fusionkit.errors import ConfigError, install_extra


def rounding_library(key: str, module: str, otherwise: str) -> Any:
    """A module of such a library.

    Where it is not installed, a ConfigError names the ``key`` that wants it, and what to do ``otherwise``.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(f"{key} needs the package {package}: {install_extra('quantised')}; {otherwise}") from error
