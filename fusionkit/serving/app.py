"""The application: paths, what each asks of the model, and in which time it answers."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fusionkit import __version__
from fusionkit.serving.api_page import api_page
from fusionkit.serving.batching import Batcher, Job, Waiting
from fusionkit.serving.filters import Filter
from fusionkit.serving.guard import Guard, report
from fusionkit.serving.limits import Limits
from fusionkit.serving.metrics import CONTENT_TYPE, Metrics
from fusionkit.serving.operations import SCHEMAS, Key, compute, prepare
from fusionkit.serving.pictures import thumbnail
from fusionkit.serving.problems import Gone, Problem
from fusionkit.serving.reading import read_asked
from fusionkit.serving.schemas import json_schema
from fusionkit.serving.served import Served

HERE = Path(__file__).parent
FILES = {
    "/": ("page.html", "text/html"),
    "/picture.js": ("picture.js", "text/javascript"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
END = object()
T = TypeVar("T")


class Service:
    """Checkpoints as an ASGI application, ``app``, with the thread that computes and those that read pictures.

    ``clock`` is that of waiting and deadlines, in seconds; ``on_death`` is called where the model's thread ends unasked.
    """

    def __init__(
        self,
        models: Sequence[Served],
        limits: Limits,
        hosts: Sequence[str],
        rule: Filter | None = None,
        clock: Callable[[], float] | None = None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self.models, self.limits, self.rule = {model.name: model for model in models}, limits, rule
        self.first = models[0].name
        self.clock = clock or time.monotonic
        self.metrics = Metrics()
        self.waiting = Waiting(limits.max_batch, limits.wait_ms / 1000, limits.max_queue)
        self.batcher = Batcher(self._compute, self.waiting, self.clock, report, on_death)
        self.pool = ThreadPoolExecutor(limits.readers, thread_name_prefix="fusionkit-reader")
        self.reading = set[Future[Any]]()
        self.inner = self._paths()
        self.guard = Guard(self.inner, hosts, limits, self.metrics, kind_of)
        self.app = self.guard

    def start(self) -> None:
        self.batcher.start()

    def close(self, seconds: float) -> bool:
        """Whether all threads have ended within so many seconds."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        has_ended = self.batcher.close(seconds)
        return not wait(set(self.reading), 0 if not has_ended else seconds).not_done and has_ended

    def _compute(self, key: Key, jobs: Sequence[Job]) -> list[Any]:
        self.metrics.batch.labels(key.kind).observe(len(jobs))
        return compute(self.models, self.rule, key, jobs)

    def _paths(self) -> FastAPI:
        app = FastAPI(
            title="fusionkit serve",
            version=__version__,
            description="What trained vision-language models say about pictures. All requests are JSON, all refusals "
            '{"error": one sentence}.',
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        app.add_exception_handler(Problem, _refused)
        app.add_exception_handler(HTTPException, _refused)
        app.add_exception_handler(404, _refused)
        app.add_exception_handler(405, _refused)
        app.add_exception_handler(Exception, _failed)
        for kind, schema in SCHEMAS.items():
            body = {"required": True, "content": {"application/json": {"schema": json_schema(schema)}}}
            summary = str(schema.__doc__).splitlines()[0]
            app.add_api_route(
                *(f"/v1/{kind}", _answering(self, kind)),
                methods=["POST"],
                name=kind,
                summary=summary,
                openapi_extra={"requestBody": body},
                response_class=JSONResponse,
                response_model=None,
            )

        described = list[bytes]()

        async def models() -> Response:
            return JSONResponse({"models": [model.described() for model in self.models.values()]})

        async def health() -> Response:
            if not self.batcher.is_alive:
                return JSONResponse({"status": "the model's thread has ended"}, 503)
            if self.guard.is_draining:
                return JSONResponse({"status": "stopping"}, 503)
            return JSONResponse({"status": "ok"})

        async def numbers() -> Response:
            self.metrics.waiting.set(len(self.waiting.jobs))
            return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

        async def image(row: str, model: str | None = None) -> Response:
            content = await self._in_time(self._read(partial(self._thumbnail, row, model)))
            return Response(content, media_type="image/jpeg")

        async def api() -> Response:
            return Response(described[0], media_type="text/html")

        get = partial(app.add_api_route, methods=["GET"], response_model=None)
        get("/v1/models", models, summary="The models of this service, and what each can be asked")
        get("/v1/images/{row}", image, summary="A picture of the index, small, by the `row` that a search gave")
        get("/health", health, summary="200 while requests are answered, else 503")
        get("/metrics", numbers, summary="Numbers for Prometheus")
        for path, (name, media) in FILES.items():
            content = (HERE / name).read_bytes()
            get(path, _constant(content, media), include_in_schema=False)
        get("/docs", api, include_in_schema=False)
        described.append(api_page(app.openapi()).encode())
        return app

    def _model(self, name: str | None) -> Served:
        found = self.models.get(self.first if name is None else name)
        if found is None:
            raise Problem(422, f"there is no such model; known: {', '.join(self.models)}")
        return found

    def _thumbnail(self, row: str, model: str | None) -> bytes:
        served = self._model(model)
        if served.search is None:
            raise Problem(404, "this service has no index of pictures")
        if not re.fullmatch("[0-9]{1,9}", row) or int(row) >= len(served.search.index):
            raise Problem(404, "the index has no such row")
        return thumbnail(served.search.index.path(int(row)), self.limits.pixels)

    async def _read(self, work: Callable[[], T]) -> T:
        future = self.pool.submit(work)
        self.reading.add(future)
        future.add_done_callback(self.reading.discard)
        return await asyncio.wrap_future(future)

    async def _in_time(self, work: Awaitable[T]) -> T:
        """Raises Problem where it takes longer than a request may."""
        try:
            async with asyncio.timeout(self.limits.timeout_seconds):
                return await work
        except TimeoutError:
            seconds = f"{self.limits.timeout_seconds:g} seconds"
            raise Problem(503, f"the service is busy: no answer within {seconds}", {"Retry-After": "1"}) from None

    async def answer(self, kind: str, request: Request) -> Response:
        """What a request of a kind is answered with. Raises Problem."""
        begun = self.clock()
        body = (await request.receive())["body"]
        events: asyncio.Queue[Any] = asyncio.Queue()
        loop, job = asyncio.get_running_loop(), list[Job]()

        def prepared() -> tuple[Key, Any, bool]:
            asked = read_asked(body, SCHEMAS[kind], self.limits)
            return *prepare(kind, asked, self._model(asked.model), self.limits), getattr(asked, "stream", False)

        def put(event: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        async def first() -> tuple[Any, bool]:
            key, payload, is_stream = await self._read(prepared)
            deadline = begun + self.limits.timeout_seconds
            tell = (lambda text: put(("draft", text))) if is_stream else None
            job.append(Job(key, payload, lambda outcome: put((END, outcome)), self.clock(), deadline, tell))
            self.batcher.submit(job[0])
            return await events.get(), is_stream

        try:
            event, is_stream = await self._in_time(_while_there(first(), request))
        except BaseException:
            _leave(job)
            raise
        if event[0] is END and isinstance(event[1], Problem):
            raise event[1]
        if not is_stream:
            return JSONResponse(event[1])
        return _Stream(self._stream(event, events, begun), job)

    async def _stream(self, event: tuple[Any, Any], events: "asyncio.Queue[Any]", begun: float) -> AsyncIterator[str]:
        """Events until the answer, or until a request's time is up."""
        try:
            while event[0] is not END:
                yield _event({"draft": event[1]})
                left = begun + self.limits.timeout_seconds - self.clock()
                async with asyncio.timeout(left):
                    event = await events.get()
            said = event[1]
            yield _event({"error": said.sentence} if isinstance(said, Problem) else said)
        except TimeoutError:
            yield _event({"error": f"no answer within {self.limits.timeout_seconds:g} seconds"})


class _Stream(StreamingResponse):
    """Events; when nobody takes them any more, the search of the job stops at its next token."""

    def __init__(self, content: AsyncIterator[str], job: list[Job]) -> None:
        super().__init__(content, media_type="text/event-stream")
        self.job = job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            _leave(self.job)


def _leave(jobs: list[Job]) -> None:
    for job in jobs:
        job.is_gone = True


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _while_there(work: Awaitable[T], request: Request) -> T:
    """What the work gives; Gone where the client goes away before."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()


def _answering(service: Service, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await service.answer(kind, request)

    return answer


def _constant(content: bytes, media: str) -> Callable[[], Awaitable[Response]]:
    async def give() -> Response:
        return Response(content, media_type=media)

    return give


async def _refused(request: Request, error: Any) -> Response:
    if isinstance(error, Problem):
        return JSONResponse({"error": error.sentence}, error.status, headers=error.headers)
    told = {404: "there is no such path; GET /docs names all", 405: "this path takes another method; see Allow"}
    status = error.status_code
    return JSONResponse({"error": told.get(status, "the request cannot be answered")}, status, headers=error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the service failed on this request"}, 500)


def kind_of(path: str) -> str:
    """The kind of a request by its path: one of few, for the log and the metrics."""
    kind = path.removeprefix("/v1/")
    if path.startswith("/v1/images/"):
        return "image"
    if path.startswith("/v1/") and (kind in SCHEMAS or kind == "models"):
        return kind
    if path in ("/health", "/metrics"):
        return path[1:]
    return "page" if path in (*FILES, "/docs", "/openapi.json") else "other"
