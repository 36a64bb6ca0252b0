"""Contact sheets (PNG) of what a model answered: pictures with boxes and frames, a heading above and notes below."""

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fusionkit.data.frames import framed
from fusionkit.data.images import CorruptImage, decode
from fusionkit.errors import DataError
from fusionkit.files.atomic import atomic_write
from fusionkit.scoring.sheet import BLACK, CELL, GREY, MOUNT, PAPER, Mark, Note, Panel, Picture, Sheet

COLUMNS, ROWS = 6, 4  # cells of a sheet
DASH = 9  # pixels
FRAME = 4  # pixels, inside the mount
GAP, MARGIN, LINE = 14, 24, 19  # pixels between cells, around the sheet, from line to line
MAX_HEADING, MAX_NOTE = 4, 2  # lines of text, cut with an ellipsis
Point = tuple[float, float]


def draw_sheet(sheet: Sheet, title: str, path: Path) -> None:
    """Draw as many panels as fit in ``ROWS`` x ``COLUMNS`` cells, and write them to ``path`` atomically."""
    widest = max((len(panel.pictures) for panel in sheet.panels), default=1)
    per_row = max(1, COLUMNS // widest)
    shown = sheet.panels[: per_row * ROWS]
    rows = [_draw_row(shown[start : start + per_row], widest, sheet.cell) for start in range(0, len(shown), per_row)]
    width = max([row.width for row in rows] + [CELL[0] * 3]) + 2 * MARGIN
    head = _draw_head(title, sheet.legend, width)
    canvas = Image.new("RGB", (width, head.height + sum(row.height for row in rows) + MARGIN), PAPER)
    top = 0
    for band, left in [(head, 0), *((row, MARGIN) for row in rows)]:
        canvas.paste(band, (left, top))
        top += band.height
    with atomic_write(path) as file:
        canvas.save(file, "PNG")


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float, max_lines: int) -> list[str]:
    """Break text into lines of at most ``width`` pixels, long words too; after ``max_lines`` comes an ellipsis."""
    lines = [""]
    for word in _pieces(text, font, width):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and font.getlength(f"{last}…") > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], f"{last.rstrip()}…"]


def _pieces(text: str, font: ImageFont.FreeTypeFont, width: float) -> Iterator[str]:
    for word in text.split():
        while font.getlength(word) > width:
            fits = (count for count in range(len(word), 1, -1) if font.getlength(word[:count]) <= width)
            cut = next(fits, 1)
            yield word[:cut]
            word = word[cut:]
        yield word


