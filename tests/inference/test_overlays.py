"""Pictures of replies: which panels, marks, notes and files there are; how they are drawn, the gallery's tests say."""

from pathlib import Path

import numpy as np
import pytest

from fusionkit.data.requests import Request
from fusionkit.inference import overlays
from fusionkit.inference.answering import Answer
from fusionkit.inference.overlays import draw_reply
from fusionkit.scoring.sheet import BLACK, GREEN, RED, Mark, Note
from fusionkit.visual.attention_maps import Look

MAPS = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
TRUE, GIVEN = (1, 2, 3, 4), [5, 6, 7, 8]


@pytest.fixture
def sheets(monkeypatch):
    """(sheet, title, path) of all that would be drawn."""
    drawn = []
    monkeypatch.setattr(overlays, "draw_sheet", lambda *each: drawn.append(each))
    return drawn


def reply(texts, record, looks=(), **more):
    return Answer(Request(Path("a/cat.png"), texts, size=(64, 48), **more), record, dict(looks))


def pictures(sheet):
    return [picture for panel in sheet.panels for picture in panel.pictures]


def test_a_phrase_has_both_boxes_and_a_map_of_each_word(sheets, tmp_path):
    looks = {"phrase": Look(["red", "ball"], -MAPS, MAPS)}
    asked = reply({"phrase": "red ball", "question": "what"}, {"bbox": GIVEN, "answer": "a ball"}, looks, upright=False)
    written = draw_reply(asked, tmp_path / "it_3", is_middle=True, true_box=TRUE)
    assert [path.name for path in written] == ["it_3_question.png", "it_3_phrase.npz", "it_3_phrase.png"]
    with np.load(written[1]) as file:
        assert np.array_equal(file["attention"], -MAPS)
    (question, *titled), (phrase, *also_titled) = sheets
    assert titled == ["question: what", written[0]]
    assert also_titled == ["phrase: red ball", written[2]]
    assert (question.legend, [panel.heading for panel in question.panels]) == ("true box: green", ["cat.png"])
    assert question.panels[0].pictures[0].notes == (Note("a ball", BLACK),)
    assert question.panels[0].pictures[0].marks == (Mark(TRUE, GREEN),)
    assert phrase.legend == (
        "GradCAM, what speaks for a match: of the whole text, then word by word; each map from its least (dark) to its "
        "most (bright); true box: green; given box: red, dashed"
    )
    assert phrase.cell == (324, 264)
    assert [panel.heading for panel in phrase.panels] == ["cat.png", "all words", "red", "ball"]
    plain, *warm = pictures(phrase)
    assert (plain.heat, plain.notes) == (None, (Note("box 5 6 7 8 (x y width height)", BLACK),))
    assert np.array_equal([picture.heat for picture in warm], MAPS)
    for picture in (plain, *warm):
        assert (picture.path, picture.size, picture.frame) == (Path("a/cat.png"), (64, 48), None)
        assert picture.marks == (Mark(TRUE, GREEN), Mark(GIVEN, RED, True))
        assert (picture.is_middle, picture.upright) == (True, False)
    assert all(picture.notes == () for picture in warm)


def test_attention_and_the_gradcam_of_an_answer_are_called_so(sheets, tmp_path):
    looks = {"question": Look(["red", "ball"], -MAPS, MAPS), "text": Look(["red", "ball"], MAPS, None)}
    asked = reply({"question": "red ball", "text": "red ball"}, {"answer": "x", "match": 0.5}, looks)
    draw_reply(asked, tmp_path / "it", is_middle=False)
    (question, *_), (text, *_) = sheets
    maps = "of the whole text, then word by word; each map from its least (dark) to its most (bright)"
    assert question.legend == f"GradCAM, what speaks for the answer: {maps}"
    assert text.legend == f"attention: {maps}"
    assert [picture.marks for picture in pictures(text)] == [()] * 4
    assert [picture.is_middle for picture in pictures(text)] == [False] * 4


def test_a_caption_is_its_own_heading_and_a_box_is_of_a_phrase_only(sheets, tmp_path):
    asked = reply({"text": "it"}, {"caption": "a cat", "match": 0.25, "bbox": GIVEN}, wants_caption=True)
    written = draw_reply(asked, tmp_path / "it", is_middle=False)
    shown = {title: sheet for sheet, title, _ in sheets}
    assert shown.keys() == {"text: it", "caption: a cat"}
    assert len(written) == 2
    assert {sheet.legend for sheet in shown.values()} == {""}
    assert [picture.notes for picture in pictures(shown["caption: a cat"])] == [()]
    assert [(picture.notes, picture.marks) for picture in pictures(shown["text: it"])] == [
        ((Note("match 25.0%", BLACK),), ())
    ]
