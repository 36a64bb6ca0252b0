"""Tables are made once from the files, made anew where these change, and never trusted where they are damaged."""

import errno
import json
import os
import sys
import warnings
from pathlib import Path

import pytest
from hydra.utils import instantiate

from fusionkit.assembly.composition import training_config
from fusionkit.data.readers import coco
from fusionkit.data.readers.coco import CocoCaptions
from fusionkit.data.readers.visual_genome import VisualGenome
from fusionkit.data.sample import Sample, Text
from fusionkit.data.source import Source, Splits
from fusionkit.data.tables import cache, child
from fusionkit.data.tables.describe import Unknown, describe
from fusionkit.data.tables.place import places
from fusionkit.data.tables.samples import Samples
from fusionkit.errors import DataError
from fusionkit.files.depends import FOLDER, noting
from tests.data.worlds import captions, karpathy, write_json, write_photo, write_photos
from tests.recipes.world import make_world
from tests.toys import choices


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    """Where tables are kept in a test."""
    monkeypatch.setenv("FUSIONKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fusionkit.data.tables.place._temporary", lambda: tmp_path / "cache/other")
    return tmp_path / "cache/tables"


@pytest.fixture
def reader(tmp_path) -> CocoCaptions:
    write_json(tmp_path / "captions_val.json", captions())
    return CocoCaptions(str(tmp_path / "captions_{split}.json"), str(write_photos(tmp_path / "images")))


def read(reader, split="val", kind="captions") -> Samples:
    return Splits({"x": Source(reader, {"val": [split]}, 2, {kind: 1})}).samples("x", "val")


def folders(kept) -> set[str]:
    return {path.name for path in kept.iterdir() if path.is_dir()}


def set_time(path: Path, seconds: float) -> None:
    """As if it had been written so many seconds ago."""
    then = path.stat().st_mtime_ns - int(seconds * 1e9)
    os.utime(path, ns=(then, then))


def test_files_are_read_once(reader, kept, tmp_path, capsys):
    first = read(reader)
    assert list(first) == reader.read("val")
    assert first.tables.folder.parent == kept
    made = folders(kept)
    assert "4 images with 8 texts, read anew 1 of 1" in capsys.readouterr().err
    assert read(CocoCaptions(reader.annotations, reader.images)) == first
    assert folders(kept) == made
    assert f"read from {kept}" in capsys.readouterr().err
    assert {each.collection for each in read(CocoCaptions(reader.annotations, reader.images, "mine"))} == {"mine"}
    assert len(folders(kept)) == 2


@pytest.mark.parametrize("ago", [0, 100])
def test_a_file_of_other_content_is_read_anew(reader, kept, tmp_path, ago):
    path = tmp_path / "captions_val.json"
    set_time(path, 200)
    read(reader)
    made = folders(kept)
    set_time(path, -100)  # touched, its content the same
    assert read(reader)[0].texts["captions"][0].text == "photo 1, said 0"
    assert folders(kept) == made
    path.write_text(path.read_text().replace("photo 1,", "phota 1,"))
    set_time(path, ago)
    assert read(reader)[0].texts["captions"][0].text == "phota 1, said 0"
    assert len(folders(kept)) == 1
    assert folders(kept) != made


