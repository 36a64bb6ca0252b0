"""The service as a process: its socket, its signals, and how it ends."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fusionkit.errors import ConfigError, DataError
from fusionkit.serving.app import Service

BACKLOG = 128
KEEP_ALIVE = 5  # seconds that a connection may be idle between two requests
LAST = 2.0  # seconds for what is being sent when all else has ended


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that nobody else has, before anything takes time. Raises ConfigError or DataError."""
    if type(port) is not int or not 0 <= port < 65536:
        raise ConfigError(f"port is {port!r}, but has to be a number from 0 (any that is free) to 65535")
    try:
        family, _, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise ConfigError(f"host={host} is no name or address of this machine; give one, such as 127.0.0.1") from None
    found = socket.socket(family, socket.SOCK_STREAM, protocol)  # asyncio sends at once only where TCP is named
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise DataError(
            f"port {port} of {host} cannot be listened on ({error.strerror}); end what uses it, or choose another: port=N"
        ) from None
    return found


def protocol_of(head_seconds: float, most: int, take_seconds: float) -> type[H11Protocol]:
    """uvicorn's own, which ends a connection whose next request has no whole head in time, and any beyond ``most``.

    Also one whose client takes nothing for ``take_seconds``: one that is only closed stays until all of it is taken.
    """

    class Bounded(H11Protocol):
        timer: asyncio.TimerHandle | None = None
        full: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
                return
            self.look()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.look()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.full = self.loop.call_later(take_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.full is not None:
                self.full.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            self.forget()
            if self.full is not None:
                self.full.cancel()
            super().connection_lost(exc)

        def look(self) -> None:
            """Start the time for a head where one is waited for, and end it where it is there."""
            if self.cycle is not None and not self.cycle.response_complete:
                self.forget()
            elif self.timer is None:  # also while it closes, which a client that takes nothing would hold up
                self.timer = self.loop.call_later(head_seconds, self.transport.abort)

        def forget(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

    return Bounded


class _Server(uvicorn.Server):
    """Signals are heard by ``Process``."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Process:
    """Serves until a signal asks it to stop, or something breaks."""

    def __init__(self, service: Service, listening: socket.socket) -> None:
        self.service, self.listening = service, listening
        limits = service.limits
        config = uvicorn.Config(
            service.app,
            http=protocol_of(limits.head_seconds, 2 * limits.open_requests + 64, limits.body_seconds + LAST),
            ws="none",
            loop="asyncio",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="error",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=int(LAST),
        )
        self.server = _Server(config)
        self.asked: int | None = None  # the signal
        self.is_broken = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.drain: asyncio.Task[None] | None = None
        service.batcher.on_death = self.break_off

    def run(self) -> None:
        """Raises DataError where it ends for another reason than a signal."""
        was_asked = asyncio.run(self._serve())
        has_ended = self.service.close(LAST)
        if not was_asked:
            raise DataError("the service has ended by itself; its log says why; start it again")
        print("stopped", flush=True)
        if not has_ended:  # in the middle of a call of the model, which nobody waits for any more
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def break_off(self) -> None:
        """End with an error; from any thread."""
        self.is_broken = True
        if self.loop is not None:
            with suppress(RuntimeError):  # it has ended already
                self.loop.call_soon_threadsafe(self._leave)

    def on_signal(self, number: int) -> None:
        """The first one lets open requests end; the second one ends at once."""
        if self.asked is not None:
            print("stopped at once", flush=True)
            os._exit(128 + number)
        self.asked = number
        limits = self.service.limits
        print(f"stopping: open requests have {limits.drain_seconds:g} seconds", flush=True)
        self.drain = asyncio.ensure_future(self._drain(limits.drain_seconds))

    async def _serve(self) -> bool:
        """Whether it ended because it was asked to."""
        self.loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self.on_signal, number)
        self.service.start()
        host, port = self.listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {', '.join(self.service.models)}: http://{shown}:{port}/ (API: /docs)", flush=True)
        try:
            await self.server.serve(sockets=[self.listening])
        except Exception as error:
            logging.getLogger("fusionkit.serving").error("the server has failed: %s", error)
            return False
        return self.asked is not None and not self.is_broken

    async def _drain(self, seconds: float) -> None:
        guard = self.service.guard
        guard.is_draining = True
        try:
            async with asyncio.timeout(seconds):
                while guard.open:
                    guard.changed.clear()
                    await guard.changed.wait()
        except TimeoutError:
            print(f"{guard.open} requests were still open", flush=True)
        self._leave()

    def _leave(self) -> None:
        self.server.should_exit = True


def hosts_of(host: str, hosts: Sequence[str], loopback: Sequence[str]) -> list[str]:
    """The names that requests may call a service on ``host`` by. Raises ConfigError where nobody has said any."""
    if host in ("localhost", "::1") or host.startswith("127."):
        own = [f"[{host}]" if ":" in host else host]
        return [*loopback, *own, *hosts]
    if not hosts:
        raise ConfigError(
            f"host={host} is heard beyond this machine, where anybody may ask; say by which names it is called, as "
            "hosts=[my.machine] (hosts=['*']: by any)"
        )
    return list(hosts)
