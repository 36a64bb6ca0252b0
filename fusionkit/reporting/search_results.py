"""What a search found: rows for a terminal, a contact sheet (PNG), or a page with the pictures in it (html)."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from fusionkit.errors import ConfigError
from fusionkit.files.atomic import write_text
from fusionkit.reporting.html import breakable, document, element, thumbnail
from fusionkit.scoring.records import Record
from fusionkit.scoring.sheet import Note, Panel, Picture, Sheet
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
Group = tuple[str, Sequence[Record]]
"""What was looked for, and what was found: ``image``, ``cosine``, and ``rank``, ``score`` and ``match``, or ``same_bytes``."""


def print_groups(groups: Sequence[Group], has_headings: bool) -> None:
    """A line for each image, whatever is in its name, below the heading of its group."""
    for heading, records in groups:
        if has_headings:
            print(one_line(heading))
        for record in records:
            value = record.get("score", record["cosine"])
            same = "  (the same bytes)" if record.get("same_bytes") else ""
            print(f"{record.get('rank', ''):>4} {value:>8.4f}  {one_line(record['image'])}{same}")


def require_ending(path: Path) -> None:
    """Raise ConfigError for a sheet of another kind."""
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"sheet={path} is neither a picture nor a page; name a .png or .html file")


def write_sheet(path: Path, title: str, images: Path, groups: Sequence[Group]) -> None:
    """Write the groups of images of a folder; a PNG has room for the first alone, and says so.

    Of an image that cannot be read a page has the name, and a PNG nothing.
    """
    if path.suffix.lower() == ".png":
        return draw_sheet(_sheet(images, groups), title, path)
    head = [
        element("title", title),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("style", STYLE),
    ]
    sections = [
        part
        for heading, records in groups
        for part in (element("h2", heading), element("ol", *(_item(images, record) for record in records)))
    ]
    write_text(path, document(head, [element("main", element("h1", title), *sections)]))


def _item(images: Path, record: Record) -> Element:
    found, name = _shown(images, record), one_line(record["image"])
    shown = element("img", src=found[0], alt=name, loading="lazy") if found else element("p", "cannot be shown")
    return element(
        "li", element("figure", shown, element("figcaption", _told(record), element("br"), *breakable(name)))
    )


def _shown(images: Path, record: Record) -> tuple[str, tuple[int, int]] | None:
    path = images / record["image"]
    return thumbnail(path, upright=True) if path.is_file() else None


def _sheet(images: Path, groups: Sequence[Group]) -> Sheet:
    every = [(heading, record) for heading, records in groups for record in records]
    shown = [(heading, record) for heading, record in every[: COLUMNS * ROWS] if _shown(images, record)]
    panels = [
        Panel(heading, (Picture(images / record["image"], notes=_notes(record), upright=True),))
        for heading, record in shown
    ]
    return Sheet("" if len(shown) == len(every) else f"{len(shown):,} of {len(every):,} pictures", panels)


def _notes(record: Record) -> tuple[Note, ...]:
    return Note(_told(record)), Note(one_line(record["image"]))


def _told(record: Record) -> str:
    numbers = [f"{name} {record[name]:.3f}" for name in ("cosine", "match") if name in record]
    rank, same = [str(record["rank"])] if "rank" in record else [], ["same bytes"] if record.get("same_bytes") else []
    return ", ".join([*rank, *numbers, *same])


def one_line(text: str) -> str:
    """A text that may be a file's name, of any bytes, with escapes where a terminal would do other than show it."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
