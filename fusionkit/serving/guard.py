"""What stands before the application: who may ask, how much, how slowly; and one line in the log for each request.

A plain ASGI middleware, so that it sees each message of a stream, and hears when a client goes away.
"""

import asyncio
import json
import logging
import traceback
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from fusionkit.serving.limits import Limits
from fusionkit.serving.metrics import Metrics
from fusionkit.serving.problems import Problem, too_many

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
ALWAYS = ("/health", "/metrics")  # also while the service stops or has too much to do
STREAM_SECONDS = 1.0
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
log = logging.getLogger("fusionkit.serving")


class _Lost(Exception):
    """The client does not take what is sent."""


class Guard:
    """Passes on what is within the limits.

    ``hosts``  names that a request may call this service by; "*" allows any.
    ``kind_of`` gives a request's kind by its path: one of few.
    """

    def __init__(
        self, app: App, hosts: Collection[str], limits: Limits, metrics: Metrics, kind_of: Callable[[str], str]
    ) -> None:
        self.app, self.limits, self.metrics, self.kind_of = app, limits, metrics, kind_of
        self.hosts = {host.lower() for host in hosts}
        self.is_draining = False
        self.open = 0  # requests that are not answered yet
        self.held = 0  # bytes of their bodies
        self.changed = asyncio.Event()  # set when one is answered

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, self.limits.body_seconds)
        loop = asyncio.get_running_loop()
        begun, kind, size = loop.time(), self.kind_of(scope["path"]), [0]
        self.open += 1
        self.metrics.open.set(self.open)
        try:
            try:
                await self.app(scope, await self._admitted(scope, receive, size), answer)
            except Problem as problem:
                await answer.refuse(problem, is_last=problem.status in (408, 413, 429, 503))
            except _Lost:
                answer.status = 499
            except Exception as error:
                report(error)
                if answer.status:
                    answer.status = 500
                    raise _Lost from None
                await answer.refuse(Problem(500, "the service failed on this request"))
        except _Lost:  # what is half sent cannot be mended: the server closes the connection
            answer.status = answer.status or 499
        finally:
            self.open -= 1
            self.held -= size[0]
            self.metrics.open.set(self.open)
            self.changed.set()
            seconds = loop.time() - begun
            self.metrics.requests.labels(kind, str(answer.status)).inc()
            self.metrics.seconds.labels(kind).observe(seconds)
            log.info("%s %s %d %.0f ms", _method(scope), kind, answer.status, 1000 * seconds)

    async def _admitted(self, scope: Any, receive: Receive, size: list[int]) -> Receive:
        """What gives the request's body, read whole, and then tells when the client goes away. Raises Problem."""
        headers = list(scope["headers"])
        self._require_host([value for name, value in headers if name == b"host"], headers)
        if scope["path"] not in ALWAYS:
            if self.is_draining:
                raise Problem(503, "the service is stopping", {"Retry-After": "5"})
            if self.open > self.limits.open_requests:
                raise too_many(f"{self.limits.open_requests} requests are open already; try again in a moment")
        if scope["method"] != "POST":
            return receive
        body: list[bytes] = [await self._body(dict(headers), receive, size)]

        async def replayed() -> Message:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            return await receive()

        return replayed

    def _require_host(self, named: list[bytes], headers: list[tuple[bytes, bytes]]) -> None:
        """Raise Problem for a name that is not this service's: a page elsewhere may have its own name lead here."""
        host = named[0].decode("latin-1").lower() if len(named) == 1 else ""
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not host or ("*" not in self.hosts and name not in self.hosts):
            raise Problem(421, "the request calls this service by a name that is not its own; see hosts=[...]")
        origins = [value.decode("latin-1").lower() for key, value in headers if key == b"origin"]
        if any(origin.partition("://")[2] != host for origin in origins):
            raise Problem(403, "the request comes from a page of another site")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive, size: list[int]) -> bytes:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Problem(415, "a request is JSON; send it with Content-Type: application/json")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Problem(415, "a request is sent as it is; leave out Content-Encoding")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and (len(length) > 15 or int(length) > self.limits.body_bytes):
            raise self._too_large()
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Lost
                    part = message.get("body", b"")
                    size[0] += len(part)
                    self.held += len(part)
                    if size[0] > self.limits.body_bytes:
                        raise self._too_large()
                    if self.held > self.limits.held_bytes:
                        raise too_many(
                            "the requests that are open hold all that this service may; try again in a moment"
                        )
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Problem(408, f"the request was not sent within {self.limits.body_seconds:g} seconds") from None

    def _too_large(self) -> Problem:
        return Problem(413, f"the request is larger than {self.limits.max_body_mb:g} MB; send a smaller picture")


class _Answer:
    """Sends with our headers, notes the status, and waits no longer than ``seconds`` for a client that does not read."""

    def __init__(self, send: Send, seconds: float) -> None:
        self.send, self.seconds, self.status = send, seconds, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {name.lower() for name, _ in message.get("headers", ())}
            ours = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in given]
            message = {**message, "headers": [*message.get("headers", ()), *ours]}
        try:
            async with asyncio.timeout(max(STREAM_SECONDS, self.seconds)):
                await self.send(message)
        except (TimeoutError, OSError):
            raise _Lost from None

    async def refuse(self, problem: Problem, is_last: bool = False) -> None:
        """The problem as an answer; ``is_last`` closes the connection, on which more of the request may come."""
        body = json.dumps({"error": problem.sentence}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
        headers |= {"connection": "close"} if is_last else {}
        raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": problem.status, "headers": raw})
        await self({"type": "http.response.body", "body": body})


def report(error: BaseException) -> None:
    """Tell of a defect in the log: where it is, and not what the request said."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f"{last[0].filename}:{last[0].lineno}" if last else "?"
    log.error("%s at %s", type(error).__name__, place)


def _method(scope: Any) -> str:
    method = str(scope["method"])
    return method if method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH") else "?"
