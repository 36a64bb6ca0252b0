"""What a search found as one file: a contact sheet (PNG), or a page with the pictures in it (html)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from fusionkit.data.images import CorruptImage, decode
from fusionkit.errors import ConfigError
from fusionkit.files.atomic import write_text
from fusionkit.reporting.html import breakable, document, element, thumbnail
from fusionkit.scoring.sheet import CELL, Note, Panel, Picture, Sheet
from fusionkit.visual.contact_sheet import COLUMNS, ROWS, draw_sheet

ENDINGS = (".png", ".html")
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2328; background: #fff; margin: 2rem auto;
  max-width: 75rem; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin: 2rem 0 .75rem; overflow-wrap: anywhere } p { color: #57606a }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(13rem, 100%), 1fr)); gap: 1rem;
  list-style: none; padding: 0 }
figure { margin: 0 } figcaption { color: #57606a; overflow-wrap: anywhere; margin-top: .3rem }
img { width: 100%; height: 10rem; object-fit: contain; background: #eef0f2; border-radius: 4px }
"""


@dataclass(frozen=True)
class Shown:
    """A picture that was found: its file, its name, and what is said of it."""

    file: Path
    name: str
    told: str


Group = tuple[str, Sequence[Shown]]  # what was looked for, and what was found


def require_ending(path: Path) -> None:
    """Raise ConfigError for a sheet of another kind."""
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"sheet={path} is neither a picture nor a page; name a .png or .html file")


def write_sheet(path: Path, title: str, groups: Sequence[Group]) -> None:
    """Write the groups; a PNG has room for the first pictures alone, and says so. One that cannot be read is left out."""
    if path.suffix.lower() == ".png":
        return draw_sheet(_sheet(groups), title, path)
    head = [
        element("title", title),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("style", STYLE),
    ]
    sections = [part for group in groups for part in _section(*group)]
    write_text(path, document(head, [element("main", element("h1", title), *sections)]))


def _section(heading: str, pictures: Sequence[Shown]) -> list[Element]:
    figures = (element("li", element("figure", _image(shown), _caption(shown))) for shown in pictures)
    return [element("h2", heading), element("ol", *figures)]


def _image(shown: Shown) -> Element:
    found = thumbnail(shown.file, upright=True)
    if found is None:
        return element("p", "cannot be shown")
    return element("img", src=found[0], alt=shown.name, loading="lazy")


def _caption(shown: Shown) -> Element:
    return element("figcaption", shown.told, element("br"), *breakable(shown.name))


def _sheet(groups: Sequence[Group]) -> Sheet:
    every = [(heading, shown) for heading, pictures in groups for shown in pictures]
    there = [(heading, shown) for heading, shown in every[: COLUMNS * ROWS] if _is_readable(shown.file)]
    panels = [
        Panel(heading, (Picture(shown.file, notes=(Note(shown.told), Note(shown.name)), upright=True),))
        for heading, shown in there
    ]
    legend = "" if len(there) == len(every) else f"{len(there)} of {len(every)} pictures"
    return Sheet(legend, panels)


def _is_readable(path: Path) -> bool:
    try:
        decode(path, CELL[1])
    except CorruptImage:
        return False
    return True
