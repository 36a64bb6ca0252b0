"""The page of a service in a real browser: by mouse, by keyboard alone, on a phone, and as a screen reader is told of it."""

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

import fusionkit as fk
from fusionkit.serving.app import Service
from fusionkit.serving.guard import LOOPBACK
from fusionkit.serving.limits import Limits
from fusionkit.serving.served import Served
from fusionkit.serving.server import Process, bound_socket
from tests.browser import PATIENCE, Browser

pytestmark = pytest.mark.browser

PHRASE, QUESTION = "a red star", "how many things are there?"
HTML = '<img src=x onerror="window.hurt = 1"><b>bold</b>'
RTL = "\u05db\u05de\u05d4 \u05d3\u05d1\u05e8\u05d9\u05dd? \U0001f31f\U0001f469\u200d\U0001f467"  # Hebrew and emoji
BOX = [185, 28, 28, 255]
PIXEL = """
const copy = new OffscreenCanvas(1, 1).getContext('2d');  // Chromium warns of a canvas that is read itself
copy.drawImage(document.getElementById('canvas'), -arguments[0], -arguments[1]);
return [...copy.getImageData(0, 0, 1, 1).data];
"""
MOVED = """
const [kind, isFile] = arguments, how = { cancelable: true, bubbles: true }, data = new DataTransfer();
if (isFile) data.items.add(new File([await (await fetch('/icon.svg')).blob()], 'pasted.svg', { type: 'image/svg+xml' }));
else data.setData('text/plain', 'words');
const event = kind === 'paste' ? new ClipboardEvent(kind, { clipboardData: data, ...how })
  : new DragEvent(kind, { dataTransfer: data, ...how });
document.getElementById('text').dispatchEvent(event);
return event.defaultPrevented;
"""
SIZES = pytest.mark.parametrize("size", ["desk", "phone"])


@pytest.fixture(scope="module")
def service(served: Served) -> Iterator[Service]:
    made = Service([served], Limits(wait_ms=0, timeout_seconds=PATIENCE), LOOPBACK)
    made.start()
    yield made
    assert made.close(PATIENCE)


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    """Of a server on a thread of its own."""
    with bound_socket("127.0.0.1", 0) as listening:
        server = Process(service, listening).server
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator["Page"]:
    """The page, which after the test has complained of nothing and asked nobody else."""
    opened = Page(browser, url)
    yield opened
    for complaint in browser.complaints():
        assert re.search(r"the server responded with a status of 4\d\d", complaint), (
            complaint
        )  # Chromium says it of each
        assert opened.may_refuse, complaint
    assert {address for address in browser.asked() if not address.startswith((url, "blob:"))} == set()
    assert browser.script("return window.hurt === undefined")


