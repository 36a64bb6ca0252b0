"""A folder that one living process holds, with the system's locks and without."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusionkit.errors import ConfigError
from fusionkit.files import lock
from fusionkit.files.lock import HOLDER, NAME, locked_folder

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
import fusionkit.files.lock as lock
if sys.argv[2] == "named":
    lock._flock = lambda handle: False
with lock.locked_folder(Path(sys.argv[1]), "a run writes"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["flock", "named"])
def way(request, monkeypatch):
    """The system's locks, or a disk that has none."""
    if request.param == "named":

        def refuse(handle, how):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(lock.fcntl, "flock", refuse)
    return request.param


def test_a_folder_that_is_held_is_refused_and_left_as_it_is(tmp_path, way):
    folder = tmp_path / "runs/a"
    command, environment = [sys.executable, "-c", HOLD, str(folder), way], {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        own = folder / {"flock": NAME, "named": HOLDER}[way]
        before = own.read_bytes()
        with pytest.raises(ConfigError) as caught, locked_folder(folder, "another run writes"):
            pass
        assert str(caught.value) == (
            f"another run writes in {folder} (process {holder.pid} on {socket.gethostname()}); wait for its end, or give another "
            "output_dir=FOLDER"
        )
        assert own.read_bytes() == before
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked_folder(folder, "another run writes"):  # a dead one holds nothing
            assert json.loads(own.read_text())["process"] == os.getpid()
    finally:
        holder.kill()
    assert list(folder.iterdir()) == []


def test_what_was_made_for_nothing_goes_again(tmp_path, way):
    with locked_folder(tmp_path / "a/b", "x"):
        assert (tmp_path / "a/b" / NAME).is_file()
    assert list(tmp_path.iterdir()) == []
    with locked_folder(tmp_path / "a/b", "x"):
        (tmp_path / "a/b/kept").touch()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["kept"]


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """The file that is the lock where the disk has none."""
    monkeypatch.setattr(lock, "_flock", lambda handle: False)
    return tmp_path / HOLDER


def age(path: Path) -> None:
    old = time.time() - lock.STALE - 1
    os.utime(path, (old, old))


def test_a_holder_of_another_machine_is_taken_for_dead_after_a_while(tmp_path, holder):
    holder.write_text(json.dumps({"process": 1, "host": "elsewhere", "began": ""}))
    with pytest.raises(ConfigError, match="process 1 on elsewhere"), locked_folder(tmp_path, "x"):
        pass
    age(holder)
    with locked_folder(tmp_path, "x"):
        assert json.loads(holder.read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("process", [os.getppid, os.getpid])  # in a container that was started again it is the same one
def test_a_number_that_another_process_has_now_is_no_holder(tmp_path, holder, process):
    holder.write_text(json.dumps({"process": process(), "host": socket.gethostname(), "began": "1"}))
    with locked_folder(tmp_path, "x"):
        assert json.loads(holder.read_text()) == lock._self()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": "a"}'])
def test_a_file_that_says_nothing_is_being_written_or_old(tmp_path, holder, text):
    holder.write_text(text)
    with pytest.raises(ConfigError, match=r"^x in .*; wait for its end"), locked_folder(tmp_path, "x"):
        pass
    age(holder)
    with locked_folder(tmp_path, "x"):
        pass


def test_of_two_who_find_a_dead_holder_one_holds_the_folder(tmp_path, holder, monkeypatch):
    holder.write_text(json.dumps({"process": 1, "host": "elsewhere", "began": ""}))
    age(holder)
    quicker = {"process": 2, "host": "there", "began": ""}

    def be_slow(path, found):
        monkeypatch.undo()
        monkeypatch.setattr(lock, "_flock", lambda handle: False)
        holder.write_text(json.dumps(quicker))  # anew, by the other
        return False

    monkeypatch.setattr(lock, "_lives", be_slow)
    with pytest.raises(ConfigError, match="process 2 on there"), locked_folder(tmp_path, "x"):
        pass
    assert json.loads(holder.read_text()) == quicker
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, HOLDER]


def test_one_that_was_taken_for_dead_leaves_the_lock_of_the_next(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(lock, "SIGN", 0.01)
    other = json.dumps({"process": 2, "host": "there", "began": ""})
    with locked_folder(tmp_path, "x"):
        holder.write_text(other)
        age(holder)
        time.sleep(0.2)
        assert time.time() - holder.stat().st_mtime > lock.STALE
    assert holder.read_text() == other


def test_a_lock_of_another_user_is_held_without_writing_it(tmp_path, monkeypatch):
    def allow(path, flags, *mode, real=os.open):
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *mode)

    (tmp_path / NAME).touch()
    monkeypatch.setattr(lock.os, "open", allow)
    with locked_folder(tmp_path, "x"), pytest.raises(ConfigError, match="x in"), locked_folder(tmp_path, "x"):
        pass


def test_a_lock_that_cannot_be_written_is_held(tmp_path, monkeypatch):
    def refuse(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.os, "pwrite", refuse)
    with locked_folder(tmp_path, "x"), pytest.raises(ConfigError, match="x in"), locked_folder(tmp_path, "x"):
        pass
    with locked_folder(tmp_path, "x"):
        pass


def test_a_fork_does_not_hold_what_its_parent_held(tmp_path):
    with locked_folder(tmp_path, "x"):
        (handle,) = lock._HANDLES
        process = os.fork()
        if process == 0:
            try:
                os.fstat(handle)
            except OSError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(process, 0)[1] == 0
        os.fstat(handle)
    assert not lock._HANDLES


def test_a_folder_is_left_as_it_was_wherever_one_stands(tmp_path, way, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with locked_folder(Path("a"), "x"):
        monkeypatch.chdir(tmp_path / "there")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
