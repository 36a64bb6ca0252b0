"""Where the tables of a data set lie, and which split each is: one file, files of splits, a pattern, or a folder."""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple

from fusionkit.data.readers.picture_folders import METADATA, PICTURES, open_pictures, picture_files
from fusionkit.data.readers.row_arrow import Arrow, named_classes
from fusionkit.data.readers.row_columns import names_pictures
from fusionkit.data.readers.row_files import ENDINGS, open_rows
from fusionkit.data.readers.row_shards import ENDING, is_shard, open_shards, unbraced
from fusionkit.data.readers.rows import RowFile
from fusionkit.data.stores import arrow_table
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.files.depends import FOLDER, STORE, note
from fusionkit.files.names import is_file_name
from fusionkit.files.plain import read_json

Files = str | Sequence[str] | Mapping[str, str | Sequence[str]] | None
ROLES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"} | {
    "test": "test",
    "testing": "test",
}


class Place(NamedTuple):
    """A table, the split that it is (None: its rows are of several, or of none), and the folder that its paths begin in."""

    table: RowFile
    split: str | None
    folder: Path


def role_of(name: Any) -> str:
    """What a split is called here: "validation" is "val"; other names stay."""
    return ROLES.get(str(name).strip().lower(), str(name).strip())


def find_places(files: Files, root: str | Path) -> list[Place]:
    """The tables that are named, relative to the root; without a name what the root holds. Raises DataError and ConfigError."""
    root = Path(root)
    if isinstance(files, Mapping):
        named = {role_of(split): given for split, given in files.items() if given is not None}
        return [place._replace(split=split) for split, given in named.items() for place in find_places(given, root)]
    if files is None:
        return _of_path(root)
    names = [name for given in ([files] if isinstance(files, str) else files) for name in unbraced(given)]
    if any("{split}" in name for name in names):
        return _of_templates([str(root / name) for name in names])
    if len(names) != 1:
        paths = [root / name for name in names]
        if all(is_shard(path) and not has_magic(str(path)) for path in paths):
            return _of_shards(paths)
        return [place for name in names for place in find_places(name, root)]
    (files,) = names
    path = root / files
    if has_magic(files) and not path.exists():
        found = sorted(map(Path, glob(str(path), recursive=True)))
        for each in {parent for file in found for parent in file.parents if parent.is_relative_to(_fixed(path))}:
            note(each, FOLDER)
        if not found:
            raise DataError(f"no file fits the pattern {path}; {_nearest(path)}")
        if shards := list(filter(is_shard, found)):
            tables = [each for each in found if each.suffix.lower() in ENDINGS and _is_table(each)]
            if others := _beside(shards, tables):
                raise DataError(
                    f"the pattern {path} fits shards, such as {shards[0].name}, and tables, such as {others[0].name}; name "
                    f"those that are meant, as files='{path.with_name('*' + shards[0].suffix)}' or files={others[0]}"
                )
            return _of_shards(shards)
        return _with_splits([place for each in found for place in _of_path(each)])
    if not path.exists():
        raise DataError(f"{path} does not exist; {_nearest(path)}")
    return _of_path(path)


def _fixed(pattern: Path) -> Path:
    """The folder that a pattern begins in."""
    return next(parent for parent in pattern.parents if not has_magic(str(parent)))


def _nearest(path: Path) -> str:
    folder = next(parent for parent in path.parents if parent.is_dir())
    return suggest(path.name, sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))[:40])


def _of_templates(templates: Sequence[str]) -> list[Place]:
    """The files of paths in which ``{split}`` stands for any word; of a split that one of the paths has."""
    words = dict.fromkeys(word for template in templates for word in _splits_there(template))
    if not words:
        before = templates[0].partition("{split}")[0]
        raise DataError(f"no file is there for any split of {templates[0]}; {_nearest(Path(before + 'train'))}")
    found = []
    for split in words:
        paths = [Path(template.replace("{split}", split)) for template in templates]
        if all(map(is_shard, paths)):  # of which some may be missing
            places = _of_shards(paths)
        elif missing := next((path for path in paths if not path.exists()), None):
            raise DataError(f"{missing} does not exist; {_nearest(missing)}")
        else:
            places = [place for path in paths for place in _of_path(path)]
        found += [place._replace(split=role_of(split)) for place in places]
    return found


