"""Cards of a report page: one sample with what every run said to it, and pictures of what runs attended to."""

from collections.abc import Mapping
from math import ceil
from xml.etree.ElementTree import Element

from fusionkit.reporting.comparison import Comparison
from fusionkit.reporting.html import SMALL, element, thumbnail
from fusionkit.reporting.side_by_side import Answer, Box, Example
from fusionkit.reporting.styles import style_of

OVERLAYS = 8  # pictures shown of each run
TRUE = ("#000000", "#ffffff")  # a white line on a black one is seen on every picture


def example_card(example: Example, places: Mapping[str, int]) -> Element:
    """The image with all boxes, what was asked, what is true, and the answers of the runs, whose places give their colours."""
    asked = element("p", example.asked, dir="auto", class_="asked") if example.asked else None
    truth = (
        element("p", element("span", "true: ", class_="soft"), element("bdi", example.truth)) if example.truth else None
    )
    boxed = element("p", "true box: white on black", class_="soft") if example.box else None
    answers = element("ul", *(_answer(answer, places[answer.entry]) for answer in example.answers), class_="plain")
    caption = element("figcaption", asked, truth, boxed, answers)
    return element("figure", element("div", picture(example, places), class_="frame"), caption, class_="card")


def picture(example: Example, places: Mapping[str, int], most: int = 360) -> Element:
    """The image with the true box and those of the answers, in the colours of the runs' places.

    It has at most ``most`` pixels a side, and is shown as high as the page's style says (``--tall``).
    """
    shown = thumbnail(example.image, most, said=example.size)
    if shown is None:
        return element("p", f"{example.image.name} cannot be shown", class_="soft")
    source, file_size = shown
    width, height = example.size or file_size
    image = element(
        "img",
        src=source,
        alt=f"the image asked about: {example.asked or example.truth}",
        loading="lazy",
        class_="drawing" if max(file_size) <= SMALL else None,
    )
    boxes = [*(_true_box(example.box) if example.box else ())]
    for answer in example.answers:
        if answer.box:
            color, _, _, is_hollow = style_of(places[answer.entry])
            boxes.append(_box(answer.box, color, 2.5, "5 3" if is_hollow else None))
    drawn = element("svg", *boxes, viewBox=f"0 0 {width} {height}", preserveAspectRatio="none", aria_hidden="true")
    ratio = f"{width} / {height}"  # exact, which the boxes need
    shape = f"width: min(100%, calc(var(--tall) * {ratio})); aspect-ratio: {ratio}"
    return element("div", image, drawn if boxes else None, class_="picture", style=shape)


def _true_box(box: Box) -> tuple[Element, Element]:
    return _box(box, TRUE[0], 5, None), _box(box, TRUE[1], 2, None)


def _box(box: Box, color: str, width: float, dashes: str | None) -> Element:
    x, y, wide, high = (f"{float(value):g}" for value in box)
    return element("rect", x=x, y=y, width=wide, height=high, stroke=color, stroke_width=width, stroke_dasharray=dashes)


def _answer(answer: Answer, place: int) -> Element:
    color, _, _, is_hollow = style_of(place)
    swatch = element(
        "span",
        class_="swatch hollow" if is_hollow else "swatch",
        style=f"background: {color}; border-color: {color}",
        aria_hidden="true",
    )
    mark = element(
        "b", "✓" if answer.is_right else "✗", class_="good" if answer.is_right else "bad", aria_hidden="true"
    )
    word = element("span", " right: " if answer.is_right else " wrong: ", class_="hidden")
    shown = thumbnail(answer.image, 96) if answer.image else None
    first = element("img", src=shown[0], alt="the image it ranked first", loading="lazy") if shown else None
    before = ", first " if first is not None else None
    said = element(
        "span",
        element("span", f"{answer.entry} ", class_="soft"),
        mark,
        word,
        " ",
        element("bdi", answer.text),
        before,
        first,
    )
    return element("li", swatch, said)


def overlay_figures(comparison: Comparison) -> list[Element]:
    """The pictures in the runs' ``attention`` folders, those of one name side by side."""
    found: dict[str, list[Element]] = {}
    for entry in comparison.entries:
        paths = [path for folder in entry.runs[0].paths for path in sorted((folder / "attention").glob("*.png"))]
        for path in paths[:: ceil(len(paths) / OVERLAYS) or 1]:  # of every task
            if shown := thumbnail(path, 1000):
                shape = dict(zip(("width", "height"), shown[1], strict=True))  # so that nothing moves when it is shown
                image = element(
                    "img", src=shown[0], alt=f"attention of {entry.name}: {path.stem}", loading="lazy", **shape
                )
                caption = element("figcaption", element("b", entry.name), f" {path.stem.replace('_', ' ')}")
                found.setdefault(path.name, []).append(element("figure", image, caption))
    figures = [figure for of_name in found.values() for figure in of_name]
    return [element("div", *figures, class_="overlays")] if figures else []
