"""An index of a folder: what is embedded and what is kept, what a killed run leaves, and what is refused."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from fusionkit.data.tables.table import digest_of
from fusionkit.errors import ConfigError, DataError
from fusionkit.inference import image_index, index_update
from fusionkit.inference.image_index import ImageIndex, Maker
from fusionkit.inference.index_update import Update, update_index

MAKER = Maker("checkpoint=a.ckpt", "weights", "reading", "32-true")
WIDTH, BATCH = 4, 3


class Encoder:
    """Gives the mean colour of a picture, in batches, and knows which it has seen; stops before the batch of that number."""

    def __init__(self, stop_at: int = -1) -> None:
        self.seen: list[str] = []
        self.stop_at = stop_at

    def __call__(self, files: Sequence[Path]) -> Iterator[tuple[list[int], torch.Tensor, dict[int, str]]]:
        for number, start in enumerate(range(0, len(files), BATCH)):
            if number == self.stop_at:
                raise KeyboardInterrupt
            places, vectors, faults = [], [], {}
            for place, path in enumerate(files[start : start + BATCH], start=start):
                self.seen.append(path.name)
                try:
                    vectors.append(vector(path))
                    places.append(place)
                except OSError:
                    faults[place] = f"{path} cannot be decoded"
            yield places, torch.stack(vectors) if vectors else torch.zeros(0, WIDTH), faults


def vector(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        color = image.convert("RGB").getpixel((0, 0))
    return torch.nn.functional.normalize(torch.tensor([*color, 1.0]), dim=0)  # type: ignore[misc]


def paint(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number % 256, 3 * number % 256, 90)).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(30):
        paint(tmp_path / "photos" / f"{'in/' * (number % 3)}{number:02}.png", number)
    return tmp_path / "photos"


def update(images: Path, encoder: Encoder | None = None, maker: Maker = MAKER, reads: str = "pixel_values") -> Update:
    return update_index(images.parent / "index", images, reads, maker, WIDTH, encoder or Encoder())


def opened(images: Path, maker: Maker = MAKER) -> ImageIndex:
    return ImageIndex(images.parent / "index", maker, WIDTH)


def require_whole(images: Path) -> None:
    """Each row's vector is that of the file that it names; nothing else lies in the folder."""
    index = opened(images)
    assert len(index) == len(index.rows())
    for row, told in enumerate(index.rows()):
        assert index.path(row) == images / told.image
        np.testing.assert_array_equal(index.features[row], vector(index.path(row)).numpy())
    kinds = sorted(path.name.partition("-")[0] for path in index.folder.iterdir())
    assert [kind for kind in kinds if kind != "index.lock"] == ["features", "index.json", "table"]


def test_all_pictures_are_embedded_once_and_then_kept(images: Path) -> None:
    encoder = Encoder()
    assert str(update(images, encoder)).startswith(
        "30 embedded, 0 as they were, 0 renamed, 0 of known bytes, 0 dropped, 0 could"
    )
    assert sorted(encoder.seen) == [f"{number:02}.png" for number in range(30)]
    require_whole(images)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (images.parent / "index").glob("*-*"))
    encoder = Encoder()
    assert update(images, encoder) == Update(kept=30)
    assert encoder.seen == []
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in (images.parent / "index").glob("*-*"))


def test_only_what_has_changed_is_embedded_again(images: Path) -> None:
    update(images)
    for number in range(10):
        path = next(images.rglob(f"{number:02}.png"))
        state = path.stat()
        paint(path, 100 + number)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # the bytes tell, not the time
    encoder = Encoder()
    assert update(images, encoder) == Update(embedded=10, kept=20)
    assert sorted(encoder.seen) == [f"{number:02}.png" for number in range(10)]
    require_whole(images)


def test_renamed_copied_and_vanished_pictures(images: Path) -> None:
    update(images)
    (images / "00.png").rename(images / "zz.png")
    shutil.copy(images / "03.png", images / "copy.png")
    shutil.copy(images / "03.png", images / "in/copy.png")
    (images / "06.png").unlink()
    (images / "09.png").unlink()
    paint(images / "new.png", 200)
    shutil.copy(images / "new.png", images / "new_copy.png")
    encoder = Encoder()
    assert update(images, encoder) == Update(embedded=1, kept=27, renamed=1, copied=3, dropped=2)
    assert encoder.seen == ["new.png"]
    require_whole(images)