def _splits_there(template: str) -> list[str]:
    """The words in place of ``{split}`` with which a path is there."""
    before, _, after = template.partition("{split}")
    pattern = re.compile(re.escape(before) + r"([^/]+?)" + re.escape(after).replace(r"\{split\}", r"\1"))
    known = dict.fromkeys([*ROLES, *_words_there(Path(before), after)])
    paths = {split: Path(template.replace("{split}", split)) for split in known}
    return [split for split, path in paths.items() if path.exists() and pattern.fullmatch(str(path))]


def _words_there(before: Path, after: str) -> Iterator[str]:
    """What stands at the place of ``{split}`` in the folder's names."""
    note(before if before.is_dir() else before.parent, FOLDER)
    folder, start = (before, "") if str(before).endswith("/") or before.is_dir() else (before.parent, before.name)
    end = after.partition("/")[0]
    for each in sorted(folder.iterdir()) if folder.is_dir() else ():
        if each.name.startswith(start) and each.name.endswith(end):
            yield each.name[len(start) : len(each.name) - len(end)]


def _of_path(path: Path) -> list[Place]:
    if path.is_dir():
        return _of_folder(path)
    return _of_shards([path]) if is_shard(path) else [Place(open_rows(path), None, path.parent)]


def _of_shards(paths: Sequence[Path]) -> list[Place]:
    return _with_splits([Place(shard, None, shard.path.parent) for shard in open_shards(paths)])


def _of_folder(folder: Path) -> list[Place]:
    """A data set of Hugging Face's library, pictures with what lies beside them, or a folder of tables."""
    note(folder, FOLDER)
    if (folder / "dataset_dict.json").is_file():
        names = _names(read_json(folder / "dataset_dict.json").get("splits"), folder / "dataset_dict.json")
        return [Place(table, role_of(name), folder) for name in names for table in _saved(folder / name)]
    if (folder / "state.json").is_file():
        return [Place(table, None, folder) for table in _saved(folder)]
    tables = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS and _is_table(path)]
    splits = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in ROLES]
    if about := next((path for path in tables if path.stem == METADATA), None):
        return [Place(open_rows(about), None, folder)]
    if splits and all(any((each / f"{METADATA}{ending}").is_file() for ending in ENDINGS) for each in splits):
        return [place._replace(split=role_of(each.name)) for each in splits for place in _of_folder(each)]
    shards = [path for path in sorted(folder.glob("*")) if is_shard(path)]
    others = _beside(shards, tables)
    if not others and any(path.suffix.lower() == ENDING for path in shards):
        classes = [path for path in sorted(folder.glob("[!.]*/*")) if path.suffix.lower() in PICTURES]
        if len({path.parent for path in classes}) > 1:
            _tell_unread(classes, shards[0])
        stems = {path.name.partition(".")[0] for path in shards}
        if unread := [path for path in tables if path.suffix.lower() != ".json" and path.stem not in stems]:
            _tell_unread(unread, shards[0])
        return _of_shards(shards)
    pictures = picture_files(folder)
    if shards and not others and not pictures:
        return _of_shards(shards)  # which says that they have to be unpacked
    if shards:
        _tell_unread(shards, (others or pictures)[0])
    if pictures and (not tables or any(path.with_suffix(".txt").is_file() for path in pictures[:10])):
        return [Place(table, split and role_of(split), folder) for table, split in open_pictures(folder, pictures)]
    if not tables:  # Hugging Face's repositories keep them in data/, and shards may lie there too
        tables = [path for path in sorted(folder.glob("[!.]*/*")) if path.suffix.lower() in ENDINGS and _is_table(path)]
        shards = [path for path in sorted(folder.glob("[!.]*/*")) if is_shard(path)]
        if shards and not _beside(shards, tables):
            return _of_shards(shards)
    if not tables:
        raise DataError(
            f"{folder} holds neither a table ({', '.join(ENDINGS)}) nor pictures nor shards (.tar); name another as files=PATH"
        )
    return _with_splits([Place(open_rows(path), None, path.parent) for path in tables])


