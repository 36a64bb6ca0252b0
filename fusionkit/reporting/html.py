"""Elements of a page: text that cannot become markup, and pictures that are part of the file."""

import io
import re
from base64 import b64encode
from functools import cache
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

from PIL import Image

from fusionkit.data.frames import framed
from fusionkit.data.images import CorruptImage, decode
from fusionkit.errors import clean

SMALL = 128  # pixels; a picture up to this size is a drawing, and kept as it is
COLORS = 96  # of a plot
Child = Element | str | None


def element(tag: str, *children: Child, **attributes: object) -> Element:
    """Make an element of texts (escaped when it is written) and elements; ``None`` and ``False`` are left out.

    ``class_`` is the attribute class, and a ``_`` within a name is a ``-``.
    """
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    kept = {name: value for name, value in given.items() if value is not None and value is not False}
    made = Element(tag, {name: "" if value is True else clean(str(value)) for name, value in kept.items()})
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif child is not None and len(made):
            made[-1].tail = (made[-1].tail or "") + clean(child)
        elif child is not None:
            made.text = (made.text or "") + clean(child)
    return made


def document(head: list[Element], body: list[Element]) -> str:
    """Return the text of a whole page."""
    page = Element("html", lang="en")
    SubElement(page, "head").extend([element("meta", charset="utf-8"), *head])
    SubElement(page, "body").extend(body)
    return "<!doctype html>\n" + tostring(page, encoding="unicode", method="html") + "\n"


def breakable(text: str) -> list[Child]:
    """Split a name where a line may break: after its punctuation."""
    pieces = re.split(r"(?<=[/_.-])", text)
    return [part for piece in pieces for part in (piece, element("wbr"))][:-1]


def embedded(path: Path) -> str:
    """Return a drawing's PNG file as a data URI, reduced to few colours."""
    out = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").quantize(COLORS).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(out.getvalue()).decode()}"


@cache
def thumbnail(
    path: Path, most: int = 360, said: tuple[int, int] | None = None, upright: bool = False
) -> tuple[str, tuple[int, int]] | None:
    """Return a picture of at most so many pixels a side as a data URI, and the size of its file; None where it cannot be read.

    It is turned as the size ``said`` by annotations says, or by its EXIF orientation where it is to be ``upright``.
    """
    try:
        image, size = framed(decode(path, most), said, upright)
    except CorruptImage:
        return None
    image.thumbnail((most, most))
    kind, out = "PNG" if max(size) <= SMALL else "JPEG", io.BytesIO()
    image.save(out, kind, quality=82, optimize=True)
    return f"data:image/{kind.lower()};base64,{b64encode(out.getvalue()).decode()}", size
