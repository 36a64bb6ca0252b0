"""The reader of a user's own table: what it is told, and what was made of it in ``open_table``."""

import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from fusionkit.data.readers.open_table import OpenTable
from fusionkit.data.readers.row_boxes import require_convention
from fusionkit.data.readers.row_filters import Filters
from fusionkit.data.readers.row_places import Files, require_roles, role_of
from fusionkit.data.sample import Sample
from fusionkit.errors import ConfigError, suggest

ASKED = "what is shown?"  # about pictures that have a label and no text
MISSING = ("error", "skip")


class Table:
    """Reader of whatever texts a table holds: "captions", "questions", "expressions", "hypotheses", "statements",
    "conversations".

    ``files``     a table, a folder, a pattern, a list of them, or {split: ...}; may hold ``{split}``. None: ``root`` itself.
    ``root``      what the paths are relative to.
    ``images``    the folder of the pictures; may hold ``{split}``. None: that of the table, or ``images`` in it.
    ``columns``   by role (``row_columns.NAMES``) a column, or several; others are guessed by their names.
    ``boxes``     the convention of the boxes (``row_boxes.CONVENTIONS``); None: the one that fits.
    ``split_by``  the share of the images that each split gets which no column and no file names; by a hash of the picture, so
                  that one picture, under any name, is in one split. None: a tenth for val and for test.
    ``missing``   "error", or "skip" to leave out rows whose picture is not there.
    ``filters``   which rows and captions are read (``row_filters.Filters``); None: all.
    ``streams``   the pictures of a row are one stream (``Source.stream``), whatever their number, and not one of each for itself.
    ``label_question``  what is asked about pictures that have a label and no text.
    """

    def __init__(
        self,
        files: Files = None,
        root: str = ".",
        images: str | None = None,
        columns: Mapping[str, Any] | None = None,
        boxes: str | None = None,
        split_by: Mapping[str, float | None] | None = None,
        missing: str = "error",
        label_question: str = ASKED,
        collection: str | None = None,
        filters: Mapping[str, Any] | None = None,
        streams: bool = False,
    ) -> None:
        require_roles(files)
        for name, section in {"columns": columns, "split_by": split_by, "filters": filters}.items():
            if section is not None and not isinstance(section, Mapping):
                raise ConfigError(f"data.{name} is {reprlib.repr(section)}, but has to be a section of keys")
        if boxes is not None:
            require_convention(boxes)
        if missing not in MISSING:
            raise ConfigError(f"data.missing is '{missing}'; {suggest(missing, MISSING)}")
        self.files, self.root, self.images = files, Path(root), images
        self.columns, self.boxes, self.missing = dict(columns or {}), boxes, missing
        self.label_question, self.collection, self.streams = label_question, collection, streams
        self.shares, self.filters = _shares(split_by or {}), dict(filters or {})
        Filters(self.filters)  # raises ConfigError

    @property
    def opened(self) -> OpenTable:
        """What was understood of the files; kept apart from the arguments, which alone tell a reader from another."""
        return OPENED.setdefault(self, OpenTable(self))

    def read(self, split: str) -> list[Sample]:
        """The images of a split that have texts. Raises DataError."""
        return list(self.opened.read(split))

    def read_in_parts(self, split: str) -> Iterator[tuple[str, list[Sample]]]:
        """As ``read``, shard by shard, each by its name."""
        return self.opened.parts(split)


OPENED: WeakKeyDictionary[Table, OpenTable] = WeakKeyDictionary()


def _shares(given: Mapping[str, float | None]) -> dict[str, float]:
    """By split the part of the images that it gets. Raises ConfigError."""
    shares = {role_of(split): share for split, share in given.items() if share is not None}
    for split, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ConfigError(
                f"data.split_by.{split} is {share!r}, but has to be a part of the pictures, from 0 to below 1"
            )
    if sum(shares.values()) >= 1:
        raise ConfigError(f"data.split_by leaves nothing to train on: its parts add up to {sum(shares.values()):g}")
    return shares
