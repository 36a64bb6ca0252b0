from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.inference.candidates import best
from fusionkit.inference.rankings import Pairing, list_records
from fusionkit.scoring.scorers import GROUNDING, RETRIEVAL, VQA
from fusionkit.scoring.sheet import BLACK, GREEN, GREY, MOUNT, PAPER, RED, Mark, Note, Panel, Picture, Sheet
from fusionkit.visual import contact_sheet as gallery
from fusionkit.visual.contact_sheet import draw_sheet, wrap


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (64, 32), "#0000ff").save(path)
    return path


def rgb(color):
    return tuple(int(color[at : at + 2], 16) for at in (1, 3, 5))


def places(path, color):
    """Rows and columns of the pixels of one colour."""
    return np.argwhere((np.asarray(Image.open(path).convert("RGB")) == rgb(color)).all(axis=2))


@pytest.mark.parametrize(
    ("text", "width"),
    [("is there a small red ball left of it", 90), ("w" * 60, 80), ("ééé " * 40, 120), ("", 50), ("abc", 1)],
)
def test_wrapped_lines_fit_and_keep_all_letters(text, width):
    font = gallery._font(14)
    lines = wrap(text, font, width, 99)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(font.getlength(line) <= width or len(line) == 1 for line in lines)
    cut = wrap(text, font, width, 2)
    assert len(cut) <= 2
    assert all(font.getlength(line) <= max(width, font.getlength("w…")) for line in cut)
    assert cut[-1].endswith("…") == (len(lines) > 2)


def test_a_small_drawing_is_enlarged_by_a_whole_number_and_its_boxes_with_it(tmp_path, image):
    picture = Picture(image, (128, 64), (Mark((32, 16, 64, 32), GREEN),))
    draw_sheet(Sheet("", [Panel("a box", (picture,))]), "title", tmp_path / "sheet.png")
    blue, green = places(tmp_path / "sheet.png", "#0000ff"), places(tmp_path / "sheet.png", GREEN)
    assert (np.ptp(blue, axis=0) + 1).tolist() == [96, 192]  # three times as large
    assert np.ptp(green, axis=0) == pytest.approx([48 + 8, 96 + 8], abs=1)  # a line and its halo, all outside
    assert green.mean(axis=0) == pytest.approx(blue.min(axis=0) + np.array([48, 96]), abs=1)


def test_dashes_show_what_is_below(tmp_path, image):
    for name, is_dashed in (("solid", False), ("dashed", True)):
        picture = Picture(image, marks=(Mark((8, 4, 48, 24), RED, is_dashed),))
        draw_sheet(Sheet("", [Panel("a box", (picture,))]), "title", tmp_path / f"{name}.png")
    solid, dashed = (len(places(tmp_path / f"{name}.png", RED)) for name in ("solid", "dashed"))
    assert 0.4 < dashed / solid < 0.7


@pytest.mark.parametrize("box", [(-50, -50, 500, 500), (60, 30, 90, 90), (100, 100, 5, 5), (10, 10, -5, -5)])
def test_boxes_stay_inside_the_picture(tmp_path, image, box):
    draw_sheet(Sheet("", [Panel("x", (Picture(image, marks=(Mark(box, RED),)),))]), "title", tmp_path / "sheet.png")
    blue, red = places(tmp_path / "sheet.png", "#0000ff"), places(tmp_path / "sheet.png", RED)
    assert (red.min(axis=0) >= blue.min(axis=0) - 3).all()
    assert (red.max(axis=0) <= blue.max(axis=0) + 3).all()


def test_nothing_is_written_beyond_the_sheet(tmp_path, image):
    notes = (Note("long " * 30), Note("w" * 200, RED))
    panels = [Panel("a heading " * 20, (Picture(image, notes=notes),))] * 30
    draw_sheet(Sheet("a legend " * 60, panels), "a title " * 60, tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
        assert (edge == 255).all()
    blue = places(tmp_path / "sheet.png", "#0000ff")
    assert len(blue) == 4 * 6 * 192 * 96  # whole pictures, under no text


class Wide(NamedTuple):
    """A font each letter of which is 10 pixels wide."""

    size: int
    is_bold: bool = False

    def getlength(self, text):
        return 10 * len(text)


@pytest.fixture
def written(monkeypatch):
    """Every line of text (where on its head or row, text, colour, font) instead of its pixels."""
    lines = []
    monkeypatch.setattr(gallery, "_font", Wide)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda draw, *line: lines.append(line))
    return lines


