"""The pictures that the rows of a table are about: which file, or which cell of a table, and which rows share one."""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from fusionkit.data.boxes import Size, written_size
from fusionkit.data.identity import photo_by_name
from fusionkit.data.images import CorruptImage, decode, image_places, there_images
from fusionkit.data.readers.row_columns import Columns, unpacked
from fusionkit.data.readers.rows import RowFile, Stored
from fusionkit.data.stores import stored_bytes
from fusionkit.errors import DataError
from fusionkit.files.depends import STORE, note

ENDS = 65536  # bytes at either end of a file, by which two pictures differ
FIRST, SPREAD = 20, 1000  # rows by which the folder of the pictures is found: of the first, and of all
NUMBERED = re.compile(r"#\d+$")  # Flickr30k's results.token counts the captions of a file: 1000092795.jpg#0
COCO_FILE = re.compile(r"COCO_[a-z]+\d{4}_0{5}\d{7}\.\w+$")
Reference = str | int | Stored
Id = int | str


class Row(NamedTuple):
    """One row: its table, its number there from 1, what it is called among the rows of all tables, and its cells by column."""

    path: Path
    number: int
    name: Id
    cells: Mapping[str, Any]

    @property
    def where(self) -> str:
        """In words."""
        return f"row {self.number} of {self.path}"


@dataclass
class Picture:
    """One picture, or a pair, with its rows."""

    files: tuple[Path, ...]
    reference: Reference
    rows: list[Row]
    image_id: Id = ""

    @property
    def photo(self) -> str | None:
        """COCO's or Flickr30k's name of a picture that stands in a table, where the table gives its file's name."""
        stored = self.reference if isinstance(self.reference, Stored) else None
        if stored is None or not stored.name:
            return None
        is_known = stored.digest is None or COCO_FILE.match(
            stored.name.rpartition("/")[2]
        )  # a shard's key may be any number
        return photo_by_name(Path(stored.name)) if is_known else None


def pictures_of(
    rows: Iterable[Row],
    folder: Path,
    columns: Columns,
    path: Path,
    may_miss: bool,
    kept: Callable[[Row], Row | None] = lambda row: row,
) -> tuple[list[Picture], int]:
    """The pictures of one table's rows in order of appearance, and how many rows have none that is there.

    Of rows that have one, those that are ``kept``. DataError where one is missing and ``may_miss`` is not set.
    """
    told = [(row, references_of(row, columns)) for row in rows]
    named = dict.fromkeys(key for _, keys in told for key in keys if not isinstance(key, Stored))
    wanted = {key: _names(key) for key in named}
    files: dict[Any, Path] = dict(there_images(folder, wanted, path)) if wanted else {}
    missing = [key for key in wanted if key not in files]
    if missing and not may_miss:
        raise DataError(
            f"{len(missing):,} of {len(wanted):,} pictures of {path} are not under {folder}; first missing: {missing[0]}; name "
            "their folder as data.images=FOLDER, or leave their rows out with data.missing=skip"
        )
    found: dict[Any, Picture] = {}
    left_out = 0
    one_id = OneId(path)
    for row, keys in told:
        places = tuple(key.path if isinstance(key, Stored) else files.get(key) for key in keys)
        if None in places or not places:
            left_out += 1
            continue
        group = one_id.group(_group(row, keys, places, columns), keys)
        if (left := kept(row)) is not None:
            found.setdefault(group, Picture(places, keys[0], [])).rows.append(left)  # type: ignore[arg-type]
    one_id.tell()
    return list(found.values()), left_out


