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
from fusionkit.files.lock import NAME, locked_folder

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
        before = (folder / NAME).read_bytes()
        with pytest.raises(ConfigError) as caught, locked_folder(folder, "another run writes"):
            pass
        assert str(caught.value) == (
            f"another run writes in {folder} (process {holder.pid} on {socket.gethostname()}); wait for its end, or give another "
            "output_dir=FOLDER"
        )
        assert (folder / NAME).read_bytes() == before
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked_folder(folder, "another run writes"):  # a dead one holds nothing
            assert json.loads((folder / NAME).read_text())["process"] == os.getpid()
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


def test_a_holder_of_another_machine_is_taken_for_dead_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_flock", lambda handle: False)
    path = tmp_path / NAME
    path.write_text(json.dumps({"process": 1, "host": "elsewhere", "began": ""}))
    with pytest.raises(ConfigError, match="process 1 on elsewhere"), locked_folder(tmp_path, "x"):
        pass
    old = time.time() - lock.STALE - 1
    os.utime(path, (old, old))
    with locked_folder(tmp_path, "x"):
        assert json.loads(path.read_text())["process"] == os.getpid()


def test_a_number_that_another_process_has_now_is_no_holder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_flock", lambda handle: False)
    (tmp_path / NAME).write_text(json.dumps({"process": os.getppid(), "host": socket.gethostname(), "began": "1"}))
    with locked_folder(tmp_path, "x"):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": "a"}'])
def test_a_file_that_says_nothing_is_no_holder(tmp_path, monkeypatch, text):
    monkeypatch.setattr(lock, "_flock", lambda handle: False)
    (tmp_path / NAME).write_text(text)
    with locked_folder(tmp_path, "x"):
        pass