def _beside(shards: Sequence[Path], tables: Sequence[Path]) -> list[Path]:
    """The tables that name pictures of their own: not what img2dataset and webdataset write about shards."""
    return [path for path in tables if shards and _names_pictures(path)]


def _names_pictures(path: Path) -> bool:
    try:
        return names_pictures(open_rows(path).columns)
    except DataError:
        return False


def _tell_unread(paths: Sequence[Path], read: Path) -> None:
    """Warn of what is not read in a folder of several kinds."""
    more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
    warnings.warn(
        f"{paths[0]}{more}: not read, since {read} is; name what is meant as data.files=PATH, or move the other away",
        stacklevel=1,
    )


def _is_table(path: Path) -> bool:
    """Whether a file is read in a folder of tables: not what is said about a data set, and no text that stands alone."""
    is_about = path.stem in ("dataset_info", "dataset_infos", "state", "README") or path.stem.endswith("_stats")
    return path.is_file() and not path.name.startswith(".") and not is_about and path.suffix.lower() != ".txt"


def _with_splits(places: list[Place]) -> list[Place]:
    """Several tables that were not named one by one: each is the split that its file, or its folder, is called by."""
    if len(places) == 1:
        return places
    found = [place._replace(split=place.split or _split_in(place.table.path)) for place in places]
    unclear = [place.table.path.name for place in found if place.split is None]
    if unclear and len(unclear) < len(found):
        raise DataError(
            f"of the tables in {places[0].folder} some are called by a split and {unclear[0]} is not; name those that are meant: "
            f"files={{train: ..., test: ...}}"
        )
    if unclear and len({place.table.columns for place in found}) > 1:
        raise DataError(
            f"the tables in {places[0].folder} have different columns ({', '.join(unclear[:4])}); name the one that is meant "
            "as files=PATH"
        )
    return found


def _split_in(path: Path) -> str | None:
    for name in (path.stem, path.parent.name):
        said = {ROLES[word] for word in re.split(r"[^a-z]+", name.lower()) if word in ROLES}
        if len(said) == 1:
            return said.pop()
    return None


def _saved(folder: Path) -> list[RowFile]:
    """The arrow files of one split that ``save_to_disk`` wrote."""
    state = read_json(folder / "state.json")
    listed = state.get("_data_files") if isinstance(state, dict) else None
    names = _names([each.get("filename") for each in listed or () if isinstance(each, dict)], folder / "state.json")
    about = read_json(folder / "dataset_info.json") if (folder / "dataset_info.json").is_file() else {}
    features = about.get("features") if isinstance(about, dict) else None
    classes = named_classes(features) if isinstance(features, dict) else {}
    for name in names:
        note(folder / name, STORE)
    return [Arrow(folder / name, tuple(arrow_table(folder / name).column_names), classes) for name in names]


def _names(given: Any, path: Path) -> Iterable[str]:
    if not isinstance(given, list) or not given or not all(is_file_name(name) for name in given):
        raise DataError(f"{path} names no files of its folder; save the data set again with save_to_disk")
    return given


def require_roles(files: Any) -> None:
    """Raise ConfigError for ``files`` that are neither a path, paths, nor either by split."""
    if files is None:
        return
    inner = [each for each in files.values() if each is not None] if isinstance(files, Mapping) else [files]
    flat = [each for given in inner for each in ((given or [None]) if isinstance(given, list | tuple) else [given])]
    if not flat or not all(isinstance(each, str) for each in flat):
        raise ConfigError(
            f"data.files is {files!r}, but has to be a path, a list of them, or {{train: PATH, test: PATH}}"
        )