def fullest(folders: Sequence[Path], table: RowFile, columns: Columns) -> Path | None:
    """The first of the folders that has most pictures of a table's first rows, or, where none has any, of rows all over it.

    None where the pictures stand in the table. Raises DataError.
    """

    def numbered(cells: Iterable[Mapping[str, Any]]) -> list[Row]:
        return [Row(table.path, number, number, each) for number, each in enumerate(cells, table.first)]

    def there(rows: Sequence[Row]) -> dict[Path, int]:
        return {folder: len(rows) - pictures_of(rows, folder, columns, table.path, True)[1] for folder in folders}

    first = numbered(table.head(FIRST))
    if all(isinstance(key, Stored) for row in first for key in references_of(row, columns)):
        return None
    counts = there(first)
    if not any(counts.values()):
        names = columns.get("image") or columns["image_id"]
        every = numbered(table.rows([name for name in names if name in table.columns]))
        counts = there(every[:: max(1, len(every) // SPREAD)])
    return max(counts, key=lambda folder: counts[folder], default=None)


def _group(row: Row, keys: Sequence[Reference], places: Any, columns: Columns) -> Any:
    """What the rows about the same pictures share: their files; of pictures in the table their id, where the row has one, and
    how many they are, and in shards the bytes too.
    """
    own = _id_in(row, columns["image_id"][0]) if isinstance(keys[0], Stored) and "image_id" in columns else None
    return places if own is None else (own, *(key.digest if isinstance(key, Stored) else key for key in keys))


class OneId:
    """Tells pictures in a table apart that have one id, by their bytes, which are read where an id comes again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.firsts: dict[Any, tuple[Path, ...]] = {}
        self.digests: dict[Any, tuple[bytes, ...]] = {}  # of the first of each id that came again
        self.several: dict[Any, None] = {}

    def group(self, group: Any, keys: Sequence[Reference]) -> Any:
        """The group of a row, and of another picture than the first of the group the bytes too."""
        stored = tuple(key.path for key in keys if isinstance(key, Stored) and key.digest is None)
        if not stored or len(stored) < len(keys) or isinstance(group[0], Path):
            return group
        if (first := self.firsts.setdefault(group, stored)) == stored:
            return group
        if group not in self.digests:
            self.digests[group] = tuple(map(digest_of, first))
        digests = tuple(map(digest_of, stored))
        if digests == self.digests[group]:
            return group
        self.several[group[0]] = None
        return group[0], digests

    def tell(self) -> None:
        """Warn of what was told apart."""
        if self.several:
            warnings.warn(
                f"{self.path}: {len(self.several):,} image ids are of several pictures, such as {next(iter(self.several))!r}; "
                "these are told apart by what they show",
                stacklevel=1,
            )


def _id_in(row: Row, column: str) -> Any:
    """The ``image_id`` of a row. DataError where it is none."""
    value = row.cells.get(column)
    if isinstance(value, list | dict):
        raise DataError(
            f"{row.where} has {str(value)[:60]} as '{column}', which is neither a number nor a text; say "
            "which column is meant with data.columns.image_id=COLUMN"
        )
    return value


def references_of(row: Row, columns: Columns) -> list[Reference]:
    """What a row says of its pictures: names, or cells; without a column of pictures its ``image_id``. DataError."""
    names = columns.get("image") or columns["image_id"]
    values: list[Any] = []
    for name in names:
        value = unpacked(row.cells.get(name))
        values += value if isinstance(value, list | tuple) else [value]
    return [_reference(value, row) for value in values if value is not None]


def _reference(value: Any, row: Row) -> Reference:
    if isinstance(value, dict):
        value = value.get("path", value.get("file_name", value))
    if isinstance(value, float) and value % 1 == 0:
        value = int(value)
    if isinstance(value, str) and value.startswith(("http://", "https://", "s3://", "gs://")):
        raise DataError(
            f"{row.where} names its picture by an address ({value[:60]}); download them first, as with "
            "img2dataset, and name the folder that it writes"
        )
    if isinstance(value, bool) or not isinstance(value, str | int | Stored):
        raise DataError(
            f"{row.where} has a picture {str(value)[:60]!r}, which is neither a path nor the picture itself; "
            "say which column names it with data.columns.image=COLUMN"
        )
    return NUMBERED.sub("", value.removeprefix("./")) if isinstance(value, str) else value


def _names(reference: Any) -> list[str]:
    """Where the file of a reference may lie below its folder: as it is, with an ending, or by COCO's names of a number."""
    text = str(reference)
    by_id = image_places(reference if isinstance(reference, int) else text)
    return list(
        dict.fromkeys(
            [*image_places(text, text), *(f"{text}{end}" for end in (".jpg", ".png", ".jpeg", ".webp")), *by_id]
        )
    )


def name_pictures(pictures: Sequence[Picture], columns: Columns, path: Path) -> None:
    """Give each picture its id: that of the table's column where it tells the pictures apart, else what it is called by."""
    column = columns.get("image_id")
    if column is not None:
        said = [{_id_in(row, column[0]) for row in picture.rows} for picture in pictures]
        if all(len(each) == 1 and None not in each for each in said):
            ids = as_ids([each.pop() for each in said], column[0], path)
            if len(set(ids)) == len(ids):
                for picture, image_id in zip(pictures, ids, strict=True):
                    picture.image_id = image_id
                return
    taken: set[Id] = set()
    for picture in pictures:
        reference = picture.reference
        name: Id = (reference.name or f"row {picture.rows[0].name}") if isinstance(reference, Stored) else reference
        picture.image_id = (
            name if name not in taken else f"{name} ({picture.files[0].parent.name}, row {picture.rows[0].name})"
        )
        taken.add(picture.image_id)


def as_ids(values: Sequence[Any], column: str, path: Path) -> list[Id]:
    """Ids of one kind: whole numbers, or texts; texts that are all plain whole numbers are numbers. DataError for a mixture."""
    whole = [int(value) if isinstance(value, float) and value % 1 == 0 else value for value in values]
    kinds = {type(value) for value in whole}
    if kinds == {int, str}:
        number, text = (next(value for value in whole if type(value) is kind) for kind in (int, str))
        raise DataError(
            f"the column '{column}' of {path} holds whole numbers, such as {number}, and texts, such as {text!r}; write all ids "
            "as one or the other"
        )
    if kinds == {str} and all(_is_number(str(value)) for value in whole):
        return [int(value) for value in whole]
    return [value if type(value) in (int, str) else str(value) for value in whole]


def _is_number(text: str) -> bool:
    return text.isdecimal() and text == str(int(text))


def size_of(picture: Picture, columns: Columns, may_skip: bool) -> Size | None:
    """Width and height that boxes refer to: what the columns say, else the picture's own.

    DataError for a picture that is damaged; None, which is told, where ``may_skip``.
    """
    cells = picture.rows[0].cells
    said = [cells.get(columns[side][0]) if side in columns else None for side in ("width", "height")]
    if (size := written_size(*said)) is not None:
        return size
    note(picture.files[0], STORE)  # another picture under this name may be of another size
    try:
        return decode(picture.files[0], 1).size
    except CorruptImage as error:
        if not may_skip:
            raise DataError(f"{error}; replace it, or leave its boxes out with data.missing=skip") from error
        warnings.warn(f"{error}; its boxes are left out", stacklevel=2)
        return None


def drawn(digest: bytes | None, shares: Mapping[str, float]) -> str:
    """The split that a picture's hash gives it: one of those with a share of the pictures, or "train", as of no picture."""
    if digest is None:
        return "train"
    draw, ends = int.from_bytes(digest[:8], "big") / 2**64, accumulate(shares.values())
    return next((split for split, end in zip(shares, ends, strict=True) if draw < end), "train")


def digest_of(path: Path) -> bytes:
    """What tells a picture from another, whatever it is called: its length and the bytes at its ends."""
    if path.is_dir():  # the frames of a film
        seen = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
        return _digest(0, b"".join(map(digest_of, seen)))
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            head = file.read(ENDS)
            file.seek(max(ENDS, size - ENDS))
            content = head + file.read()
    except NotADirectoryError:  # a cell of a table, or a member of a shard
        return digest_of_content(stored_bytes(path))
    return _digest(size, content)


def digest_of_content(content: bytes) -> bytes:
    """As ``digest_of`` a file of this content."""
    return _digest(len(content), content[:ENDS] + content[max(ENDS, len(content) - ENDS) :])


def _digest(size: int, ends: bytes) -> bytes:
    return hashlib.blake2b(size.to_bytes(8, "big") + ends, digest_size=16).digest()
