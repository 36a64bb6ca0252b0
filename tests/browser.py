"""A headless Chromium for the tests with the marker ``browser``: one for a process, emptied before each page.

Waits are on conditions, never for a time. ``complaints`` and ``asked`` tell what stood in the console and went to the network.
"""

import base64
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE = 60  # seconds after which what is waited for will not come
SIZES = {"desk": (1400, 900), "phone": (390, 844)}
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # in a container, as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing but this machine has an address
)
# the control that has the keyboard, as a person would call it
FOCUSED = "const e = document.activeElement; return e === document.body ? '' : e.id || e.textContent.trim() || e.value"
OUTSIDE = """
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
return wide <= 0 ? [] : [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.tagName + '#' + e.id);
"""
# texts of less contrast than WCAG AA asks for, on the colour that lies behind them
FAINT = """
const read = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, at) => sum + v * [.2126, .7152, .0722][at], 0);
const behind = e => {
  for (; e; e = e.parentElement) { const c = read(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; }
  return matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255]; };
return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility({ opacityProperty: true }) && !e.closest('svg')
  && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
    const [one, two] = [light(read(getComputedStyle(e).color)), light(behind(e))];
    return [e.tagName + ' ' + e.textContent.trim().slice(0, 30), (Math.max(one, two) + .05) / (Math.min(one, two) + .05)];
  }).filter(([, ratio]) => ratio < 4.5);
"""


def missing() -> str:
    """What stands in the way of the tests in a browser, as a sentence; nothing where all is there."""
    if not _program():
        return "no Chromium on this machine; on Debian: apt-get install chromium chromium-driver"
    return (
        ""
        if shutil.which("chromedriver")
        else "no chromedriver on this machine; on Debian: apt-get install chromium-driver"
    )


def why_skipped() -> str:
    """Why tests in a browser are left out; nothing where they run, or fail, since they may not be left out in CI."""
    return "" if os.environ.get("CI") else missing()


def _program() -> str | None:
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """Chromium with files of its own in ``folder``; ``downloads`` is where it puts what is downloaded."""

    def __init__(self, folder: Path) -> None:
        if sentence := missing():
            raise RuntimeError(sentence)
        self.downloads = folder / "downloads"
        self.downloads.mkdir()
        options = webdriver.ChromeOptions()
        options.binary_location = str(_program())
        for option in (*OPTIONS, f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        options.add_experimental_option("prefs", {"download.default_directory": str(self.downloads)})
        service = webdriver.ChromeService(str(shutil.which("chromedriver")), env=os.environ | {"HOME": str(folder)})
        self.driver = webdriver.Chrome(options, service)

    def close(self) -> None:
        self.driver.quit()

    def open(self, url: str, size: str = "desk", is_dark: bool = False) -> None:
        """Show a page in a window of this size, as if for the first time."""
        width, height = SIZES[size]
        self.command("Page.enable")
        self.command("Emulation.setTouchEmulationEnabled", enabled=size == "phone")
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == "phone",
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.driver.get("about:blank")
        self.complaints()  # those of the page before
        self.asked()
        self.driver.get(url)

    def command(self, name: str, **arguments: Any) -> Any:
        """One command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def until(self, condition: Callable[[], Any]) -> Any:
        """What the condition gives, once it is true."""
        return WebDriverWait(self.driver, PATIENCE, poll_frequency=0.02).until(lambda _: condition())

    def at(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def press(self, *keys: str) -> None:
        """Keys of the keyboard, to whatever has it."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> str:
        """The control that has the keyboard; nothing where none has."""
        return str(self.script(FOCUSED))

    def tabbed(self, most: int = 40) -> list[str]:
        """What Tab reaches from here on, in order, until it leaves the page or comes round."""
        found: list[str] = []
        seen = set[str]()
        for _ in range(most):
            self.press(Keys.TAB)
            name, place = self.focused(), self.driver.switch_to.active_element.id
            if not name or place in seen:
                break
            found.append(name)
            seen.add(place)
        return found

    def outside(self) -> list[str]:
        """The elements for which the page has to be moved sideways."""
        return list(self.script(OUTSIDE))

    def faint(self) -> list[Any]:
        """Texts that are hard to read, with their contrast."""
        return list(self.script(FAINT))

    def key(self, key: str, code: str, is_held: bool = False) -> None:
        """One key as it goes down, by the letter that it gives and its place on the keyboard; ``is_held`` as it goes on."""
        self.command("Input.dispatchKeyEvent", type="keyDown", key=key, code=code, autoRepeat=is_held)

    def drop(self, path: Path, selector: str) -> None:
        """Drag a file of the system over an element, and let it go."""
        box = self.at(selector).rect
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.command("Input.dispatchDragEvent", type=kind, data=data, **place)

    def tree(self) -> list[tuple[str, str]]:
        """Role and name of all that a screen reader is told of, in order, without the texts themselves."""
        nodes: Sequence[Any] = self.command("Accessibility.getFullAXTree")["nodes"]
        known = ((n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"])
        return [
            each for each in known if each[0] not in ("StaticText", "InlineTextBox", "generic", "none", "LineBreak")
        ]

    def complaints(self) -> list[str]:
        """What stands in the page's console since the last call."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def asked(self) -> list[str]:
        """The addresses that were asked for since the last call."""
        entries = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))  # type: ignore[no-untyped-call]
        found = [each["params"]["request"]["url"] for each in entries if each["method"] == "Network.requestWillBeSent"]
        return [url for url in found if url != "about:blank"]

    def shot(self, path: Path) -> None:
        """The whole page as a picture."""
        size = self.script("const e = document.documentElement; return [e.clientWidth, e.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        data = self.command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))
