"""The page of a comparison and the rating sheet in a real browser: seen, by mouse, by keyboard, and what raters send back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from fusionkit.cli.main import run
from tests.browser import Browser
from tests.reporting.test_comparison_page import EVIL
from tests.reporting.worlds import QUESTIONS, write_evaluation, write_questions

pytestmark = pytest.mark.browser

LOOKS = pytest.mark.parametrize(("size", "is_dark"), [("desk", False), ("phone", True)])
LONG = "a fairly long answer that goes on for quite some while, as captions of photos do, and says one thing after another "
RTL = "\u05db\u05de\u05d4 \u05d3\u05d1\u05e8\u05d9\u05dd?"  # Hebrew
PAIRS = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three evaluations compared in ``out``, and a sheet of two of them."""
    folder = tmp_path_factory.mktemp("pages")
    write_questions(folder / "data", f"{RTL} {EVIL}")
    for at, path in enumerate(sorted((folder / "data").glob("*.jpg"))):
        Image.new("RGB", (300, 480) if at % 2 else (640, 360), (10 * at, 90, 90)).save(path)
    right = {
        "alpha": lambda at: at % 2 == 0,
        "omega": lambda at: at % 4 == 0,
        "a-run-of-long_name-lr-0.0001": lambda at: at % 3 > 0,
    }
    for (name, is_right), answer in zip(right.items(), (4 * LONG, "perhaps", EVIL), strict=True):
        checkpoint = f"/runs/{name}/best.ckpt"
        write_evaluation(folder / name, [is_right(at) for at in range(QUESTIONS)], checkpoint, answer=answer)
    (folder / "omega/attention").mkdir()
    Image.new("RGB", (900, 300)).save(folder / "omega/attention/0_what.png")
    runs = [f"{folder}/{name}" for name in right]
    assert run(["compare", *runs, f"output_dir={folder}/out", "resamples=100"]) == 0
    assert run(["compare", *runs[:2], f"rating={folder}/sheet", f"rating_pairs={PAIRS}"]) == 0
    return folder


@pytest.fixture
def seen(browser: Browser) -> Iterator[Browser]:
    """The browser, whose pages have then complained of nothing and asked for nothing but themselves."""
    yield browser
    assert browser.complaints() == []
    assert [address for address in browser.asked() if not address.startswith(("data:", "blob:"))][1:] == []


def comparison(browser: Browser, world: Path, *look: Any) -> None:
    browser.open((world / "out/index.html").as_uri(), *look)


def sheet(browser: Browser, world: Path, *look: Any) -> None:
    browser.open((world / "sheet/rating.html").as_uri(), *look)


def clear(browser: Browser, world: Path) -> None:
    """The sheet as nobody has rated it yet."""
    sheet(browser, world)
    browser.script("localStorage.clear()")
    sheet(browser, world)


def pair(browser: Browser) -> str:
    (shown,) = [each.text for each in browser.all("section h2") if each.is_displayed()]
    return shown


def chosen(browser: Browser) -> list[str | None]:
    return [each.get_attribute("data-choice") for each in browser.all("[data-choice][aria-pressed=true]")]


def downloaded(browser: Browser, name: str) -> Path:
    path = browser.downloads / name
    browser.until(path.is_file)
    return path


@LOOKS
def test_the_comparison_fits_and_can_be_read(seen: Browser, world: Path, size: str, is_dark: bool) -> None:
    comparison(seen, world, size, is_dark)
    for closed in seen.all("details:not([open])"):
        seen.script("arguments[0].open = true", closed)
    assert seen.outside() == []
    assert seen.faint() == []
    before = seen.script("return document.documentElement.scrollHeight")
    for image in seen.all("img"):
        seen.script("arguments[0].scrollIntoView()", image)
        seen.until(lambda image=image: seen.script("return arguments[0].complete && arguments[0].naturalWidth", image))
    assert seen.script("return document.documentElement.scrollHeight") == before  # nothing moves as pictures come
    seen.at("nav a[href='#settings']").click()
    assert seen.script("return document.querySelector('#settings h2').getBoundingClientRect().bottom < innerHeight")


def test_the_comparison_by_keyboard_and_as_it_is_read_out(seen: Browser, world: Path) -> None:
    comparison(seen, world)
    nameless = (
        "return [...document.querySelectorAll('[tabindex]')].filter(e => !e.role || !e.ariaLabel).map(e => e.outerHTML)"
    )
    assert seen.script(nameless) == []
    tree = seen.tree()
    assert {("navigation", "sections"), ("link", "Scores"), ("heading", "Settings")} <= set(tree)
    assert ("group", "vqav2, right by some") in tree
    assert not any(role in ("image", "button", "link") and not name for role, name in tree)

    def column() -> list[str]:
        return [each.text.splitlines()[0] for each in seen.all("#scores > .wide tbody th")]

    title = seen.all("#scores > .wide thead button")[1]
    names = column()
    for order in ("descending", "ascending"):
        title.send_keys(Keys.ENTER)
        assert title.find_element("xpath", "..").get_attribute("aria-sort") == order
        best = names[2] if order == "descending" else names[1]  # 65, 50 and 25 percent
        assert column()[0] == best
    for closed in seen.all("details:not([open]) > summary"):
        closed.send_keys(Keys.SPACE)
    assert seen.all("details:not([open])") == []
    assert [each.text for each in seen.all("summary")][-1] in names
    comparison(seen, world)
    links = [each.text for each in seen.all("nav a")]
    reached = seen.tabbed(60)
    assert reached[: len(links)] == links
    assert reached[-3:] == names  # the settings of each run
    ways = seen.script("return [...document.querySelectorAll('.asked')].map(e => getComputedStyle(e).direction)")
    assert set(ways) == {"rtl"}