@cache
def _font(size: int, is_bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Pillow's own font lacks accents."""
    name = "DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _draw_head(title: str, legend: str, width: int) -> Image.Image:
    lines = wrap(legend, _font(14), width - 2 * MARGIN, 3)
    head = Image.new("RGB", (width, MARGIN + 32 + LINE * len(lines) + GAP), PAPER)
    draw = ImageDraw.Draw(head)
    draw.text((MARGIN, MARGIN), wrap(title, _font(20, True), width - 2 * MARGIN, 1)[0], BLACK, _font(20, True))
    _write(draw, (MARGIN, MARGIN + 32), lines, GREY, _font(14))
    return head


def _draw_row(panels: Sequence[Panel], widest: int, cell: tuple[int, int]) -> Image.Image:
    """One row of panels, as high as its longest texts need."""
    cell_width, cell_height = cell
    panel_width = widest * (cell_width + GAP)
    headings = [wrap(panel.heading, _font(14, True), panel_width - GAP, MAX_HEADING) for panel in panels]
    height = max(map(len, headings))
    top = LINE * height + 6
    notes = [[_wrap_notes(picture.notes, cell_width) for picture in panel.pictures] for panel in panels]
    bottom = LINE * max(len(lines) for row in notes for lines in row) + 8
    canvas = Image.new("RGB", (panel_width * len(panels), top + cell_height + bottom + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for at, panel in enumerate(panels):
        _write(draw, (at * panel_width, LINE * (height - len(headings[at]))), headings[at], BLACK, _font(14, True))
        for column, picture in enumerate(panel.pictures):
            left = at * panel_width + column * (cell_width + GAP)
            canvas.paste(_draw_picture(picture, cell), (left, top))
            for number, (line, color) in enumerate(notes[at][column]):
                _write(draw, (left, top + cell_height + 6 + LINE * number), [line], color, _font(14))
    return canvas


def _wrap_notes(notes: Sequence[Note], width: int) -> list[tuple[str, str]]:
    return [(line, note.color) for note in notes for line in wrap(note.text, _font(14), width, MAX_NOTE)]


def _write(
    draw: ImageDraw.ImageDraw, at: Point, lines: Sequence[str], color: str, font: ImageFont.FreeTypeFont
) -> None:
    for number, line in enumerate(lines):
        draw.text((at[0], at[1] + LINE * number), line, color, font)


def _draw_picture(picture: Picture, cell: tuple[int, int]) -> Image.Image:
    """The image on its mount, whole and in its proportions; small drawings are enlarged by a whole number, crisply."""
    try:
        image, file_size = framed(decode(picture.path, cell[1]), picture.size, picture.upright)
    except CorruptImage as error:
        raise DataError(f"{error}; replace the file or take it out of the annotations") from error
    scale = min((cell[0] - 2 * FRAME) / image.width, (cell[1] - 2 * FRAME) / image.height)
    if scale >= 2:
        shown = image.resize((image.width * int(scale), image.height * int(scale)), Image.Resampling.NEAREST)
    else:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        shown = image.resize(size, Image.Resampling.LANCZOS)
    if picture.heat is not None:
        shown = _warmed(shown, picture.heat, picture.is_middle)
    width, height = picture.size or file_size
    draw = ImageDraw.Draw(shown)
    for mark in picture.marks:
        _draw_mark(draw, mark, shown.width / width, shown.height / height, shown.size)
    canvas = Image.new("RGB", cell, MOUNT)
    left, top = (cell[0] - shown.width) // 2, (cell[1] - shown.height) // 2
    canvas.paste(shown, (left, top))
    if picture.frame:
        edges = (left - FRAME, top - FRAME, left + shown.width + FRAME - 1, top + shown.height + FRAME - 1)
        ImageDraw.Draw(canvas).rectangle(edges, outline=picture.frame, width=FRAME)
    return canvas


def _warmed(image: Image.Image, heat: np.ndarray, is_middle: bool) -> Image.Image:
    """The image, paled, and on it the heat in a perceptually even colour map, the more opaque the hotter."""
    size = (min(image.size),) * 2 if is_middle else image.size
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    low, high = float(heat.min()), float(heat.max())
    even = (heat - low) / max(high - low, 1e-30)
    fine = np.asarray(Image.fromarray(even.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    colors = Image.fromarray(matplotlib.colormaps["inferno"](fine, bytes=True))
    opacity = Image.fromarray((255 * (0.15 + 0.7 * fine)).astype(np.uint8))
    warmed = Image.blend(image.convert("L").convert("RGB"), image, 0.4)
    warmed.paste(colors, (left, top), opacity)
    return warmed


def _draw_mark(draw: ImageDraw.ImageDraw, mark: Mark, wide: float, high: float, size: tuple[int, int]) -> None:
    """A line of 3 pixels on a thin white halo around the box, so that it hides nothing in it; kept inside the picture."""
    x, y, w, h = mark.box
    left, right = np.clip((x * wide - 3, (x + w) * wide + 3), 2, size[0] - 3)
    top, bottom = np.clip((y * high - 3, (y + h) * high + 3), 2, size[1] - 3)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    strokes = [stroke for a, b in itertools.pairwise(corners) for stroke in _strokes(a, b, mark.is_dashed)]
    for color, width in ((PAPER, 5), (mark.color, 3)):
        for stroke in strokes:
            draw.line(stroke, color, width)


def _strokes(start: Point, end: Point, is_dashed: bool) -> list[tuple[Point, Point]]:
    """The line in one stroke, or every other piece of about ``DASH`` pixels of it, with a piece at either end."""
    wide, high = end[0] - start[0], end[1] - start[1]
    count = round(max(abs(wide), abs(high)) / DASH) | 1 if is_dashed else 1  # odd

    def point(at: int) -> Point:
        return start[0] + wide * at / count, start[1] + high * at / count

    return [(point(at), point(at + 1)) for at in range(0, count, 2)]
