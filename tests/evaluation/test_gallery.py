from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.evaluation import gallery
from fusionkit.evaluation.candidates import best
from fusionkit.evaluation.gallery import GREEN, RED, Mark, Note, Panel, Picture, Sheet, draw_sheet, wrap
from fusionkit.evaluation.panels import grounding_sheet, retrieval_sheet, vqa_sheet
from fusionkit.evaluation.retrieval import Pairing, list_records


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
    [("is there a small red ball left of it", 90), ("w" * 60, 80), ("ééé " * 40, 120), ("", 50), ("a", 1)],
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
    assert len(blue) == gallery.ROWS * gallery.COLUMNS * 192 * 96  # whole pictures, under no text


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


def headings(sheet):
    return [panel.heading for panel in sheet.panels]


def test_worst_answers_first_and_one_of_each_image_before_its_next():
    asked = samples("questions", {"answers": ["yes"] * 8 + ["no"] * 2})[:2]
    sheet = vqa_sheet([{"question_id": key, "answer": answer} for key, answer in enumerate(["x", "y", "yes"])], asked)
    assert headings(sheet) == ["t0", "t1", "t3", "t2"]
    assert sheet.panels[0].pictures[0].notes == (Note("given: x", RED), Note("true: yes (8), no (2)"))
    assert sheet.panels[2].pictures[0].notes[0] == Note("given: (nothing)", RED)
    assert sheet.panels[3].pictures[0].notes[0] == Note("given: yes", GREEN)
    wrong = vqa_sheet([], asked)
    assert headings(wrong) == ["t0", "t2", "t1", "t3"]


def test_worst_boxes_first():
    asked = samples("expressions", {"box": (0, 0, 10, 10)})[:1]
    sheet = grounding_sheet([{"sent_id": 0, "bbox": [0, 0, 10, 10]}, {"sent_id": 1, "bbox": [0, 0, 10, 2]}], asked)
    assert headings(sheet) == ["t1", "t0"]
    assert sheet.panels[0].pictures[0].marks == (Mark((0, 0, 10, 10), GREEN), Mark([0, 0, 10, 2], RED, True))
    assert sheet.panels[0].pictures[0].notes == (Note("IoU 0.20", RED),)


def test_retrieval_frames_the_right_image_and_adds_it_where_it_is_not_among_the_best():
    asked = samples("captions", {})
    sim = torch.eye(8).repeat_interleave(2, dim=0) - torch.arange(8) / 100
    sim[5, 2] = -1  # caption 5 ranks its image last
    sheet = retrieval_sheet(list_records(best(sim, 6), best(sim.T, 6), Pairing.of(asked)), asked)
    worst, right = sheet.panels[0], sheet.panels[-1]
    assert headings(sheet)[0] == "t5"
    assert len(sheet.panels) == 8  # one caption an image
    assert [picture.frame for picture in worst.pictures] == [None] * 5 + [GREEN]
    assert worst.pictures[5].notes == (Note("the right one, beyond rank 6", RED),)
    assert [picture.frame for picture in right.pictures] == [GREEN] + [None] * 4
    assert right.pictures[0].path == Path("7.png")
