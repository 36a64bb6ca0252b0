"""The real application: answers are the API's, mistakes are sentences, and whoever goes away costs nothing."""

import asyncio
import json
import re
import shutil
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import fusionkit as fk
from fusionkit.serving.app import FILES, Service, kind_of
from fusionkit.serving.batching import Job
from fusionkit.serving.filters import Words
from fusionkit.serving.operations import Key, compute, prepare
from fusionkit.serving.problems import Gone, Problem
from fusionkit.serving.schemas import Caption, Match
from fusionkit.serving.served import Served
from tests.serving.conftest import Clock, client, encoded

PATIENCE = 30
PHRASE, QUESTION = "a red star", "how many things are there?"
Make = Callable[..., Service]


def go(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 2 * PATIENCE))


def post(service: Service, path: str, **asked: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with client(service) as http:
            return await http.post(path, json=asked)

    return go(ask())  # type: ignore[no-any-return]


def get(service: Service, path: str, method: str = "GET") -> httpx.Response:
    async def ask() -> httpx.Response:
        async with client(service) as http:
            return await http.request(method, path)

    return go(ask())  # type: ignore[no-any-return]


def events(text: str) -> list[Any]:
    return [json.loads(line.removeprefix("data: ")) for line in text.strip().split("\n\n")]


def test_answers_are_those_of_the_api(served: Served, service_of: Make, model: fk.Model, photos: list[Path]) -> None:
    """Of different pictures and texts at once, which are computed together."""
    texts = ["a red star", "a", "two blue rings and a large green square on the left"] * 2

    async def ask() -> dict[str, list[Any]]:
        async with client(service, timeout=PATIENCE) as http:
            fields = {"match": "text", "answer": "question", "ground": "phrase", "caption": None, "embed": "text"}
            found = {}
            for kind, field in fields.items():
                bodies = [
                    {"image": encoded(photo)} | ({field: text} if field else {})
                    for photo, text in zip(photos, texts, strict=True)
                ]
                answers = await asyncio.gather(*(http.post(f"/v1/{kind}", json=body) for body in bodies))
                assert [answer.status_code for answer in answers] == [200] * 6
                found[kind] = [answer.json() for answer in answers]
            return found

    service = service_of(served, wait_ms=60_000, max_batch=6)
    said = go(ask())
    assert service.batcher.batches == 5

    def near(kind: str, key: str, wanted: torch.Tensor) -> None:
        found = torch.tensor([each[key] for each in said[kind]])
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)

    near("match", "match", torch.tensor([model.match(photo, text) for photo, text in zip(photos, texts, strict=True)]))
    near("ground", "bbox", torch.stack([model.ground(photo, text) for photo, text in zip(photos, texts, strict=True)]))
    near("embed", "image", model.embed(images=photos))
    near("embed", "text", model.embed(texts=texts))
    assert [each["answer"] for each in said["answer"]] == [
        model.answer(photo, text) for photo, text in zip(photos, texts, strict=True)
    ]
    assert [each["caption"] for each in said["caption"]] == [model.caption(photo) for photo in photos]
    assert all(each["caption_score"] < 0 for each in said["caption"])


