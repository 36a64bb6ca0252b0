"""Signals are noted or raised, passed on once, and nothing outlives the process that started it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusionkit import signals
from fusionkit.signals import REQUEUE, Stopped, asked, children, held, listening

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
CHILD = """
import os, sys, time
from fusionkit.signals import end_with_parent
end_with_parent()
os.write(1, f"{os.getpid()}\\n".encode())  # at once, or two of them mix
time.sleep(60)
"""
WORKERS = """
import multiprocessing, os, sys, time
from fusionkit.signals import begin_worker
def work():
    begin_worker()
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(60)
if __name__ == "__main__":
    for _ in range(2):
        multiprocessing.get_context(sys.argv[1]).Process(target=work, daemon=True).start()
    sys.stdin.readline()
"""
PARENT = f"""
import os, subprocess, sys, time
from fusionkit.signals import child_environment
for _ in range(2):
    subprocess.Popen([sys.executable, "-c", {CHILD!r}], env={{**os.environ, **child_environment()}})
time.sleep(60)
"""


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def are_dead(processes: list[int]) -> bool:
    """Whether all are, in ten seconds at most."""
    end = time.monotonic() + 10
    while any(map(is_alive, processes)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(is_alive, processes))


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_no_process_outlives_its_parent(number):
    parent, processes = start(PARENT), list[int]()
    try:
        assert parent.stdout is not None
        processes = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(is_alive, processes))
        parent.send_signal(number)
        parent.wait()
        assert are_dead(processes)
    finally:
        os.killpg(parent.pid, signal.SIGKILL) if any(map(is_alive, processes)) else parent.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("is_killed", [True, False])
def test_workers_hear_their_parent_alone_and_end_with_it(tmp_path: Path, method: str, is_killed: bool) -> None:
    (tmp_path / "workers.py").write_text(WORKERS)
    command = [sys.executable, str(tmp_path / "workers.py"), method]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    parent, processes = (
        subprocess.Popen(command, env=ENVIRONMENT, text=True, start_new_session=True, **pipes),
        list[int](),
    )
    try:
        processes = [int(parent.stdout.readline()) for _ in range(2)]
        for process in processes:
            for number in signals.ASKING:
                os.kill(process, number)
        time.sleep(0.5)
        assert all(map(is_alive, processes))
        if is_killed:
            parent.kill()
        else:
            parent.stdin.write("\n")  # it ends, and ends them by SIGTERM, and waits for that
            parent.stdin.flush()
        assert parent.wait(timeout=20) == (-signal.SIGKILL if is_killed else 0)
        assert are_dead(processes)
    finally:
        os.killpg(parent.pid, signal.SIGKILL) if any(map(is_alive, processes)) else parent.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_one_whose_parent_has_ended_already_ends_at_once():
    environment = ENVIRONMENT | {signals.PARENT: "1"}
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def signal_oneself(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)


def test_a_signal_stops_at_once_what_has_nothing_to_keep():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as caught, listening():
        signal_oneself(signal.SIGTERM)
    assert caught.value.code == REQUEUE == 75
    assert str(caught.value) == "stopped by SIGTERM; the same command with resume=auto goes on"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_is_noted_where_it_is_held_and_twice_in_a_moment_is_once():
    with listening():
        with held():
            assert asked() == ""
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked() == "SIGUSR1"
    with listening():  # a later run of this process
        assert asked() == ""


DEAF = """
import ctypes, contextlib, signal, sys
from fusionkit import signals
signals.DEAF = 0.3
c, waited, came = ctypes.CDLL(None), ctypes.create_string_buffer(1024), ctypes.c_int()
c.sigemptyset(waited), c.sigaddset(waited, int(signal.SIGWINCH))
with signals.listening(), signals.held() if sys.argv[1] == "held" else contextlib.nullcontext():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
    print("here", flush=True)
    c.sigwait(waited, ctypes.byref(came))  # as a library waits: no handler of Python runs within
    print("went on", flush=True)
"""


@contextmanager
def waiting(how: str) -> Iterator[subprocess.Popen[str]]:
    """A process that waits in a library's code by now: it has slept each time in a second that one looked."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", DEAF, how], env=ENVIRONMENT, **pipes) as process:
        assert process.stdout.readline() == "here\n"
        asleep = 0
        while asleep < 10:
            time.sleep(0.1)
            state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            asleep = asleep + 1 if state == "S" else 0
        yield process


@pytest.mark.skipif(sys.platform != "linux", reason="waits as Linux does")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, REQUEUE), (signal.SIGUSR1, REQUEUE), (signal.SIGINT, 130)]
)
def test_a_process_that_waits_in_a_library_ends_by_a_signal(number, code):
    with waiting("free") as process:
        process.send_signal(number)
        told = process.communicate(timeout=60)
    name = signal.Signals(number).name
    assert (process.returncode, told[0]) == (code, "")
    assert told[1] == f"\nstopped by {name} while a library was waiting, as for other processes\n"


@pytest.mark.skipif(sys.platform != "linux", reason="waits as Linux does")
def test_a_training_that_waits_in_a_library_is_let_finish_its_step():
    with waiting("held") as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        process.send_signal(signal.SIGWINCH)
        assert process.communicate(timeout=60) == ("went on\n", "")
        assert process.returncode == 0


FULL = """
import ctypes, resource, threading
from fusionkit import signals
ctypes.CDLL("libgcc_s.so.1")  # which a thread needs to end
thread = threading.Thread(target=int)
thread.start(), thread.join()  # its stack is kept for the next one, which finds no memory but that
resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))
with signals.listening():
    print("went on", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="bounds memory as Linux does")
def test_a_thread_that_finds_no_memory_is_not_waited_for():
    run = subprocess.run([sys.executable, "-c", FULL], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert run.stdout == "went on\n"


def test_a_signal_that_was_heard_ends_nothing_later(monkeypatch):
    monkeypatch.setattr(signals, "DEAF", 0.1)
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with listening():
        for number in (signal.SIGTERM, signal.SIGINT):
            with pytest.raises(Stopped if number == signal.SIGTERM else KeyboardInterrupt):
                signal_oneself(number)
        time.sleep(0.5)
    assert signal.set_wakeup_fd(before) == before


TWICE = """
import os, signal, sys, time
from fusionkit import signals
with signals.listening(), signals.held():
    class Child:
        def kill(self): print("killed", flush=True)
    with signals.children([Child()]):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(signals.SAME + 0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
print("went on")
"""


def test_a_second_signal_ends_the_process_and_its_children():
    done = subprocess.run([sys.executable, "-c", TWICE], env=ENVIRONMENT, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b"killed\n")


def test_a_child_is_ended_by_its_parent_and_not_by_a_second_signal():
    environment = ENVIRONMENT | {signals.PARENT: str(os.getpid())}
    done = subprocess.run([sys.executable, "-c", TWICE], env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"went on\n")


def test_children_are_known_while_they_run():
    class Child:
        def poll(self):
            return None

        def kill(self):
            pass

    child = Child()
    with children([child]):
        assert child in signals._State.children
    assert child not in signals._State.children