def test_a_file_that_changes_within_the_clocks_tick_is_seen(reader, kept, tmp_path):
    path = tmp_path / "captions_val.json"
    read(reader)
    state = path.stat()
    path.write_text(path.read_text().replace("photo 1,", "phota 1,"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert read(reader)[0].texts["captions"][0].text == "phota 1, said 0"


def test_an_image_that_comes_or_goes_is_seen(reader, kept, tmp_path):
    read(reader)
    made = folders(kept)
    write_photo(tmp_path / "images/000000000099.jpg")
    read(reader)
    assert folders(kept) != made
    (tmp_path / "images/000000000002.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images of .* are not under"):
        read(reader)


def test_a_temporary_folder_that_is_not_safe_gives_way_to_one_folder(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"fusionkit-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"fusionkit-{os.getuid()}").chmod(0o777)
    assert places()[-1] == places()[-1]
    assert len(list(tmp_path.glob("fusionkit-*"))) == 2


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        spoil,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        Path.unlink,
        lambda path: next(path.parents[1].glob("*.json")).write_text("{"),
        lambda path: next(path.parents[1].glob("*.json")).write_text("[]"),
    ],
)
@pytest.mark.parametrize("name", ["0.arrow", "1.arrow"])
def test_what_is_damaged_is_made_anew(reader, kept, damage, name):
    expected = list(read(reader))
    (folder,) = folders(kept)
    damage(kept / folder / name)
    assert list(read(reader)) == expected
    assert folder not in folders(kept)
    assert len(folders(kept)) == 1


def test_tables_of_other_code_are_made_anew(reader, kept, monkeypatch):
    read(reader)
    made = folders(kept)
    monkeypatch.setattr("fusionkit.data.tables.place.code_version", lambda: "other")
    read(reader)
    assert folders(kept) != made


class Own:
    """A reader of one's own; what it counts is counted in this process alone."""

    def __init__(self, text: str = "x") -> None:
        self.text = text

    def read(self, split):
        return [Sample(1, Path("a.jpg"), {"captions": (Text(1, self.text),)})]


def test_a_reader_of_ones_own_is_kept_only_where_it_says_its_version(kept):
    own = Own()
    assert read(own)[0].texts["captions"][0].text == "x"
    assert not kept.exists()
    own.version = 1
    read(own)
    (made,) = folders(kept)
    assert read(own)[0].texts["captions"][0].text == "x"
    assert folders(kept) == {made}
    own.text = "y"
    assert read(own)[0].texts["captions"][0].text == "y"
    own.version = 2
    read(own)
    assert len(folders(kept)) == 3
    with pytest.raises(Unknown):
        describe(CocoCaptions(object(), [object()]))


def test_large_tables_of_ones_own_are_mapped_from_files_that_vanish(monkeypatch, kept):
    monkeypatch.setattr(cache, "SMALL", 0)
    samples = read(Own())
    folder = samples.tables.folder
    assert folder.is_dir()
    assert samples[0].texts["captions"][0].text == "x"
    del samples
    assert not folder.exists()


def test_where_nothing_can_be_written_it_is_read_all_the_same(reader, tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").write_text("a file")
    samples = read(reader)
    assert list(samples) == reader.read("val")
    assert samples.tables.folder is None

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "cache").unlink()
    monkeypatch.setattr(cache, "write_tables", full)
    assert list(read(reader)) == reader.read("val")


def test_a_file_of_several_splits_is_parsed_once(tmp_path, monkeypatch):
    parsed = []
    read_json = coco.read_json
    monkeypatch.setattr(coco, "read_json", lambda path: (parsed.append(path.name), read_json(path))[1])
    monkeypatch.setattr(child, "CAN_FORK", False)  # so that it is seen here
    write_json(tmp_path / "dataset_coco.json", karpathy())
    reader = CocoCaptions(str(tmp_path / "dataset_coco.json"), str(write_photos(tmp_path / "images")))
    roles = {"train": ["train", "restval"], "val": ["val"]}
    splits = Splits({"a": Source(reader, roles, 2, {"captions": 1})})
    assert [len(splits.samples("a", role)) for role in ("train", "val")] == [3, 1]
    assert parsed == ["dataset_coco.json"]
    with pytest.raises(DataError, match="no entries of split 'tset'"):
        read(reader, "tset")
    assert len(parsed) == 2  # nothing is held when the tables are made


def test_what_reading_warns_of_is_told_by_every_run(tmp_path):
    vg = make_world(tmp_path / "world") / "vg"
    rows = json.loads((vg / "region_descriptions.json").read_text())
    rows[0]["regions"][0]["width"] = 0
    (vg / "region_descriptions.json").write_text(json.dumps(rows))
    files = (str(vg / "images"), str(vg / "image_data.json"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 12 boxes are left out"):
            read(VisualGenome(*files, regions=str(vg / "region_descriptions.json")), "train", "expressions")


def test_an_error_of_the_child_is_the_users_sentence_or_has_its_own_trace():
    assert child.in_child(lambda: os.getpid()) != os.getpid()

    def told():
        raise DataError("a sentence")

    with pytest.raises(DataError, match=r"^a sentence$"):
        child.in_child(told)

    def failing():
        raise KeyError(os.getpid())

    with pytest.raises(KeyError, match=str(os.getpid())):
        child.in_child(failing)
    here = os.getpid()
    assert child.in_child(lambda: os.kill(os.getpid(), 9) if os.getpid() != here else "done here") == "done here"


OPENED: list[tuple[str, str]] = []
IS_HEARD = [False]


def hear(event: str, arguments: tuple) -> None:
    if IS_HEARD[0] and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | Path):
        OPENED.append((event, os.path.abspath(arguments[0])))


def test_every_reader_notes_all_that_it_reads(tmp_path):
    """Else what was made of a file would be taken for new when the file has changed."""
    world = make_world(tmp_path / "world")
    sys.addaudithook(hear)  # for good, hence the switch
    seen = 0
    for name in choices("data"):
        root = world / name if name.startswith("drawn_") else world
        config = training_config(f"data={name}", f"data.root={root}")
        config.tokenizer = None
        if root != world:
            instantiate(config.data.prepare, clips=10)()
        for source in instantiate(config.data).sources.values():
            for split in {split for splits in source.splits.values() for split in splits}:
                OPENED.clear()
                with noting() as files, warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    IS_HEARD[0] = True
                    try:
                        source.reader.read(split)
                    except DataError:  # what the world lacks
                        continue
                    finally:
                        IS_HEARD[0] = False
                below = {(event, path) for event, path in OPENED if path.startswith(str(world))}
                assert {path for _, path in below} <= files.seen.keys(), (name, split)
                assert all(files.seen[path].kind == FOLDER for event, path in below if event != "open")
                seen += len(below)
    assert seen > 30