def test_a_folder_that_was_moved_keeps_its_index_and_another_one_is_refused(images: Path, tmp_path: Path) -> None:
    update(images)
    shutil.copytree(images, tmp_path / "other")
    with pytest.raises(
        ConfigError, match=r"is of the images of .*photos, and not of .*other; name another folder as index"
    ):
        update(tmp_path / "other")
    shutil.rmtree(images)
    encoder = Encoder()
    assert update(tmp_path / "other", encoder) == Update(kept=30)
    assert encoder.seen == []
    require_whole(tmp_path / "other")


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_a_stopped_run_goes_on(images: Path, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_update, "SECONDS", seconds)
    first, second, third = Encoder(stop_at=4), Encoder(stop_at=2), Encoder()
    for encoder in (first, second):
        with pytest.raises(KeyboardInterrupt):
            update(images, encoder)
        with pytest.raises(
            DataError, match=r"index=.*index is half made; the same command with images=FOLDER goes on with it"
        ):
            opened(images)
    with pytest.raises(
        ConfigError, match=r"was made by checkpoint=a\.ckpt, whose weights are others than those of checkpoint=b"
    ):
        update(images, maker=replace(MAKER, checkpoint="checkpoint=b.ckpt", weights="others"))
    assert update(images, third) == Update(embedded=12, copied=18)
    assert [len(encoder.seen) for encoder in (first, second, third)] == [12, 6, 12]
    assert len({*first.seen, *second.seen, *third.seen}) == 30
    require_whole(images)


