"""The report page: well-formed, complete in itself, and nothing that a model or a data set says becomes markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from fusionkit.cli.main import run
from fusionkit.reporting.comparison import compare_runs
from fusionkit.reporting.html import element, thumbnail
from fusionkit.reporting.reading import read_runs
from tests.reporting.worlds import QUESTIONS, write_evaluation, write_questions, write_run

VOID = {"meta", "link", "img", "br", "wbr", "source", "input", "hr"}
EVIL = "<script>alert('é')</script><img src=x onerror=alert(1)>\x0b & \"q\""


class Reader(HTMLParser):
    """Collects what a page holds, and fails where an element is closed that is not open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open and self.open[-1] not in ("style", "script") else ""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of two evaluated checkpoints, with evil texts everywhere, and a picture of attention."""
    folder = tmp_path_factory.mktemp("page")
    write_questions(folder / "data", EVIL)
    write_evaluation(folder / "0", [at % 2 == 0 for at in range(QUESTIONS)], "/runs/half/best.ckpt", answer=EVIL)
    write_evaluation(folder / "1", [at % 3 > 0 for at in range(QUESTIONS)], "/runs/<b>most/best.ckpt")
    (folder / "1/attention").mkdir()
    Image.new("RGB", (900, 300)).save(folder / "1/attention/0_what.png")
    assert run(["compare", str(folder), f"output_dir={folder}/out", "resamples=100", "examples=2"]) == 0
    return (folder / "out/index.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed(page: str) -> None:
    assert page.startswith("<!doctype html>")
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", page)
    reader = Reader(page)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    assert links == [f"#{name}" for name in ids]
    assert ids == [
        "differences",
        "scores",
        "quality-by-task",
        "quality-against-cost",
        "examples",
        "overlays",
        "settings",
    ]


def test_the_page_asks_for_nothing(page: str) -> None:
    loaded = [
        value
        for _, attributes in Reader(page).tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "data", "poster") and not str(value).startswith(("data:image/", "#"))
    ]
    assert loaded == []
    without_data = re.sub(r"data:image/[^\"]*", "", page)
    assert not re.search(r"https?:|file:|url\(|@import|\bimport\(|fetch\(", without_data)
    assert "default-src 'none'" in page


def test_no_text_becomes_markup(page: str) -> None:
    reader = Reader(page)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert "<script>alert('é')</script><img src=x onerror=alert(1)>� & \"q\"" in reader.text
    assert "<b>most" in reader.text


def test_the_page_shows_the_scores(page: str) -> None:
    text = Reader(page).text
    for words in (
        "50.0",
        "48.5 to 52.5",
        "65.0",
        "+15.0",
        "half",
        "baseline",
        "right by some",
        "wrong by all",
        "true: yes (10)",
    ):
        assert words in text


def test_the_page_can_be_read_without_eyes(page: str) -> None:
    tags = Reader(page).tags
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in tags if tag == "th")
    assert sum(tag == "table" for tag, _ in tags) == sum(tag == "caption" for tag, _ in tags) == 3


def test_a_wide_table_shows_where_it_goes_on(page: str) -> None:
    """In a box with a scrollbar that stays, whose script marks the sides where the style draws a fading edge."""
    boxes = page.count('class="scroll"')
    assert boxes == len(re.findall(r'<div class="wide"><div class="scroll"[^>]* tabindex="0"><table>', page)) == 3
    style, script = (re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1] for tag in ("style", "script"))
    marks = set(re.findall(r'classList\.toggle\("([\w-]+)"', script))
    assert marks == set(re.findall(r"\.wide\.([\w-]+)", style)) == {"more-left", "more-right"}
    assert re.search(r"\.scroll \{[^}]*overflow: auto", style)
    assert ".scroll::-webkit-scrollbar-thumb" in style
    assert "scrollbar-color" in style


def test_less_is_better_for_ranks_and_where_the_scorer_said_so(tmp_path: Path) -> None:
    metrics = {f"coco/{name}": 1.0 for name in ("median_rank", "r1", "age_off_by", "rank")}
    for name, directions in (("a", None), ("b", {"coco/age_off_by": False, "coco/rank": True})):
        folder = write_run(tmp_path / name, metrics)
        if directions:
            (folder / "directions.json").write_text(json.dumps(directions))
    comparison = compare_runs(read_runs([str(tmp_path)]), metrics=["*"])
    signs = {name: comparison.gain(name, 2.0) for name in metrics}
    assert signs == {"coco/median_rank": -2, "coco/r1": 2, "coco/age_off_by": -2, "coco/rank": 2}
    alone = compare_runs(read_runs([str(tmp_path / "a")]), metrics=["*"])
    assert alone.gain("coco/age_off_by", 2.0) == 2


def test_a_lower_error_is_the_better_run(tmp_path: Path) -> None:
    for name, off_by in (("a", 40.0), ("b", 10.0)):
        folder = write_run(tmp_path / name, {"coco/age_off_by": off_by})
        rows = [{"id": n, "image_id": n, "score": 0.0, "values": {"age_off_by": off_by}} for n in range(9)]
        (folder / "directions.json").write_text('{"coco/age_off_by": false}')
        (folder / "samples").mkdir()
        (folder / "samples/coco_age.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(["compare", f"runs=[{tmp_path}/a,{tmp_path}/b]", f"output_dir={tmp_path}/out", "metrics=['*']"]) == 0
    text = Reader((tmp_path / "out/index.html").read_text()).text
    assert "better in 1" in " ".join(text.split())


def test_examples_are_bounded_and_pictured(page: str) -> None:
    cards = [attributes for tag, attributes in Reader(page).tags if attributes.get("class") == "card"]
    assert len(cards) == 3 * 2
    drawings = [attributes for tag, attributes in Reader(page).tags if attributes.get("class") == "drawing"]
    assert len(drawings) == 6


def test_data_that_are_gone_leave_the_examples_out(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "0", [True] * 4, "/runs/a/best.ckpt")
    write_run(tmp_path / "1", {"vqav2/accuracy": 50.0})
    assert run(["compare", str(tmp_path), f"output_dir={tmp_path}/out", "resamples=20"]) == 0
    page = Reader((tmp_path / "out/index.html").read_text(encoding="utf-8"))
    assert "examples" not in [attributes.get("id") for _, attributes in page.tags]


def test_an_unreadable_picture_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    assert thumbnail(tmp_path / "cut.jpg") is None
    assert thumbnail(tmp_path / "missing.jpg") is None


def test_an_element_holds_texts_and_elements_in_order() -> None:
    made = element("p", "a", element("b", "c"), None, "d", class_="x", hidden=False, data_value=0)
    assert "".join(made.itertext()) == "acd"
    assert made.attrib == {"class": "x", "data-value": "0"}