@LOOKS
def test_the_sheet_fits_and_can_be_read(seen: Browser, world: Path, size: str, is_dark: bool) -> None:
    clear(seen, world)
    sheet(seen, world, size, is_dark)
    assert seen.faint() == []
    for number in range(1, PAIRS + 1):
        assert pair(seen) == f"Pair {number} of {PAIRS}"
        assert seen.outside() == []
        (image,) = [each for each in seen.all("section img") if each.is_displayed()]
        wide, high = (seen.script(f"return arguments[0].natural{side}", image) for side in ("Width", "Height"))
        assert image.rect["width"] / image.rect["height"] == pytest.approx(wide / high, rel=0.02)  # not stretched
        left, right = (each.rect for each in seen.all(".side") if each.is_displayed())
        assert left["x"] < right["x"]
        assert left["y"] == right["y"]
        assert seen.script("return document.querySelector('.choices').getBoundingClientRect().bottom <= innerHeight")
        seen.at("#next").click()


def test_two_raters_by_keyboard_and_by_mouse(seen: Browser, world: Path) -> None:
    """What the page says that they chose is what the command finds, and as they agree by hand."""
    keys, buttons = "112343", [1, 2, 1, 3, 1, 3]
    clear(seen, world)
    assert seen.tabbed() == [
        *("rater", "1 left is better", "2 right is better", "3 equally good", "4 both bad"),
        *("previous", "next", "download", "anew"),
    ]
    sheet(seen, world)
    seen.press(Keys.TAB, "Anna 1", Keys.TAB)  # a digit in the name chooses nothing
    assert seen.at("#state").text == f"0 of {PAIRS} pairs rated"
    for number, key in enumerate(keys, start=1):
        assert pair(seen) == f"Pair {number} of {PAIRS}"
        seen.press(key)
    assert seen.at("#state").text == f"{PAIRS} of {PAIRS} pairs rated: all done, download the result"
    seen.press("p")
    assert pair(seen) == f"Pair {PAIRS - 1} of {PAIRS}"
    assert chosen(seen) == ["both_bad"]
    seen.press("n")
    assert chosen(seen) == ["tie"]
    seen.press(*[Keys.TAB] * 7, Keys.ENTER)
    first = downloaded(seen, "rating_Anna_1.json")

    sheet(seen, world, "phone")
    assert seen.at("#rater").get_attribute("value") == "Anna 1"  # what she chose is still there
    assert chosen(seen) == ["left"]
    seen.at("#anew").click()
    seen.driver.switch_to.alert.accept()
    assert (seen.at("#state").text, seen.focused()) == (f"0 of {PAIRS} pairs rated", "rater")
    for number, button in enumerate(buttons, start=1):
        assert pair(seen) == f"Pair {number} of {PAIRS}"
        seen.all("[data-choice]")[button - 1].click()
    seen.at("#download").click()
    assert "Write your name first" in seen.at("#state").text
    assert seen.focused() == "rater"
    seen.press("Ben")
    seen.at("#download").click()
    second = downloaded(seen, "rating_Ben.json")

    assert run(["compare", f"rating={world}/sheet", f"rating_results=['{first}','{second}']", "resamples=100"]) == 0
    found = json.loads((world / "sheet/ratings.json").read_text())
    left = [each["left"] for each in json.loads((world / "sheet/key.json").read_text())["pairs"]]
    # 0 and 1 are the runs, 2 a tie, 3 both bad: sides become runs by the key
    said = [
        [int(each) - 1 if int(each) > 2 else (int(each) - 1) ^ side for each, side in zip(by, left, strict=True)]
        for by in (keys, buttons)
    ]
    counts = [[by.count(choice) for choice in range(4)] for by in said]
    assert [list(found["raters"][name].values()) for name in ("Anna 1", "Ben")] == counts
    agreed = sum(a == b for a, b in zip(*said, strict=True)) / PAIRS
    assert agreed == 3 / 6
    chance = sum(a * b for a, b in zip(*counts, strict=True)) / PAIRS**2
    assert found["scores"]["agreement"] == pytest.approx(100 * agreed)
    assert found["scores"]["kappa"] == pytest.approx((agreed - chance) / (1 - chance))


def test_a_slip_of_the_hand_rates_one_pair(seen: Browser, world: Path) -> None:
    clear(seen, world)
    seen.key("1", "Digit1")
    for _ in range(3):
        seen.key("1", "Digit1", is_held=True)
    assert seen.at("#state").text == f"1 of {PAIRS} pairs rated"
    ActionChains(seen.driver).double_click(seen.all("[data-choice]")[1]).perform()
    assert seen.at("#state").text == f"2 of {PAIRS} pairs rated"
    seen.key('"', "Digit3")  # of a French keyboard
    assert pair(seen) == f"Pair 4 of {PAIRS}"
    seen.key("p", "KeyP")
    assert chosen(seen) == ["tie"]
    seen.key("7", "Digit7")
    seen.key("x", "KeyX")
    assert pair(seen) == f"Pair 3 of {PAIRS}"
    sheet(seen, world)  # anew, which begins where nothing is chosen
    assert pair(seen) == f"Pair 4 of {PAIRS}"