def test_a_damaged_part_is_embedded_again(images: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(index_update, "SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        update(images, Encoder(stop_at=4))
    parts = sorted((images.parent / "index/.fusionkit-parts").glob("*.pt"))
    assert len(parts) == 4
    parts[1].write_bytes(parts[1].read_bytes()[:-40])
    (parts[0].parent / "notes.pt").write_text("somebody's")
    encoder = Encoder()
    assert update(images, encoder) == Update(embedded=21, copied=9)
    assert len(encoder.seen) == 21
    assert f"{parts[1]} is damaged; what was in it is embedded again" in capsys.readouterr().out
    assert [path.name for path in parts[0].parent.iterdir()] == ["notes.pt"]  # it is not ours
    shutil.rmtree(parts[0].parent)
    require_whole(images)


def test_no_file_of_somebody_else_is_removed(images: Path) -> None:
    (images / "parts").mkdir()
    paint(images / "parts/a.png", 99)
    for folder in (images, images.parent):  # of pictures, and of a run that has features of its own
        with pytest.raises(ConfigError, match=r"holds other files .*; name a new folder as index=DIR"):
            update_index(folder, images, "pixel_values", MAKER, WIDTH, Encoder())
    assert (images / "parts/a.png").exists()
    update(images)
    (images.parent / "index/features-coco.npy").write_bytes(b"mine")
    paint(images / "another.png", 98)
    assert update(images).embedded == 1
    assert (images.parent / "index/features-coco.npy").read_bytes() == b"mine"


def test_an_update_that_is_stopped_leaves_the_index_of_before(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update(images)
    paint(images / "new.png", 200)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index_update, "write_index", stop)
    with pytest.raises(KeyboardInterrupt):
        update(images)
    assert len(opened(images)) == 30
    monkeypatch.undo()
    encoder = Encoder()
    assert update(images, encoder) == Update(kept=30, copied=1)
    assert encoder.seen == []
    require_whole(images)


def test_pictures_that_cannot_be_read_are_named_and_the_others_kept(images: Path, tmp_path: Path) -> None:
    (images / "03.png").write_bytes(b"no picture")
    (images / "twin.png").write_bytes(b"no picture")
    (images / "nowhere.png").symlink_to(images / "nothing.png")
    os.mkfifo(images / "pipe.png")
    (tmp_path / "secret").mkdir()
    paint(tmp_path / "secret/x.png", 7)
    (images / "out.png").symlink_to(tmp_path / "secret/x.png")
    (images / "out").symlink_to(tmp_path / "secret")
    (images / "alias.png").symlink_to(images / "00.png")
    found = update(images)
    assert (found.embedded, found.copied, found.outside) == (29, 1, 1)
    assert sorted(found.faults) == ["03.png", "nowhere.png", "pipe.png", "twin.png"]
    assert "it is no file" in found.faults["pipe.png"]
    assert "1 links that lead out of the folder left out" in str(found)
    require_whole(images)
    (images / "06.png").write_bytes(b"torn")
    assert (update(images).dropped, len(opened(images))) == (1, 29)
    require_whole(images)


def test_a_picture_that_changes_while_it_is_read_is_none(images: Path) -> None:
    class Painter(Encoder):
        def __call__(self, files: Sequence[Path]) -> Iterator[tuple[list[int], torch.Tensor, dict[int, str]]]:
            for batch in super().__call__(files):
                (images / "00.png").write_bytes(b"other bytes")
                yield batch

    found = update(images, Painter())
    assert (found.embedded, list(found.faults)) == (29, ["00.png"])
    assert "changed while it was read" in found.faults["00.png"]
    require_whole(images)


@pytest.mark.skipif(os.name != "posix", reason="names are bytes")
def test_any_name_is_kept(tmp_path: Path) -> None:
    names = ["a\nb.png", os.fsdecode(b"\xff\xfe.png"), "ảnh 🐈.png", " .png", "=1'\".png"]
    for number, name in enumerate(names):
        paint(tmp_path / "photos" / name, number)
    assert update(tmp_path / "photos").embedded == 5
    assert {row.image for row in opened(tmp_path / "photos").rows()} == set(names)
    assert update(tmp_path / "photos") == Update(kept=5)
    require_whole(tmp_path / "photos")


def test_folders_without_pictures_are_refused_and_lose_no_index(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images=.*nothing is no folder; give one that holds pictures"):
        update(tmp_path / "nothing")
    assert not (tmp_path / "index").exists()
    update(images)
    for path in images.rglob("*.png"):
        path.write_bytes(b"torn" + path.name.encode())
    with pytest.raises(DataError, match=r"of its 30 pictures none can be read: .*\.png cannot be decoded"):
        update(images)
    with pytest.raises(DataError, match=r"images=.*photos holds no \.npz file; give another folder"):
        update(images, reads="regions")
    shutil.rmtree(images)
    images.mkdir()
    with pytest.raises(DataError, match=r"images=.*photos holds no picture; give another folder"):
        update(images)
    assert len(opened(images)) == 30


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("features-*.npy", lambda data: data[:-1] + b"x", "bytes of features-.* are not those that were written"),
        ("features-*.npy", lambda data: data[:100], "bytes of features"),
        ("features-*.npy", None, "features-.*: No such file"),
        ("table-*.arrow", lambda data: data[:-9], "bytes of table"),
        ("index.json", lambda data: data[:-9], "index.json is not what was written"),
        ("index.json", lambda data: b"", "index.json is not what was written"),
        (
            "index.json",
            lambda data: data.replace(b"features-", b"../features-"),
            "does not say what an index is made of",
        ),
        ("index.json", lambda data: data.replace(b'"images"', b'"image"'), "index.json is not what was written"),
    ],
)
def test_a_damaged_index_is_refused(images: Path, name: str, change, sentence: str) -> None:
    update(images)
    (path,) = (images.parent / "index").glob(name)
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    for attempt in (opened, update):
        with pytest.raises(
            DataError, match=f"index=.*index is damaged .*{sentence}.*; remove it, and make it anew with images"
        ):
            attempt(images)


def rewrite(images: Path, kind: str, write: Callable[[Path], None]) -> None:
    """Put other content in a file of the index, as somebody would who means it: the hash is that of the content."""
    about_path = images.parent / "index/index.json"
    about = json.loads(about_path.read_text())
    path = about_path.parent / about[kind]["name"]
    write(path)
    about[kind]["digest"] = digest_of(path)
    about_path.write_text(json.dumps(about))


def names(*replaced: str | None) -> Callable[[Path], None]:
    """Give the first images of a table other names."""

    def write(path: Path) -> None:
        table = pa.ipc.open_file(path.read_bytes()).read_all()
        column = [name if name is None else os.fsencode(name) for name in replaced]
        whole = pa.array([*column, *table["image"].to_pylist()[len(column) :]], pa.binary())
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table.set_column(0, table.schema.field(0), whole))

    return write