@pytest.mark.parametrize(
    ("text", "width", "max_lines", "lines"),
    [
        ("aa bb", 50, 9, ["aa bb"]),
        ("aa bb", 49, 9, ["aa", "bb"]),
        ("aa bb", 20, 2, ["aa", "bb"]),
        ("aaaa", 30, 9, ["aaa", "a"]),
        ("aaaa", 20, 9, ["aa", "aa"]),
        ("aaa bb cc", 30, 2, ["aaa", "bb…"]),
        ("aa bbb cc dd", 30, 2, ["aa", "bb…"]),
        ("a b c", 30, 1, ["a…"]),
    ],
)
def test_lines_are_full_and_the_last_one_is_cut(text, width, max_lines, lines):
    assert wrap(text, Wide(14), width, max_lines) == lines


def test_fonts():
    assert (gallery._font(14).getname(), gallery._font(14).size) == (("DejaVu Sans", "Book"), 14)
    assert (gallery._font(20, True).getname(), gallery._font(20, True).size) == (("DejaVu Sans", "Bold"), 20)


def test_what_a_picture_and_a_mark_are_unless_told():
    assert Picture(Path("x")) == Picture(Path("x"), None, (), None, (), None, is_middle=False, upright=False)
    assert Mark((0, 0, 1, 1), RED) == Mark((0, 0, 1, 1), RED, is_dashed=False)


@pytest.mark.parametrize(("title", "shown"), [("t" * 73, "t" * 73), ("t" * 74, "t" * 72 + "…")])
def test_the_head_of_a_narrow_sheet(tmp_path, image, written, title, shown):
    legend = " ".join(["a" * 73, "b" * 73, "c" * 74])
    draw_sheet(Sheet(legend, [Panel("x", (Picture(image),))]), title, tmp_path / "sheet.png")
    assert written[1:] == [
        ((24, 24), shown, BLACK, Wide(20, True)),
        ((24, 56), "a" * 73, GREY, Wide(14)),
        ((24, 75), "b" * 73, GREY, Wide(14)),
        ((24, 94), "c" * 72 + "…", GREY, Wide(14)),
    ]
    assert Image.open(tmp_path / "sheet.png").size == (3 * 244 + 48, 127 + 247 + 24)  # head, row, margin


def put(page, color, top, left, height, width):
    page[top : top + height, left : left + width] = rgb(color)


def test_a_sheet_pixel_by_pixel(tmp_path, image, written):
    both = (Picture(image, frame=RED, notes=(Note("n" * 60, RED), Note("m"))), Picture(image))
    panels = [Panel("one", both), Panel("h" * 250, both[1:]), Panel("k" * 51, both[1:]), Panel("last", both[1:])]
    draw_sheet(Sheet("legend", panels), "title", tmp_path / "sheet.png")
    bold, plain = Wide(14, True), Wide(14)
    assert written[:-2] == [
        ((0, 57), "one", BLACK, bold),  # headings stand on their pictures
        ((0, 288), "n" * 24, RED, plain),
        ((0, 307), "n" * 23 + "…", RED, plain),
        ((0, 326), "m", GREY, plain),
        *(((516, 19 * line), "h" * 50, BLACK, bold) for line in range(3)),
        ((516, 57), "h" * 49 + "…", BLACK, bold),
        ((1032, 38), "k" * 50, BLACK, bold),
        ((1032, 57), "k", BLACK, bold),
        ((0, 0), "last", BLACK, bold),
    ]
    page = np.full((89 + 361 + 247 + 24, 3 * 516 + 48, 3), 255, np.uint8)
    for top, left in ((171, 24), (171, 282), (171, 540), (171, 1056), (475, 24)):
        put(page, MOUNT, top, left, 200, 244)
        if (top, left) == (171, 24):
            put(page, RED, top + 48, left + 22, 104, 200)
        put(page, "#0000ff", top + 52, left + 26, 96, 192)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), page)


