"""A service under load: clients ask for minutes, some of it malformed; answers are compared with the API's. See README.md.

``python -m benchmarks.serving checkpoint=RUN images=FOLDER [index=DIR] [seconds=300] [clients=32] [bound=SECONDS]``
"""

import asyncio
import base64
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

import fusionkit as fk

TEXTS = ("a red star", "two blue rings and a square", "the large yellow cross on the left", "something")
QUESTIONS = ("how many things are there?", "what colour is the star?", "is there a ring?")
FAR = 1e-4  # two numbers that are equal but for rounding


def requests_of(model: Any, images: list[Path], search: Any) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Kind, request and expected answer of all that is asked."""
    found: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    for number, path in enumerate(images):
        image = base64.b64encode(path.read_bytes()).decode()
        text, question = TEXTS[number % len(TEXTS)], QUESTIONS[number % len(QUESTIONS)]
        found += [
            ("match", {"image": image, "text": text}, {"match": model.match(path, text)}),
            ("answer", {"image": image, "question": question}, {"answer": model.answer(path, question)}),
            ("ground", {"image": image, "phrase": text}, {"bbox": model.ground(path, text).tolist()}),
            ("embed", {"image": image}, {"image": model.embed(images=path).tolist()}),
        ]
        if number % 4 == 0:
            caption = model.caption(path)
            found += [("caption", {"image": image, "stream": stream}, {"caption": caption}) for stream in (False, True)]
        if search is not None and number % 4 == 1:
            best = [{"image": each["image"], "score": each["score"]} for each in search.search(text, top=3, k=4)]
            found.append(("search", {"text": text, "top": 3, "k": 4}, {"found": best}))
    return found


def malformed(draw: random.Random, image: str) -> tuple[bytes, dict[str, str]]:
    """A body that has to be refused, and its headers."""
    kind = {"content-type": "application/json"}
    bodies = [
        b"",
        b"{",
        b"[" * 5000,
        b'{"image": NaN}',
        b'{"image": "QUJD", "text": "x"}',
        b'{"image": "/etc/passwd", "text": "x"}',
        json.dumps({"image": image, "text": ""}).encode(),
        json.dumps({"image": image, "txet": "x"}).encode(),
        json.dumps({"image": image, "text": 7}).encode(),
        json.dumps({"image": image[: len(image) // 8 * 4], "text": "x"}).encode(),
        b'{"top": ' + b"9" * 400 + b"}",
        b'{"text": "' + b"x" * 20000 + b'"}',
    ]
    return draw.choice(bodies), draw.choice([kind, kind, kind, {"content-type": "text/plain"}])


def differs(said: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return any(name not in said or differs(said[name], value) for name, value in expected.items())
    if isinstance(expected, list):
        return len(said) != len(expected) or any(map(differs, said, expected))
    if isinstance(expected, float):
        return abs(said - expected) > FAR * max(1.0, abs(expected))
    return bool(said != expected)


class Tally:
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.failed: list[str] = []
        self.wrong: list[str] = []
        self.refused = self.let_pass = self.broken = 0


async def client(number: int, url: str, asked: list[Any], end: float, tally: Tally) -> None:
    draw = random.Random(number)
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
        while time.monotonic() < end:
            kind, request, expected = draw.choice(asked)
            if draw.random() < 0.1:
                body, headers = malformed(draw, asked[0][1]["image"])
                try:
                    response = await http.post("/v1/match", content=body, headers=headers)
                except httpx.TransportError:
                    tally.broken += 1
                    continue
                tally.refused += 400 <= response.status_code < 500
                tally.let_pass += not 400 <= response.status_code < 500
                continue
            begun = time.monotonic()
            try:
                response = await http.post(f"/v1/{kind}", json=request)
            except httpx.TransportError as error:
                tally.failed.append(f"{kind}: {error!r}")
                continue
            tally.seconds.append(time.monotonic() - begun)
            if response.status_code != 200:
                tally.failed.append(f"{kind}: {response.status_code} {response.text[:200]}")
                continue
            text = response.text.strip().rpartition("data: ")[2]
            if differs(json.loads(text), expected):
                tally.wrong.append(f"{kind}: {text[:200]} and not {str(expected)[:200]}")


def resident(pid: int) -> float:
    """MB of a process's memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def watched(pid: int, begun: float, end: float, memory: dict[int, float]) -> None:
    while time.monotonic() < end:
        memory[int(time.monotonic() - begun)] = resident(pid)
        await asyncio.sleep(1)


def main() -> int:
    said = dict(word.partition("=")[::2] for word in sys.argv[1:])
    seconds, clients, bound = (
        float(said.get(*pair)) for pair in (("seconds", "300"), ("clients", "32"), ("bound", "30"))
    )
    model = fk.load(said["checkpoint"], device="cpu")
    images = sorted(path for path in Path(said["images"]).iterdir() if path.is_file())[:24]
    search = model.index(said["index"]) if "index" in said else None
    asked = requests_of(model, images, search)
    line = [
        sys.executable,
        "-m",
        "fusionkit",
        "serve",
        f"checkpoint={said['checkpoint']}",
        "port=0",
        "trainer.accelerator=cpu",
    ]
    line += [f"index={said['index']}"] if "index" in said else []
    line += [f"timeout_seconds={bound}"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        url = None
        for told in process.stdout:
            if found := re.search(r"http://\S+", told):
                url = found[0].rstrip("/")
                break
        if url is None:
            print("the service did not start")
            return 1
        tally, memory = Tally(), dict[int, float]()

        async def load() -> None:
            begun = time.monotonic()
            end = begun + seconds
            ways = [client(number, str(url), asked, end, tally) for number in range(int(clients))]
            await asyncio.gather(watched(process.pid, begun, end, memory), *ways)

        asyncio.run(load())
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        code = process.wait(60)
        stopped = time.monotonic() - begun
    ordered = sorted(tally.seconds)
    print(f"{len(ordered):,} valid requests in {seconds:g} s by {clients:g} clients: {len(tally.failed)} failed")
    print(f"{len(tally.wrong)} answers differ from the API's")
    print(f"malformed: {tally.refused} refused, {tally.let_pass} not refused, {tally.broken} connections broken")
    p50, p99 = (ordered[int(len(ordered) * part)] for part in (0.5, 0.99))
    print(f"p50 {p50:.3f} s, p99 {p99:.3f} s, most {ordered[-1]:.3f} s; bound {bound:g} s")
    early, last = min(60, int(seconds / 5)), max(memory)
    first = memory[min(memory, key=lambda second: abs(second - early))]
    print(f"RSS at {early} s {first:.0f} MB, at {last} s {memory[last]:.0f} MB: {memory[last] / first:.3f} x")
    print(f"TERM: exit code {code} after {stopped:.1f} s")
    for line_of in (*tally.failed[:5], *tally.wrong[:5]):
        print(line_of)
    is_right = not tally.failed and not tally.wrong and not tally.let_pass and p99 <= bound and code == 0
    return 0 if is_right and memory[last] <= 1.05 * first else 1


if __name__ == "__main__":
    sys.exit(main())