class Page:
    """What a person does with it."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url, self.may_refuse = browser, url, False

    def open(self, size: str = "desk", is_dark: bool = False) -> None:
        self.browser.open(self.url, size, is_dark)
        self.browser.until(lambda: self.browser.all("#kinds input"))

    def give(self, path: Path) -> None:
        """Choose a picture, and wait until it is shown."""
        self.browser.at("#file").send_keys(str(path))
        self.until_shown(path)

    def until_shown(self, path: Path) -> None:
        self.browser.until(lambda: path.name in self.browser.at("#file-told").text)
        assert self.browser.at("#canvas").is_displayed()

    def choose(self, kind: str, text: str = "") -> None:
        self.browser.at(f"#kinds label:has([value={kind}])").click()
        if text:
            self.write(text)

    def write(self, text: str) -> None:
        """As if pasted: drivers type no emoji."""
        self.browser.script("const e = document.getElementById('text'); e.value = arguments[0]; e.focus()", text)

    def ask(self) -> str:
        """Press the button, and wait for what is said."""
        self.browser.at("#send").click()
        return self.answered()

    def answered(self) -> str:
        self.browser.until(lambda: not self.is_running)
        return self.browser.at("#answer").text

    @property
    def is_running(self) -> bool:
        return self.browser.at("#send").get_attribute("aria-disabled") == "true"

    @property
    def fault(self) -> str:
        return self.browser.at("#fault").text

    def pixels(self) -> str:
        return str(self.browser.script("return document.getElementById('canvas').toDataURL()"))

    def pixel(self, x: float, y: float) -> list[int]:
        return list(self.browser.script(PIXEL, round(x), round(y)))

    def is_whole(self) -> bool:
        """Whether all fits the width of the window, and can be read."""
        return self.browser.outside() == [] and self.browser.faint() == []


class Gate:
    """A filter that holds texts back until the test lets them go, and says ``text`` in the place of each."""

    held = 0  # drafts of a stream pass it too

    def __init__(self, text: str = "") -> None:
        self.text, self.seen, self.passed, self.steps = text, 0, 0, threading.Semaphore(0)

    def __call__(self, kind: str, text: str) -> str:
        self.seen += 1
        assert self.steps.acquire(timeout=PATIENCE)
        return self.text or text

    def let_one(self) -> None:
        self.passed += 1
        self.steps.release()

    def open(self) -> None:
        self.steps.release(10_000)


@pytest.mark.parametrize(("size", "is_dark"), [("desk", False), ("phone", True)])
def test_a_picture_is_asked_about(page: Page, model: fk.Model, photos: list[Path], size: str, is_dark: bool) -> None:
    page.open(size, is_dark)
    assert page.browser.at("#answer").text == "Nothing is asked yet."
    assert page.is_whole()
    if size == "desk":
        page.browser.drop(photos[0], "#drop")
        page.until_shown(photos[0])
    else:
        page.give(photos[0])
    page.choose("answer", QUESTION)
    said = page.ask().splitlines()
    assert said[0] == model.answer(photos[0], QUESTION)
    shares = [float(line.removesuffix("%")) for line in said if line.endswith("%")]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert page.is_whole()
    with Image.open(photos[0]) as image:
        assert (
            page.browser.at("#file-told").text
            == f"{photos[0].name}, {image.width} \N{MULTIPLICATION SIGN} {image.height}"
        )
    shown = page.browser.at("#canvas").rect
    assert min(shown["width"], shown["height"]) > 300  # of a picture of 64 pixels
    answer = page.browser.script(
        "return document.getElementById('answer').getBoundingClientRect().bottom <= innerHeight + 1"
    )
    assert answer  # it is there without a movement of the user's
    page.choose("match", PHRASE)
    assert page.ask() == f"It matches with a probability of {100 * model.match(photos[0], PHRASE):.1f}%."


@SIZES
def test_a_phrase_has_a_box_and_words_look(page: Page, model: fk.Model, photos: list[Path], size: str) -> None:
    left, top, width, height = model.ground(photos[1], PHRASE).tolist()
    page.open(size)
    page.give(photos[1])
    bare, scale = page.pixels(), 10  # 64 pixels are shown as 640
    page.choose("ground", PHRASE)
    assert page.ask().startswith(f"A box at {round(left)}, {round(top)}, {round(width)}, {round(height)} (")
    sides = (left, top + height / 2), (left + width / 2, top), (left + width, top + height / 2)
    inside = [(x, y) for x, y in sides if 1 < x < 63 and 1 < y < 63]
    assert inside
    assert all(page.pixel(scale * x, scale * y) == BOX for x, y in inside)
    assert page.browser.at("#canvas").get_attribute("aria-label") == f"{photos[1].name}, with a box"
    assert not page.browser.at("#words").is_displayed()
    boxed = page.pixels()
    page.browser.at("#look").click()
    page.ask()
    buttons = page.browser.all("#words button")
    assert [button.text for button in buttons] == ["all words", *PHRASE.split(), "none"]
    drawn = {page.pixels()}
    for button in buttons[1:-1]:
        button.click()
        assert [each.get_attribute("aria-pressed") for each in buttons].count("true") == 1
        drawn.add(page.pixels())
    assert len(drawn) == 4
    assert page.is_whole()
    buttons[-1].click()
    assert page.pixels() == boxed != bare
    page.give(photos[2])
    assert not page.browser.at("#words").is_displayed()  # they were of another picture
    page.give(photos[1])
    assert page.pixels() == bare


def test_a_caption_comes_word_by_word(
    page: Page, service: Service, model: fk.Model, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, seen = Gate(), list[str]()
    monkeypatch.setattr(service, "rule", gate)
    page.open()
    page.give(photos[0])
    page.choose("caption")
    assert not page.browser.at("#text").is_displayed()
    page.browser.at("#send").click()
    answer = page.browser.at("#answer")

    def another_draft() -> str:
        """One that was not seen yet; as long as it does not come, the model is let go on by a token."""
        if gate.seen > gate.passed:
            gate.let_one()
        said = answer.text
        return said if said.endswith("…") and said not in (*seen, "Waiting for the answer …") else ""

    for _ in range(3):
        seen.append(page.browser.until(another_draft))
        assert answer.get_attribute("aria-busy") == "true"  # else each draft would be read out
    gate.open()
    assert page.answered() == model.caption(photos[0])
    assert answer.get_attribute("aria-busy") is None


@SIZES
def test_a_folder_is_searched(page: Page, model: fk.Model, world: Path, photos: list[Path], size: str) -> None:
    index = model.index(world / "index")
    page.open(size)
    page.choose("search", PHRASE)
    assert page.ask() == "10 pictures were found."

    def names() -> list[str]:
        return [each.text for each in page.browser.all("#found bdi")]

    assert names() == [each["image"] for each in index.search(PHRASE, top=10, k=64)]
    assert page.is_whole()
    for image in page.browser.all("#found img"):
        page.browser.script("arguments[0].scrollIntoView()", image)
        page.browser.until(lambda image=image: page.browser.script("return arguments[0].naturalWidth", image))
    page.browser.at("#with").click()
    page.browser.at("#send").click()
    assert page.fault == "Choose a picture to search with."
    page.give(photos[0])
    assert not page.browser.at("#found").is_displayed()
    page.write("")
    page.ask()
    assert page.fault == ""
    assert names()[0] == photos[0].name


def test_a_screen_reader_is_told_of_all_and_the_keyboard_reaches_it(page: Page, photos: list[Path]) -> None:
    page.open()
    tree = page.browser.tree()
    expected = {
        ("link", "Skip to the question"),
        *(("heading", name) for name in ("Ask about a picture", "Picture", "Question", "Answer")),
        *(("region", name) for name in ("Picture", "Question")),
        *(("combobox", "Model"), ("button", "Choose a picture"), ("group", "What to ask for"), ("textbox", "Question")),
        *(("checkbox", "Show where the words look"), ("button", "Ask"), ("link", "The API, for programs")),
        *(("status", ""), ("alert", "")),
        *(("radio", name) for name in ("Answer a question", "Describe it", "Find a phrase", "Match a text")),
        ("radio", "Search the folder"),
    }
    assert expected <= set(tree)
    assert not any(role in ("button", "textbox", "checkbox", "radio", "image") and not name for role, name in tree)
    assert page.browser.at("#file").accessible_name == "Choose a picture"
    order = ["Skip to the question", "model", "file", "answer", "text", "look", "send", "The API, for programs"]
    assert page.browser.tabbed() == order

    page.open()
    page.give(photos[0])
    page.browser.script("document.getElementById('file').focus()")
    page.browser.press(Keys.TAB, Keys.ARROW_DOWN, Keys.ARROW_DOWN)  # to the second, to the third
    assert page.browser.at("#text-label").text == "Phrase to find"
    page.browser.press(Keys.TAB, PHRASE, Keys.TAB, Keys.SPACE, Keys.TAB, Keys.ENTER)
    assert page.answered().startswith("A box at")
    assert page.browser.focused() == "send"  # the keyboard's place is not lost
    page.browser.script("document.getElementById('file').focus()")
    page.browser.press(Keys.TAB)
    assert page.browser.focused() == "all words"
    page.browser.press(Keys.TAB, Keys.SPACE)
    assert page.browser.at("#words [aria-pressed=true]").text == PHRASE.split()[0]
    assert {("group", "Show where a word looks"), ("button", "star")} <= set(page.browser.tree())
    assert ("image", f"{photos[0].name}, with a box, with where a word looks") in page.browser.tree()
    page.browser.script("document.getElementById('text').select()")
    page.browser.press("a blue ring", Keys.ENTER)
    assert page.answered().startswith("A box at")
    assert [button.text for button in page.browser.all("#words button")][2] == "blue"


@SIZES
def test_what_is_refused_is_a_sentence(page: Page, photos: list[Path], tmp_path: Path, size: str) -> None:
    broken, other = tmp_path / "broken.png", tmp_path / "other.png"
    broken.write_bytes(b"no picture")
    with Image.open(photos[0]) as image:
        image.save(other, "BMP")  # which browsers show, and the service does not read
    page.open(size)
    page.browser.at("#send").click()
    assert page.fault == "Choose a picture first."
    assert page.browser.focused() == "file"
    page.browser.at("#file").send_keys(str(broken))
    page.browser.until(lambda: "broken.png is no picture that can be shown" in page.fault)
    page.give(photos[0])
    page.browser.at("#send").click()
    assert (page.fault, page.browser.focused()) == ("Write what you ask for.", "text")
    page.give(other)
    page.choose("answer", QUESTION)
    page.may_refuse = True
    assert page.ask() == "No answer."
    assert page.fault.startswith("'image' is no picture; send one of")
    assert page.fault.endswith(".")
    assert ("alert", "") in page.browser.tree()
    assert page.is_whole()
    page.give(photos[0])
    assert page.fault == ""
    page.ask()
    assert page.fault == ""


def test_one_request_runs_at_a_time(
    page: Page, service: Service, model: fk.Model, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    monkeypatch.setattr(service, "rule", gate)
    page.open()
    page.give(photos[0])
    page.choose("answer", QUESTION)
    page.browser.at("#text").send_keys(Keys.ENTER)
    page.browser.until(lambda: gate.seen)
    assert page.browser.at("#answer").text == "Waiting for the answer …"
    page.browser.at("#send").click()
    page.browser.at("#text").send_keys(Keys.ENTER)
    assert page.is_running
    stop = page.browser.at("#stop")
    stop.send_keys(Keys.SPACE)
    assert page.answered() == "Stopped."
    assert not stop.is_displayed()
    assert page.browser.focused() == "send"
    page.browser.at("#send").click()
    page.give(photos[1])  # while the answer about the other one is waited for
    assert not page.is_running
    gate.open()
    page.choose("ground", PHRASE)
    assert page.ask().startswith("A box at")
    asked = [address for address in page.browser.asked() if "/v1/" in address]
    assert [address.rpartition("/")[2] for address in asked] == ["models", "answer", "answer", "ground"]


@SIZES
def test_texts_of_any_kind_are_texts(
    page: Page, service: Service, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    gate = Gate()
    gate.open()
    monkeypatch.setattr(service, "rule", gate)
    path = tmp_path / "<img src=x onerror='window.hurt=1'>.jpg"
    path.write_bytes(photos[0].read_bytes())
    page.open(size)
    page.give(path)
    page.choose("answer", RTL)
    for text in (HTML, RTL, "long" * 700, "many words " * 300):
        gate.text = text
        assert page.ask().splitlines()[0].rstrip() == text.rstrip()
        assert page.browser.outside() == []
        way = page.browser.script("return getComputedStyle(document.querySelector('#answer p')).direction")
        assert way == ("rtl" if text == RTL else "ltr")
    assert page.browser.all("#answer img, #answer b, #file-told img") == []
    assert page.browser.script("return getComputedStyle(document.getElementById('text')).direction") == "rtl"
    page.choose("match", "<b>word</b> " + "word " * 300)
    page.browser.at("#look").click()
    page.ask()
    assert page.browser.outside() == []
    assert page.browser.at("#words").rect["height"] < 200
    page.choose("match", "word " * 1000)
    page.may_refuse = True
    page.ask()
    assert "characters" in page.fault


@pytest.mark.parametrize(("size", "is_dark"), [("desk", True), ("phone", False)])
def test_the_page_of_the_api_can_be_read(page: Page, size: str, is_dark: bool) -> None:
    page.browser.open(f"{page.url}docs", size, is_dark)
    assert page.is_whole()
    for cell in page.browser.all("td code"):
        assert cell.rect["height"] < 30, cell.text  # a name is not broken into lines


def test_a_service_that_stops_is_told_of(page: Page, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    page.open()
    monkeypatch.setattr(service.guard, "is_draining", True)
    page.browser.at("#kinds label:has([value=search])").click()
    page.write(PHRASE)
    page.ask()
    assert page.fault == "The service is stopping."
    page.browser.complaints()  # Chromium says each 503 itself


def test_a_connection_that_ends_and_a_proxy_that_fails_are_told_of(page: Page, photos: list[Path]) -> None:
    page.open()
    page.give(photos[0])
    page.choose("answer", QUESTION)
    for answer, sentence in (
        ("Promise.resolve(new Response('<html>', { status: 502 }))", "The service answers with an error, 502."),
        ("Promise.reject(new TypeError('Failed to fetch'))", "The service closed the connection: "),
        ('Promise.resolve(new Response(\'data: {"draft": "a"}\\n\\n\'))', "The connection ended before the answer."),
    ):
        page.choose("caption" if "draft" in answer else "answer")
        page.browser.script(f"window.fetch = () => {answer}")
        assert page.ask() == "No answer."
        assert page.fault.startswith(sentence)
        assert page.browser.at("#answer").get_attribute("aria-busy") is None


def test_the_later_of_two_pictures_counts_however_long_the_first_takes(page: Page, photos: list[Path]) -> None:
    page.open()
    page.browser.script(
        "const decode = createImageBitmap; window.createImageBitmap = file => file.name === arguments[0] ? "
        "new Promise(done => { window.late = () => done(decode(file)); }) : decode(file)",
        photos[0].name,
    )
    page.browser.at("#file").send_keys(str(photos[0]))
    page.browser.until(lambda: page.browser.script("return window.late !== undefined"))
    page.give(photos[1])
    frames = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
    page.browser.script("window.late()")
    page.browser.driver.execute_async_script(frames)
    assert photos[1].name in page.browser.at("#file-told").text


def test_pictures_are_pasted_and_words_are_dragged(page: Page, photos: list[Path]) -> None:
    """What is no file is left to the browser, which puts it into the field."""
    page.open()
    for kind in ("dragover", "drop", "paste"):
        assert page.browser.script(MOVED, kind, False) is False
        assert page.browser.script(MOVED, kind, True) is True
    page.browser.until(lambda: "pasted.svg" in page.browser.at("#file-told").text + page.fault)
    page.give(photos[0])
    page.browser.drop(photos[1], "#drop")
    page.until_shown(photos[1])
    page.give(photos[0])  # the same again, which is another than the one that is shown
