"""What is written is whole or not there, whatever happens on the way."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionkit.cli.error_messages import translate
from fusionkit.errors import DataError
from fusionkit.files import atomic as storage
from fusionkit.files.atomic import atomic_folder, atomic_write, refused, remove_leftovers, write_text, writing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def fill(path: Path) -> None:
    """Write half a file; then the disk is full."""
    with atomic_write(path) as file:
        file.write(b"half")
        raise full()


def fill_folder(place: Path, advice: str) -> None:
    with atomic_folder(place, advice) as folder:
        (folder / "a").write_text("a")
        raise full()


def test_a_failed_write_leaves_the_old_file_and_says_so(tmp_path):
    path = tmp_path / "deep" / "new" / "x.json"
    write_text(path, "old")
    words = r"x\.json cannot be written \(No space left on device\), and the one before is whole; make room"
    with pytest.raises(DataError, match=words):
        fill(path)
    assert (names(path.parent), path.read_text()) == (["x.json"], "old")
    with (
        pytest.raises(DataError, match="nothing is left of it; give another"),
        atomic_write(tmp_path / "y", advice="give another"),
    ):
        raise full()
    with pytest.raises(KeyError), atomic_write(path):  # a defect of ours keeps its trace, and leaves as little
        raise KeyError
    assert names(path.parent) == ["x.json"]


def test_the_file_is_flushed_before_it_has_its_name(tmp_path, monkeypatch):
    path, flushed = tmp_path / "x", []
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append((path.read_text(), os.fstat(handle).st_size)))
    write_text(path, "newer")
    assert flushed == [("old", 5), ("newer", tmp_path.stat().st_size)]


def test_a_file_that_the_disk_keeps_to_itself_is_not_taken(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(errno.EIO, "Input/output error")

    write_text(tmp_path / "x", "old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError, match="Input/output error"):
        write_text(tmp_path / "x", "new")
    assert (names(tmp_path), (tmp_path / "x").read_text()) == (["x"], "old")


def test_the_mode_is_that_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_stays_one(tmp_path):
    (tmp_path / "far").mkdir()
    write_text(tmp_path / "far" / "x", "old")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "x")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "x").read_text() == "new"


@pytest.mark.parametrize("has_links", [True, False])
def test_the_one_before_is_kept(tmp_path, monkeypatch, has_links):
    def fail(*paths):
        raise OSError(errno.EPERM, "no links here")

    if not has_links:
        monkeypatch.setattr(os, "link", fail)
    for text in ("first", "second", "third"):
        with atomic_write(tmp_path / "x", previous=tmp_path / "y") as file:
            file.write(text.encode())
        assert (tmp_path / "y").exists() == (text != "first")
    assert [(tmp_path / name).read_text() for name in ("x", "y")] == ["third", "second"]
    assert names(tmp_path) == ["x", "y"]


def test_at_each_moment_there_is_one_that_is_whole(tmp_path):
    """A process that writes without end is killed at any moment."""
    script = """
import sys
from pathlib import Path
from fusionkit.files.atomic import atomic_write
path = Path(sys.argv[1])
for number in range(10**6):
    with atomic_write(path, previous=path.with_name("previous")) as file:
        for part in range(4):
            file.write(bytes([number % 256]) * 50_000)
            if number == 3 and part == 0: print("ready", flush=True)
"""
    for delay in (0.0, 0.011, 0.027):
        writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "x")], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        for name in ("x", "previous"):
            content = (tmp_path / name).read_bytes()
            assert len(content) == 200_000
            assert len(set(content)) == 1


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    kept = [".fusionkit-1.txt", "fusionkit-1.tmp", "x.tmp"]
    for name in (*kept, ".fusionkit-1.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".fusionkit-2.tmp").mkdir()
    (tmp_path / ".fusionkit-2.tmp" / "config.json").touch()
    remove_leftovers(tmp_path)  # another process may be at it
    assert len(names(tmp_path)) == 5
    for name in (".fusionkit-1.tmp", ".fusionkit-2.tmp"):
        os.utime(tmp_path / name, (0, time.time() - 2 * storage.ABANDONED))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(kept)
    (tmp_path / ".fusionkit-3.tmp").touch()
    remove_leftovers(tmp_path, 0)
    remove_leftovers(tmp_path / "nowhere", 0)
    assert names(tmp_path) == sorted(kept)


def test_a_folder_appears_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "deep" / "new"):
        with atomic_folder(place) as folder:
            (folder / "a" / "b").mkdir(parents=True)
            (folder / "a" / "b" / "c").write_text("c")
            assert not place.exists() or not names(place)
        assert (place / "a" / "b" / "c").read_text() == "c"
    with pytest.raises(DataError, match="nothing is left of it; take another"):
        fill_folder(tmp_path / "half", "take another")
    with pytest.raises(DataError, match="empty cannot be written"), atomic_folder(tmp_path / "empty"):
        pass
    assert names(tmp_path) == ["deep", "empty"]
    assert names(tmp_path / "deep") == ["new"]
    assert names(tmp_path / "empty") == ["a"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_of_a_folder_are_readable_as_any_new_one(mask, tmp_path):
    """A library may have made one for its user alone (safetensors does)."""
    before = os.umask(mask)
    try:
        with atomic_folder(tmp_path / "made") as folder:
            os.close(os.open(folder / "own", os.O_CREAT | os.O_WRONLY, 0o600))
            (folder / "inner").mkdir()
        (tmp_path / "plain").touch()
        (tmp_path / "other").mkdir()
    finally:
        os.umask(before)
    assert (tmp_path / "made/own").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "made/inner").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_a_folder_holds_is_flushed(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda handle: sizes.append(os.fstat(handle).st_size))
    with atomic_folder(tmp_path / "new") as folder:
        (folder / "a").write_text("x" * 777)
    assert 777 in sizes


def test_what_the_disk_refuses_is_a_sentence_wherever_it_is_met():
    error = OSError(errno.ENOSPC, "No space left on device", "logs/metrics.csv")
    assert str(refused(error)).startswith("logs/metrics.csv: No space left on device; make room")
    assert str(refused(full())).startswith("No space left on device; make room")
    assert str(refused(PermissionError(errno.EACCES, "Permission denied", "a.json"))) == (
        "a.json: Permission denied; see to its permissions and its disk, or choose another place"
    )
    assert refused(FileNotFoundError(errno.ENOENT, "No such file")) is None
    assert isinstance(translate(error), DataError)
    assert translate(FileNotFoundError(errno.ENOENT, "No such file")) is None
    with pytest.raises(DataError, match=r"x cannot be written \(full\)"), writing(Path("x")):
        raise OSError("full")
