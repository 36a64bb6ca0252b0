"""The process: sockets, slow heads, signals, and ends of every kind, on a real server without a model."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from fusionkit.cli.main import run
from fusionkit.commands.serve import named_checkpoints
from fusionkit.errors import ConfigError, DataError
from fusionkit.serving.app import Service
from fusionkit.serving.batching import Job, Waiting
from fusionkit.serving.guard import LOOPBACK
from fusionkit.serving.server import Process, bound_socket, hosts_of, protocol_of
from tests.serving.conftest import encoded

PATIENCE = 60
ASKED = {"image": "a", "text": "b"}
Play = Callable[[httpx.AsyncClient, Process], Awaitable[None]]


def served(service: Service, play: Play) -> bool:
    """Run a server while a test plays its client; gives whether it ended because it was asked to."""

    async def both() -> bool:
        with bound_socket("127.0.0.1", 0) as listening:
            process = Process(service, listening)
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            service.start = lambda: None  # type: ignore[method-assign]  # the fixture has started it
            end = asyncio.ensure_future(process._serve())
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, trust_env=False) as http:
                await play(http, process)
            return await end

    return asyncio.run(asyncio.wait_for(both(), PATIENCE))


def test_a_socket_is_one_that_nobody_else_has() -> None:
    with bound_socket("127.0.0.1", 0) as one:
        port = one.getsockname()[1]
        assert one.proto == socket.IPPROTO_TCP  # else small answers wait for acknowledgements
        with pytest.raises(DataError, match=f"port {port} of 127.0.0.1 cannot be listened on .*choose another: port=N"):
            bound_socket("127.0.0.1", port)
    bound_socket("127.0.0.1", port).close()
    for wrong in (-1, 65536, True, "80"):
        with pytest.raises(ConfigError, match="port is"):
            bound_socket("127.0.0.1", wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no name or address"):
        bound_socket("no.such.host.invalid", 0)


def test_beyond_this_machine_a_name_has_to_be_said() -> None:
    assert hosts_of("127.0.0.1", [], LOOPBACK) == [*LOOPBACK, "127.0.0.1"]
    assert hosts_of("::1", ["a"], LOOPBACK) == [*LOOPBACK, "[::1]", "a"]
    assert hosts_of("0.0.0.0", ["my.machine"], LOOPBACK) == ["my.machine"]
    with pytest.raises(ConfigError, match=r"host=0\.0\.0\.0 is heard beyond this machine"):
        hosts_of("0.0.0.0", [], LOOPBACK)


def test_a_connection_without_a_whole_head_is_closed_and_others_are_not(toy: Callable[..., Service]) -> None:
    async def play(http: httpx.AsyncClient, process: Process) -> None:
        host, port = process.listening.getsockname()[:2]
        for begin in (b"", b"GET / HT", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET / HT"):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(begin)
            said = b""
            with suppress(ConnectionResetError):
                said = await reader.read()  # until it is closed by the server
            assert (b"200 OK" in said) == (b"health" in begin) or not said
            writer.close()
        assert (await http.get("/health")).status_code == 200
        process.on_signal(signal.SIGTERM)

    assert served(toy(lambda key, jobs: [{}], head_seconds=1.0), play)


def test_a_head_that_has_come_is_waited_for_no_more(toy: Callable[..., Service]) -> None:
    """The model takes longer than a head may."""

    def compute(key: Any, jobs: Sequence[Job]) -> list[Any]:
        release.wait(PATIENCE)
        return [{"said": 1}]

    async def play(http: httpx.AsyncClient, process: Process) -> None:
        asked = asyncio.ensure_future(http.post("/v1/match", json=ASKED))
        while not process.service.batcher.batches:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.5)  # longer than a head may take
        release.set()
        assert (await asked).json() == {"said": 1}
        process.on_signal(signal.SIGTERM)

    release = threading.Event()
    assert served(toy(compute, head_seconds=1.0), play)


def test_more_connections_than_may_be_open_are_closed(toy: Callable[..., Service]) -> None:
    closed: list[Any] = []

    class Transport:
        def abort(self) -> None:
            closed.append(self)

        def get_extra_info(self, name: str) -> None:
            return None

        def is_closing(self) -> bool:
            return bool(closed)

    async def connect() -> None:
        from uvicorn import Config
        from uvicorn.server import ServerState

        config = Config(toy(lambda key, jobs: [{}]).app)
        config.load()
        state = ServerState()
        for _ in range(3):
            protocol: Any = protocol_of(1000.0, 2, 1000.0)(config, state, {})
            protocol.connection_made(Transport())

    asyncio.run(connect())
    assert len(closed) == 1


def test_a_client_that_takes_nothing_is_cut_off(toy: Callable[..., Service]) -> None:
    """A connection that is only closed stays until all is taken, and so do those of whoever takes nothing."""

    async def play(http: httpx.AsyncClient, process: Process) -> None:
        host, port = process.listening.getsockname()[:2]
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (host, port))
            asks = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100_000
            with pytest.raises(ConnectionError):  # cut off in the midst of asking
                await loop.sock_sendall(client, asks)
        assert (await http.get("/health")).status_code == 200
        process.on_signal(signal.SIGTERM)

    assert served(toy(lambda key, jobs: [{}], body_seconds=1.0), play)


def test_a_picture_that_takes_long_does_not_keep_the_process(
    toy: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = toy(lambda key, jobs: [{}])
    begun, release = threading.Event(), threading.Event()

    def reads() -> None:
        begun.set()
        release.wait(PATIENCE)

    async def ended() -> bool:
        reading = asyncio.ensure_future(service._read(reads))
        while not begun.is_set():
            await asyncio.sleep(0)
        reading.cancel()  # as for a client that has gone: the thread goes on
        return True

    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr("fusionkit.serving.server.LAST", 0.0)
    with socket.socket() as unused:
        process = Process(service, unused)
    monkeypatch.setattr(process, "_serve", ended)
    assert service.batcher.close(PATIENCE)  # the model's thread is none of those that are left
    process.run()
    release.set()
    assert codes == [0]  # else the interpreter would wait for it


def test_a_stop_lets_open_requests_end_and_takes_no_more(toy: Callable[..., Service]) -> None:
    def compute(key: Any, jobs: Sequence[Job]) -> list[Any]:
        if jobs[0].tell is not None:
            jobs[0].tell("half")
        release.wait(PATIENCE)
        return [{"caption": "whole"}]

    async def play(http: httpx.AsyncClient, process: Process) -> None:
        async with http.stream("POST", "/v1/caption", json={"image": "a", "stream": True}) as response:
            parts = response.aiter_text()
            assert "half" in await anext(parts)
            process.on_signal(signal.SIGTERM)
            while not process.service.guard.is_draining:
                await asyncio.sleep(0)
            assert (await http.get("/v1/models")).status_code == 503
            assert (await http.get("/health")).json() == {"status": "stopping"}
            release.set()
            assert "whole" in "".join([part async for part in parts])

    release = threading.Event()
    assert served(toy(compute, max_batch=1), play)


def test_a_stop_does_not_wait_for_longer_than_it_may(
    toy: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compute(key: Any, jobs: Sequence[Job]) -> list[Any]:
        release.wait(PATIENCE)
        return [{}]

    async def play(http: httpx.AsyncClient, process: Process) -> None:
        asked = asyncio.ensure_future(http.post("/v1/match", json=ASKED))
        while not process.service.batcher.batches:
            await asyncio.sleep(0.01)
        process.on_signal(signal.SIGINT)
        await asyncio.gather(asked, return_exceptions=True)

    release = threading.Event()
    service = toy(compute, drain_seconds=0.05)
    assert served(service, play)
    assert "1 requests were still open" in capsys.readouterr().out
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr("fusionkit.serving.server.LAST", 0.0)

    async def ended() -> bool:
        return True

    with socket.socket() as unused:
        process = Process(service, unused)
    monkeypatch.setattr(process, "_serve", ended)
    process.run()  # a call of the model still runs
    assert codes == [0]
    release.set()


def test_a_second_signal_ends_at_once(toy: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(http: httpx.AsyncClient, process: Process) -> None:
        process.service.guard.open += 1  # a request that never ends
        process.on_signal(signal.SIGTERM)
        with pytest.raises(SystemError, match="143"):
            process.on_signal(signal.SIGTERM)
        process.service.guard.open -= 1
        process.service.guard.changed.set()

    def leave(code: int) -> None:
        raise SystemError(code)

    monkeypatch.setattr(os, "_exit", leave)
    assert served(toy(lambda key, jobs: [{}]), play)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_model_thread_dies_the_process_ends_with_an_error(toy: Callable[..., Service]) -> None:
    class Broken(Waiting):
        def take(self, now: float, is_closing: bool = False) -> tuple[list[Job], float | None]:
            if self.jobs:
                raise AssertionError("a defect")
            return [], None

    async def play(http: httpx.AsyncClient, process: Process) -> None:
        process.service.batcher.waiting = Broken(1, 0.0, 1)
        assert (await http.post("/v1/match", json=ASKED)).status_code == 503

    service = toy(lambda key, jobs: [{}])
    assert not served(service, play)

    async def ended() -> bool:
        return False

    with socket.socket() as unused:
        process = Process(service, unused)
    process._serve = ended  # type: ignore[method-assign]
    with pytest.raises(DataError, match="ended by itself"):
        process.run()


def test_checkpoints_have_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints/last.ckpt").touch()
    last = {name: tmp_path / name / "checkpoints/last.ckpt" for name in ("a", "b")}
    assert named_checkpoints(str(tmp_path / "a")) == {"a": last["a"]}
    assert named_checkpoints([str(tmp_path / "a"), str(last["b"])]) == last
    assert named_checkpoints({"x": str(tmp_path / "a")}) == {"x": last["a"]}
    with pytest.raises(ConfigError, match="have one name; name them yourself"):
        named_checkpoints([str(tmp_path / "a"), str(last["a"])])
    with pytest.raises(ConfigError, match="names none"):
        named_checkpoints([])


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("max_queue=0",), 2, "max_queue is 0"),
        (("host=0.0.0.0",), 2, "heard beyond this machine"),
        (("port=99999",), 2, "port is 99999"),
        (("filter={_target_: fusionkit.serving.filters.Words, words: []}",), 2, "words"),
        (("filter={_target_: builtins.dict}",), 2, "cannot be called"),
        (("wiat_ms=3",), 2, "did you mean 'wait_ms'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(
    words: tuple[str, ...], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "checkpoint=nowhere", *words]) == code
    assert told in capsys.readouterr().err


def test_a_port_in_use_is_one_sentence(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with bound_socket("127.0.0.1", 0) as taken:
        assert run(["serve", f"checkpoint={world}/run", f"port={taken.getsockname()[1]}"]) == 1
    assert "cannot be listened on" in capsys.readouterr().err


def test_an_index_of_another_checkpoint_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"checkpoint={world}/run", "port=0", f"index={world}/index", "data.mean=[0.1,0.1,0.1]"]
    assert run(["serve", *words]) == 2
    assert "was made by" in capsys.readouterr().err
    assert run(["serve", *words[:2], f"index={tmp_path}"]) == 1
    assert "holds no index" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of POSIX")
def test_the_command_answers_and_ends_with_a_signal(world: Path, photos: list[Path]) -> None:
    line = [sys.executable, "-m", "fusionkit", "serve", f"checkpoint={world}/run", "port=0", "int8=[fusion]"]
    line += ["evaluation.options.precision=bf16-mixed"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = next(text for text in process.stdout if text.startswith("serving run: http://127.0.0.1:"))
        url = told.split()[2]
        said = httpx.post(
            f"{url}v1/match", json={"image": encoded(photos[0]), "text": "a"}, timeout=PATIENCE, trust_env=False
        )
        assert 0 <= said.json()["match"] <= 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert "stopped" in process.stdout.read()