def features(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        np.save(path, change(np.load(path)))

    return write


@pytest.mark.parametrize(
    ("kind", "write", "sentence"),
    [
        ("table", names("../private.png"), "a name in it leads out of the folder of images"),
        ("table", names("a.png", "/etc/passwd"), "a name in it leads out of the folder of images"),
        ("table", names("a\0b.png"), "a name in it leads out of the folder of images"),
        ("table", names(None), "its files do not belong together"),
        ("table", lambda path: path.write_bytes(b""), ""),
        ("features", features(lambda x: np.where(x > 0, np.float32("nan"), x)), "it holds numbers that are not finite"),
        ("features", features(lambda x: x.astype(np.float64)), "holds other numbers"),
        ("features", features(lambda x: x[1:]), "its files do not belong together"),
        ("features", lambda path: path.write_bytes(b""), ""),
        ("features", lambda path: path.write_bytes(b"PK\x03\x04" + b"x" * 40), ""),
        ("features", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x08\x00((((((((" + b"x" * 64), ""),
    ],
)
def test_an_index_of_somebody_else_is_checked(images: Path, kind: str, write, sentence: str) -> None:
    update(images)
    rewrite(images, kind, write)
    with pytest.raises(DataError, match=f"index=.*index is damaged .*{sentence}.*; remove it, and make it anew"):
        opened(images)


def test_a_reader_beside_an_update_reads_what_takes_its_place(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update(images)
    hashed = list[Path]()

    def hash_later(path: Path) -> str:
        hashed.append(path)
        if len(hashed) == 1:  # the reader knows its name already
            paint(images / "new.png", 200)
            update(images)
        return digest_of(path)

    monkeypatch.setattr(image_index, "digest_of", hash_later)
    assert len(opened(images)) == 31


def test_an_index_names_its_images_wherever_one_stands(images: Path) -> None:
    update(images)
    path = images.parent / "index/index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": "images"}))
    with pytest.raises(DataError, match="does not say what an index is made of"):
        opened(images)


def test_what_is_no_index_of_this_version_or_size_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; make one there with images=FOLDER"):
        opened(images)
    (tmp_path / "index").mkdir()
    with pytest.raises(DataError, match="holds no index; make one"):
        opened(images)
    update(images)
    with pytest.raises(DataError, match="its files do not belong together"):
        ImageIndex(tmp_path / "index", MAKER, WIDTH + 1)
    path = tmp_path / "index/index.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"fusionkit index": 2}))
    with pytest.raises(DataError, match="of another version of fusionkit"):
        opened(images)
    for other in ("[1]", '{"name": "a web page"}'):
        path.write_text(other)
        with pytest.raises(DataError, match="is a file of something else; name another folder"):
            update(images)
        assert path.read_text() == other


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({"weights": "b"}, "weights are"),
        ({"reading": "b"}, "ways to read images are"),
        ({"precision": "bf16-mixed"}, "precision are"),
        ({"weights": "b", "reading": "b"}, "weights and ways to read images are"),
    ],
)
def test_an_index_of_another_checkpoint_is_refused(images: Path, changes: dict[str, str], differ: str) -> None:
    update(images)
    other = replace(MAKER, checkpoint="checkpoint=b.ckpt", **changes)
    for attempt in (opened, lambda images, maker: update(images, maker=maker)):
        with pytest.raises(
            ConfigError, match=rf"was made by checkpoint=a\.ckpt, whose {differ} others than those of checkpoint=b"
        ):
            attempt(images, other)
    assert len(opened(images, replace(MAKER, checkpoint="checkpoint=moved.ckpt"))) == 30