def test_a_panel_wider_than_a_row_has_one_of_its_own(tmp_path, image, written):
    panels = [Panel("x", (Picture(image),) * 7)] * 2
    draw_sheet(Sheet("", panels), "title", tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (7 * 258 + 48, 89 + 2 * 247 + 24)


def drawn(picture, size=(64, 32), color="#0000ff"):
    """The picture in its cell; its file is one of this size."""
    Image.new("RGB", size, color).save(picture.path)
    return np.asarray(gallery._draw_picture(picture, (244, 200)))


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((32, 64), (96, 192)),  # 3 x: the mount leaves 236 x 192
        ((59, 32), (236, 128)),  # 4 x
        ((200, 50), (236, 59)),  # 1.18 x
        ((1000, 1), (236, 1)),
        ((1, 1000), (1, 192)),
    ],
)
def test_a_picture_fills_its_cell_and_stands_in_its_middle(tmp_path, size, shown):
    expected = np.empty((200, 244, 3), np.uint8)
    put(expected, MOUNT, 0, 0, 200, 244)
    put(expected, "#0000ff", (200 - shown[1]) // 2, (244 - shown[0]) // 2, shown[1], shown[0])
    assert np.array_equal(drawn(Picture(tmp_path / "x.png"), size), expected)


def test_from_twice_its_size_on_a_drawing_stays_crisp(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 118, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    cell = np.asarray(gallery._draw_picture(Picture(tmp_path / "x.png"), (244, 200)))
    assert np.array_equal(cell[4:196, 4:240], pixels.repeat(2, axis=0).repeat(2, axis=1))


def lined(page, left, top, right, bottom, color, reach):
    """A line along the four sides of a box of pixels, by so many pixels to either side of it."""
    for row in (top, bottom):
        put(page, color, row - reach, left, 2 * reach + 1, right - left + 1)
    for column in (left, right):
        put(page, color, top, column - reach, bottom - top + 1, 2 * reach + 1)


@pytest.mark.parametrize(
    ("size", "box", "sides"),
    [
        ((32, 32), (5, 8, 10, 10), (5 * 6 - 3, 8 * 3 - 3, 15 * 6 + 3, 18 * 3 + 3)),
        (None, (10, 8, 20, 10), (27, 21, 93, 57)),
        (None, (-50, -50, 500, 500), (2, 2, 189, 93)),
        (None, (1, 1, 62, 30), (2, 2, 189, 93)),
        (None, (2, 2, 60, 28), (3, 3, 189, 93)),
    ],
)
def test_a_mark_pixel_by_pixel(tmp_path, size, box, sides):
    expected = np.empty((96, 192, 3), np.uint8)
    put(expected, "#0000ff", 0, 0, 96, 192)
    lined(expected, *sides, PAPER, 2)
    lined(expected, *sides, RED, 1)
    cell = drawn(Picture(tmp_path / "x.png", size, (Mark(box, RED),)))
    assert np.array_equal(cell[52:148, 26:218], expected)


def test_dashes_have_one_at_either_end():
    row = [((0, 0), (9, 0)), ((18, 0), (27, 0)), ((36, 0), (45, 0)), ((54, 0), (63, 0))]
    assert gallery._strokes((0, 0), (63, 0), True) == row
    assert gallery._strokes((2, 5), (2, -40), True) == [((2, 5), (2, -4)), ((2, -13), (2, -22)), ((2, -31), (2, -40))]
    assert len(gallery._strokes((0, 0), (54, 0), True)) == 4  # of 7, not of 6
    assert gallery._strokes((0, 0), (63, 0), False) == [((0, 0), (63, 0))]


@pytest.mark.parametrize(
    ("size", "is_middle", "at"),
    [((2, 2), False, (0, 0)), ((2, 2), True, (0, 0)), ((6, 2), True, (0, 2)), ((2, 6), True, (2, 0))],
)
def test_heat_is_laid_over_the_paled_picture(size, is_middle, at):
    image = Image.new("RGB", size, (200, 100, 50))
    grey = round((200 * 299 + 100 * 587 + 50 * 114) / 1000)
    pale = np.array([int(grey + 0.4 * (value - grey)) for value in (200, 100, 50)])
    expected = np.full((size[1], size[0], 3), pale, np.uint8)
    for row, column, share in ((0, 0, 0.0), (0, 1, 0.25), (1, 0, 0.5), (1, 1, 1.0)):
        color = np.array([int(255 * part) for part in matplotlib.colormaps["inferno"](share)[:3]])
        opacity = int(255 * (0.15 + 0.7 * share))
        expected[at[0] + row, at[1] + column] = np.round((color * opacity + pale * (255 - opacity)) / 255)
    heat = np.array([[3.0, 3.125], [3.25, 3.5]])  # from its least to its largest value
    assert np.array_equal(np.asarray(gallery._warmed(image, heat, is_middle)), expected)


def test_heat_over_all_of_a_picture_is_stretched_and_an_even_one_is_cold():
    image = Image.new("RGB", (40, 20))
    even = np.asarray(gallery._warmed(image, np.full((2, 2), 7.0), False))
    assert len(np.unique(even.reshape(-1, 3), axis=0)) == 1
    assert (even < 2).all()
    halves = np.asarray(gallery._warmed(image, np.array([[0.0, 1.0], [0.0, 1.0]]), False)).astype(int).sum(axis=2)
    assert halves[:, -1].min() > 500 > 10 > halves[:, 0].max()
    middle = np.asarray(gallery._warmed(image, np.array([[1.0, 1.0], [1.0, 0.0]]), True)).astype(int).sum(axis=2)
    assert (middle[:, :10].any(), middle[:, 30:].any()) == (False, False)
    assert middle[0, 10:20].all()


def test_heat_and_a_frame_on_a_sheet(tmp_path):
    plain, warm = (drawn(Picture(tmp_path / "x.png", heat=heat)) for heat in (None, np.eye(2)))
    assert (warm[52:148, 26:218] != plain[52:148, 26:218]).any(axis=2).all()
    assert (warm[:52] == plain[:52]).all()


def test_a_corrupt_image_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        draw_sheet(Sheet("", [Panel("x", (Picture(tmp_path / "bad.png"),))]), "title", tmp_path / "sheet.png")


def samples(kind, facts):
    return [
        Sample(
            image, Path(f"{image}.png"), {kind: tuple(Text(2 * image + i, f"t{2 * image + i}", facts) for i in (0, 1))}
        )
        for image in range(8)
    ]


def sheet_of(scorer, records, samples):
    return scorer.sheet(records, samples, [])


def headings(sheet):
    return [panel.heading for panel in sheet.panels]


def test_worst_answers_first_and_one_of_each_image_before_its_next():
    asked = samples("questions", {"answers": ["yes"] * 8 + ["no"] * 2})[:2]
    sheet = sheet_of(
        VQA, [{"question_id": key, "answer": answer} for key, answer in enumerate(["x", "y", "yes"])], asked
    )
    assert headings(sheet) == ["t0", "t1", "t3", "t2"]
    assert sheet.panels[0].pictures[0].notes == (Note("given: x", RED), Note("true: yes (8), no (2)"))
    assert sheet.panels[2].pictures[0].notes[0] == Note("given: (nothing)", RED)
    assert sheet.panels[3].pictures[0].notes[0] == Note("given: yes", GREEN)
    wrong = sheet_of(VQA, [], asked)
    assert headings(wrong) == ["t0", "t2", "t1", "t3"]


def test_worst_boxes_first():
    asked = samples("expressions", {"box": (0, 0, 10, 10)})[:1]
    sheet = sheet_of(GROUNDING, [{"sent_id": 0, "bbox": [0, 0, 10, 10]}, {"sent_id": 1, "bbox": [0, 0, 10, 2]}], asked)
    assert headings(sheet) == ["t1", "t0"]
    assert sheet.panels[0].pictures[0].marks == (Mark((0, 0, 10, 10), GREEN), Mark([0, 0, 10, 2], RED, True))
    assert sheet.panels[0].pictures[0].notes == (Note("IoU 0.20", RED),)


def test_retrieval_frames_the_right_image_and_adds_it_where_it_is_not_among_the_best():
    asked = samples("captions", {})
    sim = torch.eye(8).repeat_interleave(2, dim=0) - torch.arange(8) / 100
    sim[5, 2] = -1  # caption 5 ranks its image last
    sheet = sheet_of(RETRIEVAL, list_records(best(sim, 6), best(sim.T, 6), Pairing.of(asked)), asked)
    worst, right = sheet.panels[0], sheet.panels[-1]
    assert headings(sheet)[0] == "t5"
    assert len(sheet.panels) == 8  # one caption an image
    assert [picture.frame for picture in worst.pictures] == [None] * 5 + [GREEN]
    assert worst.pictures[5].notes == (Note("the right one, beyond rank 6", RED),)
    assert [picture.frame for picture in right.pictures] == [GREEN] + [None] * 4
    assert right.pictures[0].path == Path("7.png")
