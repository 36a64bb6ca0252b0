"""Processes that begin with the libraries imported: they are forked from one that has done nothing but that.

The imports of a command take as long as a hundred steps of a test's model. Only whose time is tested, or whose start, needs a
process that begins with nothing. Two are there to fork from, of different hash seeds, as the processes of a user have.
"""

import atexit
import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

SET_CHILD_SUBREAPER = 36  # of Linux's prctl: whose parent has ended becomes our child
SEEDS = ("1", "2")
ENVIRONMENT = dict(os.environ)  # before any test has changed it
IMPORTED = ("fusionkit.commands.train", "fusionkit.commands.evaluate", "transformers.models.bert.modeling_bert")
LOOK = 0.01


class Process:
    """What ``subprocess.Popen`` gives, as far as it is used, of a process that was forked elsewhere and is our child."""

    def __init__(self, pid: int, args: Sequence[str]) -> None:
        self.pid, self.args, self.returncode = pid, args, None
        self._looking = threading.Lock()

    def poll(self) -> int | None:
        return self._look()

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self._look()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
            time.sleep(LOOK)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self) -> int | None:
        with self._looking:
            if self.returncode is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:  # it never became ours
                    pid, status = self.pid, 1 << 8
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode


class Warm:
    """Starts commands as ``subprocess.Popen`` does: those of Python, once its files are imported, by a fork."""

    def __init__(self) -> None:
        self.sources: list[tuple[Any, socket.socket]] = []
        self.launches = 0
        self._asking = threading.Lock()

    def __call__(
        self, command: Sequence[str], env: Mapping[str, str], stdout: IO[str] | None = None, stderr: int | None = None
    ) -> Any:
        if command[0] != sys.executable or command[1] in ("-c", "-S") or sys.platform != "linux":
            return subprocess.Popen(command, env=dict(env), stdout=stdout, stderr=stderr)
        with self._asking:
            return self._fork(command, env, stdout, stderr)

    def _fork(
        self, command: Sequence[str], env: Mapping[str, str], stdout: IO[str] | None, stderr: int | None
    ) -> Process:
        place = int(env.get("RANK", "0"))
        self.launches += place == 0
        _, way = self._sources()[(place + self.launches) % len(SEEDS)]
        out = stdout.fileno() if stdout else 1
        asked = json.dumps([list(command[1:]), dict(env), os.getcwd()]).encode()
        _subreaper(True)
        try:
            socket.send_fds(way, [len(asked).to_bytes(4, "big")], [0, out, out if stderr == subprocess.STDOUT else 2])
            way.sendall(asked)
            if len(number := way.recv(4, socket.MSG_WAITALL)) < 4:
                raise RuntimeError("the process to fork from has ended; what it says stands above")
            return Process(int.from_bytes(number, "big"), command)
        finally:
            _subreaper(False)

    def _sources(self) -> list[tuple[Any, socket.socket]]:
        """The processes to fork from, started at the first call: they import beside each other."""
        for seed in SEEDS[len(self.sources) :]:
            ours, theirs = socket.socketpair()
            environment = {**ENVIRONMENT, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
            root = str(Path(__file__).parents[1])
            environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [ENVIRONMENT.get("PYTHONPATH")])])
            command = [sys.executable, __file__, str(theirs.fileno())]
            source = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], cwd=root)
            theirs.close()
            self.sources.append((source, ours))
        return self.sources

    def close(self) -> None:
        for source, way in self.sources:
            way.close()
            source.kill()  # sooner than by itself, which takes apart what it has imported
            source.wait()


def _subreaper(on: bool) -> None:
    if ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, int(on), 0, 0, 0):
        raise OSError("this system does not let a process adopt another's children")


def serve(way: socket.socket) -> list[str]:
    """Fork for whoever asks until nobody does; gives, in the fork, the command that it is to do."""
    starter = os.getppid()
    while True:
        size, files, _, _ = socket.recv_fds(way, 4, 3)
        if not size:
            os._exit(0)
        command, environment, folder = json.loads(way.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
        reading, writing = os.pipe()
        if not (middle := os.fork()):
            if pid := os.fork():
                os.write(writing, pid.to_bytes(4, "big"))
                os._exit(0)
            break
        os.waitpid(middle, 0)
        way.sendall(os.read(reading, 4))
        for file in (*files, reading, writing):
            os.close(file)
    for file in (way.detach(), reading, writing):
        os.close(file)
    while (parent := os.getppid()) != starter:
        if parent == 1:  # who asked has ended
            os._exit(1)
        time.sleep(LOOK / 10)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    as_begun(environment)
    return command


def as_begun(environment: Mapping[str, str]) -> None:
    """What libraries read of the environment when they are imported, read anew."""
    import torch
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    rank_zero_only.rank = _get_rank() or 0
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS") or 1))


def main(command: list[str]) -> None:
    """Do what ``python COMMAND`` does, and end."""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    is_module = command[0] == "-m"
    first = os.getcwd() if is_module else str(Path(command[0]).parent)
    sys.path[:] = dict.fromkeys([first, *filter(None, named), *sys.path])
    sys.argv = command[is_module:]
    code: Any = 0
    try:
        if is_module:
            sys.modules.pop(command[1], None)
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)  # what was imported is not taken apart


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file
    connection = socket.socket(fileno=int(sys.argv[1]))
    for name in IMPORTED:
        __import__(name)
    main(serve(connection))