def test_a_stream_ends_with_the_answer_of_the_api(
    served: Served, service_of: Make, model: fk.Model, photos: list[Path]
) -> None:
    response = post(service_of(served), "/v1/caption", image=encoded(photos[0]), stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *drafts, last = events(response.text)
    assert last["caption"] == model.caption(photos[0])
    assert len(drafts) > 3
    assert all(set(each) == {"draft"} for each in drafts)
    writer: Any = served.predictor.tasks["captioning"]
    assert type(writer.writer.search).__name__ == "BeamSearch"  # as it was before


def test_a_filter_changes_what_is_said_and_streamed(served: Served, service_of: Make, photos: list[Path]) -> None:
    plain = post(service_of(served), "/v1/caption", image=encoded(photos[0])).json()["caption"]
    word = re.findall(r"\w+", plain)[0]
    service = service_of(served, rule=Words([word]))
    response = post(service, "/v1/caption", image=encoded(photos[0]), stream=True)
    *drafts, last = events(response.text)
    assert last["caption"] == re.sub(rf"\b{word}\b", "***", plain)
    assert not any(re.search(rf"\b{word}\b", each["draft"]) for each in drafts)

    def stops(kind: str, text: str) -> str:
        raise StopIteration

    refused = post(service_of(served, rule=Words([word], refuse=True)), "/v1/caption", image=encoded(photos[0]))
    assert (refused.status_code, "does not send" in refused.text) == (422, True)
    broken = service_of(served, rule=stops)
    assert post(broken, "/v1/caption", image=encoded(photos[0])).status_code == 500
    assert post(broken, "/v1/match", image=encoded(photos[0]), text=PHRASE).status_code == 200


def test_where_words_look(served: Served, service_of: Make, photos: list[Path]) -> None:
    look = post(service_of(served), "/v1/match", image=encoded(photos[0]), text=PHRASE, look=True).json()["look"]
    assert look["words"] == ["a", "red", "star"]
    maps = torch.tensor([look["whole"], *look["maps"]])
    assert maps.shape[0] == 4
    assert maps.min() == 0
    assert maps.max() == 1
    assert look["middle"] is False


def test_a_search_is_that_of_the_api(
    served: Served, service_of: Make, model: fk.Model, world: Path, photos: list[Path]
) -> None:
    service, index = service_of(served), model.index(world / "index")
    for asked, wanted in (
        ({"text": PHRASE}, index.search(PHRASE, top=3, k=5)),
        ({"image": encoded(photos[1])}, index.search(image=photos[1], top=3, k=5)),
        ({"text": PHRASE, "image": encoded(photos[1]), "weight": 0.2}, index.search(PHRASE, photos[1], 3, 5, 0.2)),
    ):
        found = post(service, "/v1/search", top=3, k=5, **asked).json()["found"]
        assert [each["image"] for each in found] == [each["image"] for each in wanted]
        assert [each["score"] for each in found] == pytest.approx([each["score"] for each in wanted], rel=1e-4)
        assert [served.search.index.name(each["row"]) for each in found] == [each["image"] for each in found]
    image = get(service, f"/v1/images/{found[0]['row']}")
    assert image.headers["content-type"] == "image/jpeg"
    for row in ("9999", "x", "-1", "%2e%2e", "1" * 400):
        assert get(service, f"/v1/images/{row}").status_code == 404
    assert post(service, "/v1/search").json()["error"].startswith("nothing is asked")


def test_a_picture_that_vanished_is_told_and_names_no_folder(
    served: Served, service_of: Make, world: Path, model: fk.Model, tmp_path: Path
) -> None:
    from fusionkit.commands.predict_images import predictor_of

    shutil.copytree(world / "shapes/images", tmp_path / "photos")
    search = model.index(tmp_path / "index", tmp_path / "photos")._images
    rows = {search.index.name(row): row for row in range(len(search.index))}
    service = service_of(Served("run", predictor_of(model.parts, model.device, batch_size=16), search, rows))
    lost = search.index.path(0)
    lost.unlink()
    search.index.path(1).write_bytes(b"no picture")
    found = post(service, "/v1/search", text=PHRASE, top=5, k=64).json()["found"]
    wrong = [each for each in found if "error" in each]
    assert {each["row"] for each in wrong} == {0, 1}
    assert all("brought up to date" in each["error"] and str(tmp_path) not in each["error"] for each in wrong)
    assert [get(service, f"/v1/images/{row}").status_code for row in (0, 1, 2)] == [410, 422, 200]


@pytest.mark.parametrize(
    ("kind", "asked", "told"),
    [
        ("match", {"text": PHRASE}, "no 'image'"),
        ("match", {"image": "/etc/passwd", "text": "a"}, "no base64"),
        ("match", {"image": True, "text": " \t"}, "'image'"),
        ("match", {"model": "other", "image": "QUJD", "text": "a"}, "no such model; known: run"),
        ("match", {"by": "imt", "image": "QUJD", "text": "a"}, "did you mean 'itm'"),
        ("answer", {"question": QUESTION}, "no 'image'"),
        ("answer", {"image": "GOOD"}, "no 'question'"),
        ("answer", {"image": "GOOD", "images": ["GOOD"], "question": "a"}, "both 'image' and 'images'"),
        (
            "answer",
            {"image": "GOOD", "question": "a", "messages": [{"role": "user", "content": "a"}]},
            "both 'question'",
        ),
        ("answer", {"image": "GOOD", "messages": [{"role": "user", "content": "a"}]}, "trained with task=\\[chat\\]"),
        ("answer", {"image": "GOOD", "messages": [{"role": "judge", "content": "a"}]}, "'judge'"),
        ("answer", {"images": ["GOOD", "GOOD"], "question": "a"}, "<image>"),
        ("match", {"image": "GOOD", "text": " "}, "has to be words"),
        ("embed", {}, "nothing is asked"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    kind: str, asked: dict[str, Any], told: str, served: Served, service_of: Make, photos: list[Path]
) -> None:
    good = encoded(photos[0])
    text = json.dumps(asked).replace("GOOD", good)
    response = post(service_of(served), f"/v1/{kind}", **json.loads(text))
    assert response.status_code == 422
    assert re.search(told, response.json()["error"])


def test_one_wrong_request_of_a_batch_fails_alone(served: Served, photos: list[Path]) -> None:
    from fusionkit.serving.limits import Limits

    asked = Match(image=encoded(photos[0]), text=PHRASE)
    key, request = prepare("match", asked, served, Limits())
    said: list[Any] = []
    broken = replace(request, picture=None)  # its file is not there
    jobs = [Job(key, each, said.append, 0, 1) for each in (request, broken, request)]
    first, wrong, last = compute({"run": served}, None, key, jobs)
    assert first == pytest.approx(last)
    assert (wrong.status, "does not exist" in wrong.sentence) == (422, True)
    with pytest.raises(Problem, match="answers no 'search'"):
        prepare("search", asked, replace(served, search=None), Limits())


def test_a_search_for_words_stops_when_all_who_stream_have_gone(served: Served, photos: list[Path]) -> None:
    from fusionkit.serving.limits import Limits

    key, request = prepare("caption", Caption(image=encoded(photos[0]), stream=True), served, Limits())
    told: list[str] = []
    job = Job(key, request, lambda outcome: None, 0, 1)

    def tell(text: str) -> None:
        told.append(text)
        job.is_gone = True

    job.tell = tell
    with pytest.raises(Gone):
        compute({"run": served}, None, key, [job])
    assert len(told) == 1


def test_paths_and_methods(toy: Callable[..., Service]) -> None:
    service = toy(lambda key, jobs: [{}])
    wrong = get(service, "/v1/match")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.headers["x-content-type-options"] == "nosniff"
    assert get(service, "/health", "DELETE").headers["allow"] == "GET"
    for path in ("/nowhere", "/v1/match/", "/redoc", "/v1/"):
        response = get(service, path)
        assert (response.status_code, response.json()["error"]) == (404, "there is no such path; GET /docs names all")
    assert get(service, "/v1/models").json() == {"models": [{"name": "toy"}]}
    document = get(service, "/openapi.json").json()
    assert "/v1/caption" in document["paths"]
    body = document["paths"]["/v1/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["weight"]["maximum"] == 1
    page = get(service, "/docs")
    assert all(
        f"/v1/{kind}</code>" in page.text for kind in ("match", "answer", "ground", "caption", "embed", "search")
    )
    assert "<td>number, from 0, to 1, default 0.5</td>" in page.text
    assert not re.search(r"(src|href)=\"(?!/)", page.text)
    text = get(service, "/metrics").text
    assert 'fusionkit_request_seconds_bucket{kind="models",le="+Inf"} 1.0' in text
    assert 'fusionkit_requests_total{kind="other",status="404"} 4.0' in text


def test_the_name_of_another_is_not_answered_by_the_real_application(toy: Callable[..., Service]) -> None:
    async def ask(service: Service, url: str) -> int:
        transport = httpx.ASGITransport(service.app)
        async with httpx.AsyncClient(transport=transport, base_url=url) as http:
            return (await http.get("/health")).status_code

    service = toy(lambda key, jobs: [{}])
    urls = ("http://localhost:8000", "http://127.0.0.1", "http://[::1]:8000", "http://evil.com:8000")
    assert [go(ask(service, url)) for url in urls] == [200, 200, 200, 421]


def test_an_answer_that_takes_too_long_is_refused_in_time(toy: Callable[..., Service]) -> None:
    def compute(key: Key, jobs: Sequence[Job]) -> list[Any]:
        release.wait(PATIENCE)
        return [{}] * len(jobs)

    release = threading.Event()
    service = toy(compute, timeout_seconds=0.05)
    for asked in ({}, {"stream": True}):
        response = post(service, "/v1/caption", image="a", **asked)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    release.set()


def test_what_cannot_be_said_in_json_is_a_sentence_too(toy: Callable[..., Service]) -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(service.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.post("/v1/match", json={"image": "a", "text": "b"})

    service = toy(lambda key, jobs: [{"match": float("nan")}] * len(jobs))
    response = go(ask())
    assert (response.status_code, response.json()) == (500, {"error": "the service failed on this request"})


def test_what_is_not_said_is_within_a_low_bound_too(served: Served, service_of: Make, photos: list[Path]) -> None:
    service = service_of(served, max_top=3)
    assert len(post(service, "/v1/search", text=PHRASE).json()["found"]) == 3
    assert len(post(service, "/v1/answer", image=encoded(photos[0]), question=QUESTION).json()["answers"]) <= 3
    assert "top is 4, but is at most 3" in post(service, "/v1/search", text=PHRASE, top=4).text


def test_a_stream_that_takes_too_long_says_so(toy: Callable[..., Service]) -> None:
    def compute(key: Key, jobs: Sequence[Job]) -> list[Any]:
        assert jobs[0].tell is not None
        clock.now = 1000.0
        jobs[0].tell("a")
        release.wait(PATIENCE)
        return [{}]

    release = threading.Event()
    clock = Clock()
    service = toy(compute, clock=clock)
    response = post(service, "/v1/caption", image="a", stream=True)
    release.set()
    assert events(response.text) == [{"draft": "a"}, {"error": "no answer within 30 seconds"}]


def test_more_than_may_wait_are_told_to_come_again(toy: Callable[..., Service]) -> None:
    async def crowd() -> list[int]:
        async with client(service) as http:
            first = asyncio.ensure_future(http.post("/v1/match", json={"image": "a", "text": "b"}))
            assert await asyncio.to_thread(begun.wait, PATIENCE)
            second = asyncio.ensure_future(http.post("/v1/match", json={"image": "a", "text": "b"}))
            while not service.waiting.jobs:
                await asyncio.sleep(0.001)
            third = await http.post("/v1/match", json={"image": "a", "text": "b"})
            release.set()
            return [third.status_code, (await first).status_code, (await second).status_code]

    def compute(key: Key, jobs: Sequence[Job]) -> list[Any]:
        begun.set()
        release.wait(PATIENCE)
        return [{}] * len(jobs)

    begun, release = threading.Event(), threading.Event()
    service = toy(compute, max_queue=1, max_batch=1)
    assert go(crowd()) == [429, 200, 200]


def test_what_a_client_asked_that_went_away_is_not_computed(toy: Callable[..., Service]) -> None:
    """Through the application as a server calls it, since httpx cannot go away."""
    computed: list[Any] = []

    def compute(key: Key, jobs: Sequence[Job]) -> list[Any]:
        begun.set()
        release.wait(PATIENCE)
        computed.extend(job.payload.text for job in jobs)
        return [{}] * len(jobs)

    async def ask(text: str, leave: asyncio.Event) -> list[Any]:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/match", "headers": headers, "query_string": b""}
        scope |= {"root_path": "", "scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0"}}
        body = [json.dumps({"image": "a", "text": text}).encode()]
        said: list[Any] = []

        async def receive() -> Any:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            said.append(message)

        await service.app(scope, receive, send)
        return said

    async def play() -> None:
        stays, leaves = asyncio.Event(), asyncio.Event()
        first = asyncio.ensure_future(ask("first", stays))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        second = asyncio.ensure_future(ask("second", leaves))
        while not service.waiting.jobs:
            await asyncio.sleep(0.001)
        leaves.set()
        assert (await second)[0]["status"] == 499
        release.set()
        assert (await first)[0]["status"] == 200

    begun, release = threading.Event(), threading.Event()
    service = toy(compute, max_batch=1)
    go(play())
    assert service.close(PATIENCE)
    assert computed == ["first"]


def test_health_follows_the_service(toy: Callable[..., Service]) -> None:
    service = toy(lambda key, jobs: [{}])
    assert get(service, "/health").json() == {"status": "ok"}
    service.guard.is_draining = True
    assert (get(service, "/health").status_code, get(service, "/v1/models").status_code) == (503, 503)
    service.guard.is_draining = False
    assert service.close(PATIENCE)
    assert get(service, "/health").status_code == 503
    assert get(service, "/v1/models").status_code == 200


def test_the_page_needs_nothing_from_elsewhere_and_can_be_used_by_all(toy: Callable[..., Service]) -> None:
    service = toy(lambda key, jobs: [{}])
    texts = {path: get(service, path) for path in FILES}
    for path, (_, media) in FILES.items():
        assert texts[path].headers["content-type"].startswith(media)
        assert "http:" not in texts[path].text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "https:" not in texts[path].text
    page, style = texts["/"].text, texts["/page.css"].text
    code = texts["/picture.js"].text + texts["/page.js"].text
    assert not re.search(r"<style|style=| on\w+=|<script(?! src=\"/(?:page|picture).js\" defer></script>)", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|eval\(|document\.write", code)
    named = set(re.findall(r'for="(\w+)"', page))
    assert set(re.findall(r'<(?:input|select) id="(\w+)"', page)) == named
    assert set(re.findall(r'at\("([\w-]+)"\)', code)) <= set(re.findall(r'id="([\w-]+)"', page))
    assert 'aria-live="polite"' in page
    assert 'role="alert"' in page
    assert '<html lang="en">' in page
    assert "tabindex" not in page  # the order of the keyboard is that of the page
    assert ":focus-visible" in style
    assert "@media (min-width" in style


def test_int8_and_middles_are_described(served: Served) -> None:
    said = served.described()
    assert said["kinds"] == ["match", "answer", "ground", "caption", "embed", "search"]
    assert said["tasks"]["match"] == ["itc", "itm"]
    assert said["indexed"] == len(served.rows) > 20
    assert (said["look"], said["middle"]) == (True, False)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        *(("/v1/match", "match"), ("/v1/models", "models"), ("/v1/images/7", "image"), ("/v1/images", "other")),
        *(("/health", "health"), ("/metrics", "metrics"), ("/", "page"), ("/docs", "page"), ("/page.js", "page")),
        *(
            ("/openapi.json", "page"),
            ("match", "other"),
            ("/v1/secret", "other"),
            ("/v1/health", "other"),
            ("", "other"),
        ),
    ],
)
def test_kinds_are_few(path: str, kind: str) -> None:
    assert kind_of(path) == kind
