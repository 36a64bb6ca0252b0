"""Data sets of Hugging Face's hub, fetched when a training is composed: what it then names are files of this machine."""

import importlib
import re
from pathlib import Path
from typing import Any

from fusionkit.errors import ConfigError, DataError

NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_name(files: Any, root: Path) -> bool:
    """Whether ``data.files`` is OWNER/NAME, and neither a file nor in a folder that is there."""
    return isinstance(files, str) and NAME.fullmatch(files) is not None and not (root / files).parent.exists()


def fetch(name: str) -> dict[str, list[str]]:
    """The arrow files of each split of a data set, which is fetched unless it is kept. Raises ConfigError and DataError."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise ConfigError(
            f"data.files={name} is no file; to have a data set of the hub of that name fetched, run: pip install datasets"
        ) from None
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # of the network, the hub, or a data set that is none
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"data.files={name}: neither a file nor a data set of the hub that can be fetched ({reason})"
        ) from error
    files = {str(split): [str(file["filename"]) for file in part.cache_files] for split, part in found.items()}
    if not all(files.values()):
        raise DataError(
            f"data.files={name}: the package datasets keeps no files of it; save it with save_to_disk and name the folder"
        )
    return files
