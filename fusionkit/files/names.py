"""Names that stand in files, where they become the names of other files: they never lead out of a folder."""

import os
import re
from collections.abc import Container, Iterable
from pathlib import Path

LONGEST = 200  # bytes; file systems take 255, and endings are added


def is_file_name(name: object) -> bool:
    """Whether a name is that of one file in a folder: no separator, no ``..``, not hidden, no control character."""
    return (
        isinstance(name, str)
        and re.fullmatch(r"[^/\\\x00-\x1f\x7f]+", name) is not None
        and not name.startswith(".")
        and len(name.encode("utf-8", "replace")) <= LONGEST
    )


def is_inside(folder: str | Path, name: str) -> bool:
    """Whether ``folder / name`` lies in the folder, going by the words alone; links that the user made there are his own."""
    if not name.startswith("/") and ".." not in name and "\0" not in name and name not in ("", "."):
        return True
    base, path = (os.path.abspath(place) for place in (folder, os.path.join(folder, name)))
    return "\0" not in name and path != base and os.path.commonpath([base, path]) == base


def link_out_of(folder: Path, paths: Iterable[Path], ignored: Container[str] = ()) -> Path | None:
    """Return the first link among these paths of a folder, and all below them, that leads out of it, if there is one.

    ``ignored`` are names of links that nothing reads.
    """
    home = os.path.realpath(folder)
    for path in paths:
        below: Iterable[Path] = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
        for place in (path, *below):
            # realpath takes a link to itself as it is
            if (
                place.is_symlink()
                and place.name not in ignored
                and not Path(os.path.realpath(place)).is_relative_to(home)
            ):
                return place
    return None
