"""Captions of a folder as files: what is kept, what goes on, what is refused, and that nothing is written elsewhere."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fusionkit.errors import ConfigError, DataError
from fusionkit.inference import alt_text
from fusionkit.inference.alt_text import AltTextFiles, describe, matchers, write_alt_texts
from fusionkit.scoring.records import read_records

PIXELS, REGIONS = "pixel_values", "regions"


class Teller:
    """A predictor that says the name of a picture and how often it has been asked, and that ``text`` fits by a half."""

    def __init__(self, tasks: Mapping[str, Any] | None = None, batch_size: int = 2, stop_at: str = "") -> None:
        self.tasks, self.batch_size, self.stop_at = tasks or {}, batch_size, stop_at
        self.options = SimpleNamespace(quiet=True)
        self.batches: list[list[str]] = []

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        names = [request.image.name for request in requests]
        if self.stop_at in names:
            raise KeyboardInterrupt
        self.batches.append(names)
        return [SimpleNamespace(record=self.record(request)) for request in requests]

    def record(self, request: Any) -> dict[str, Any]:
        if request.image.stat().st_size < 20:
            return {"image": str(request.image), "error": f"{request.image.name} is damaged"}
        if request.texts:
            return {
                "text": request.texts["text"],
                "match": 0.5,
                "cosine": len(request.texts["text"]) / 100,
                "share": 1.0,
            }
        return {"caption": f"=a {request.image.stem}\n {len(self.batches)}", "caption_score": -0.123456}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "photos"
    for name in ("b.png", "a.JPG", "in/deep/c.png", "in/d.jpg", ".hidden/e.png", ".f.png"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(home / name)
    (home / "notes.txt").write_text("no picture")
    (home / "plan.pdf").write_text("written, never read")
    (home / "in/r.npz").write_bytes(b"regions, long enough to be")
    return home


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_picture_has_its_text_beside_it_and_its_score_in_the_table(folder: Path) -> None:
    teller = Teller()
    files = AltTextFiles(folder, PIXELS, ())
    said = write_alt_texts(teller, files)
    assert teller.batches == [["a.JPG", "b.png"], ["d.jpg", "c.png"]]
    texts = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.txt")}
    assert texts.pop("notes.txt") == "no picture"
    assert texts == {"a.txt": "=a a 1\n", "b.txt": "=a b 1\n", "in/d.txt": "=a d 2\n", "in/deep/c.txt": "=a c 2\n"}
    assert said == lines(folder / "alt_text.jsonl")
    assert said[2] == {"image": "in/d.jpg", "caption": "=a d 2", "caption_score": -0.123456}
    assert AltTextFiles(folder, REGIONS, (), output=folder / "r.csv").pictures.keys() == {"in/r.npz"}


def test_the_texts_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    write_alt_texts(Teller(), AltTextFiles(folder, PIXELS, (), tmp_path / "texts"))
    found = sorted(path.relative_to(tmp_path / "texts").as_posix() for path in (tmp_path / "texts").rglob("*.*"))
    assert found == ["a.txt", "alt_text.jsonl", "b.txt", "in/d.txt", "in/deep/c.txt"]
    assert [path.name for path in folder.rglob("*.txt")] == ["notes.txt"]


def test_what_has_a_text_keeps_it_unless_all_are_made_anew(folder: Path) -> None:
    (folder / "a.txt").write_text("mine")
    (folder / "b.txt").symlink_to(folder / "nowhere")
    write_alt_texts(Teller(), AltTextFiles(folder, PIXELS, ()))
    assert (folder / "a.txt").read_text() == "mine"
    assert not (folder / "nowhere").exists()
    assert [row["image"] for row in lines(folder / "alt_text.jsonl")] == ["in/d.jpg", "in/deep/c.png"]
    assert AltTextFiles(folder, PIXELS, ()).todo == []
    with pytest.raises(DataError, match=r"b\.txt is or lies behind a link"):
        AltTextFiles(folder, PIXELS, (), overwrite=True)
    (folder / "b.txt").unlink()
    assert AltTextFiles(folder, PIXELS, ()).todo == ["b.png"]
    write_alt_texts(Teller(), AltTextFiles(folder, PIXELS, (), overwrite=True))
    assert (folder / "a.txt").read_text() == "=a a 1\n"
    assert len(lines(folder / "alt_text.jsonl")) == 4


@pytest.mark.parametrize("output", [None, "alt.csv", "alt.jsonl"])
def test_it_goes_on_where_it_was_stopped(folder: Path, tmp_path: Path, output: str | None) -> None:
    where = {"output": None if output is None else tmp_path / output}
    with pytest.raises(KeyboardInterrupt):
        write_alt_texts(Teller(stop_at="d.jpg"), AltTextFiles(folder, PIXELS, (), **where))
    assert (folder / "a.txt").exists() == (output is None)
    files = AltTextFiles(folder, PIXELS, (), **where)
    assert files.todo == ["in/d.jpg", "in/deep/c.png"]
    teller = Teller()
    assert len(write_alt_texts(teller, files)) == 2
    assert teller.batches == [["d.jpg", "c.png"]]
    assert files.todo == []
    again = AltTextFiles(folder, PIXELS, (), **where)
    assert (again.todo, len(again.rows)) == ([], 4)


@pytest.mark.parametrize("output", [None, "alt.csv", "alt.jsonl"])
def test_what_is_made_anew_keeps_its_old_caption_until_then(folder: Path, tmp_path: Path, output: str | None) -> None:
    where = {"output": None if output is None else tmp_path / output}
    table = where["output"] or folder / "alt_text.jsonl"
    write_alt_texts(Teller(), AltTextFiles(folder, PIXELS, (), **where))
    before = table.read_text()
    with pytest.raises(KeyboardInterrupt):
        write_alt_texts(Teller(stop_at="a.JPG"), AltTextFiles(folder, PIXELS, (), **where, overwrite=True))
    assert table.read_text() == before
    (folder / "b.png").write_bytes(b"no picture")
    with pytest.raises(KeyboardInterrupt):
        write_alt_texts(Teller(stop_at="d.jpg"), AltTextFiles(folder, PIXELS, (), **where, overwrite=True))
    after = table.read_text()
    assert ("=a b 1" in after, "=a d 2" in after, len(after.splitlines())) == (True, True, len(before.splitlines()))
    if output is None:
        assert (folder / "in/d.txt").read_text() == "=a d 2\n"
        (folder / "a.txt").write_text("mine")
        with pytest.raises(KeyboardInterrupt):
            write_alt_texts(Teller(stop_at="a.JPG"), AltTextFiles(folder, PIXELS, (), overwrite=True))
        assert (folder / "a.txt").read_text() == "mine"
    table.write_text("none of ours\nby far\n")
    files = AltTextFiles(folder, PIXELS, (), **where, overwrite=True)
    assert (len(write_alt_texts(Teller(), files)), files.todo) == (4, ["b.png"])  # which cannot be read any more
    assert "none of ours" not in table.read_text()


@pytest.mark.parametrize("output", ["alt.csv", "alt.jsonl"])
@pytest.mark.parametrize(("before", "now"), [(("match",), ("cosine", "match")), (("cosine", "match"), ())])
def test_captions_of_a_model_with_other_columns_stay_until_there_are_new_ones(
    folder: Path, tmp_path: Path, output: str, before: tuple[str, ...], now: tuple[str, ...]
) -> None:
    table = tmp_path / output
    files = AltTextFiles(folder, PIXELS, before, output=table)
    files.add(
        {"image": name, "caption": "old", "caption_score": -1.0} | dict.fromkeys(before, 0.5) for name in files.pictures
    )
    files.write()
    with pytest.raises(DataError, match="has rows of other columns than image, caption, caption_score"):
        AltTextFiles(folder, PIXELS, now, output=table)
    with pytest.raises(KeyboardInterrupt):
        write_alt_texts(Teller(stop_at="d.jpg"), AltTextFiles(folder, PIXELS, now, output=table, overwrite=True))
    rows = {
        row["image"]: row for row in (read_records(table) if output == "alt.jsonl" else csv.DictReader(table.open()))
    }
    assert [len(rows), *(rows[name]["caption"] for name in ("a.JPG", "in/d.jpg"))] == [
        4,
        "'=a a 1" if output == "alt.csv" else "=a a 1",
        "old",
    ]
    assert list(rows["in/d.jpg"]) == ["image", "caption", "caption_score", *now]


def test_a_text_that_was_not_written_any_more_is_that_of_its_row(folder: Path) -> None:
    write_alt_texts(Teller(), AltTextFiles(folder, PIXELS, ()))
    (folder / "b.txt").unlink()
    teller = Teller()
    assert write_alt_texts(teller, AltTextFiles(folder, PIXELS, ())) == []
    assert teller.batches == []
    assert (folder / "b.txt").read_text() == "=a b 1\n"


def test_files_are_written_on_the_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(alt_text.time, "monotonic", lambda: now[0])
    files = AltTextFiles(folder, PIXELS, ())
    files.add([{"image": "a.JPG", "caption": "a"}])
    now[0] = alt_text.SECONDS - 0.1
    files.add([{"image": "b.png", "caption": "b"}])
    assert not (folder / "alt_text.jsonl").exists()
    now[0] = alt_text.SECONDS
    files.add([])
    assert [row["image"] for row in lines(folder / "alt_text.jsonl")] == ["a.JPG", "b.png"]
    assert (folder / "b.txt").read_text() == "b\n"
    (folder / "alt_text.jsonl").unlink()
    now[0] = 2 * alt_text.SECONDS - 0.1
    files.add([])
    assert not (folder / "alt_text.jsonl").exists()


def test_a_table_holds_nothing_that_a_spreadsheet_obeys(folder: Path, tmp_path: Path) -> None:
    (folder / "b.png").rename(folder / "-1+1.png")
    (folder / "a.JPG").rename(folder / 'x, "y"\n\udcff.JPG')
    output = tmp_path / "alt.csv"
    write_alt_texts(Teller(), AltTextFiles(folder, PIXELS, ("match",), output=output))
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["'-1+1.png", 'x, "y"\n\\udcff.JPG', "in/d.jpg", "in/deep/c.png"]
    assert {row["caption"][:4] for row in rows} == {"'=a "}
    assert {(row["caption_score"], row["match"]) for row in rows} == {("-0.1235", "")}
    assert AltTextFiles(folder, PIXELS, ("match",), output=output).todo == []


def test_each_picture_has_a_row_of_its_own_in_a_table(folder: Path, tmp_path: Path) -> None:
    (folder / "b.png").rename(folder / "=a.png")
    (folder / "a.JPG").rename(folder / "'=a.png")
    output = tmp_path / "alt.csv"
    assert len(write_alt_texts(Teller(), AltTextFiles(folder, PIXELS, (), output=output))) == 4
    files = AltTextFiles(folder, PIXELS, (), output=output)
    assert (files.todo, len(files.rows)) == ([], 4)
    (folder / "=a.png").rename(folder / "\\udcff.png")
    (folder / "'=a.png").rename(folder / "\udcff.png")
    with pytest.raises(DataError, match=r"would both stand as \\udcff\.png in .*alt\.csv; rename one, or write one"):
        AltTextFiles(folder, PIXELS, (), output=output)
    assert len(write_alt_texts(Teller(), AltTextFiles(folder, PIXELS, (), output=tmp_path / "alt.jsonl"))) == 4
    assert AltTextFiles(folder, PIXELS, (), output=tmp_path / "alt.jsonl").todo == []


def test_a_damaged_picture_is_told_and_tried_again(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"no picture")
    said = write_alt_texts(Teller(), AltTextFiles(folder, PIXELS, ()))
    assert said[1] == {"image": "b.png", "error": "b.png is damaged"}
    assert not (folder / "b.txt").exists()
    assert len(lines(folder / "alt_text.jsonl")) == 3
    assert AltTextFiles(folder, PIXELS, ()).todo == ["b.png"]


def test_a_caption_is_matched_where_the_model_can(folder: Path) -> None:
    task = SimpleNamespace(replies_to="text", matches=False, ranks=False)
    tasks = {
        "captioning": SimpleNamespace(replies_to="caption", matches=False, ranks=False),
        "itm": SimpleNamespace(replies_to="text", matches=True, ranks=False),
        "entailment": task,
        "itc": SimpleNamespace(replies_to="text", matches=False, ranks=True),
    }
    teller = Teller(tasks)
    assert matchers(teller) == {"match": "itm", "cosine": "itc"}
    assert matchers(Teller({"entailment": task})) == {}
    (folder / "b.png").write_bytes(b"no picture")
    files = AltTextFiles(folder, PIXELS, matchers(teller))
    first, damaged, *_ = describe(teller, files.pictures)
    assert first == {"image": "a.JPG", "caption": "=a a 1", "caption_score": -0.123456, "match": 0.5, "cosine": 0.06}
    assert damaged == {"image": "b.png", "error": "b.png is damaged"}
    assert teller.batches[1] == ["a.JPG", "d.jpg", "c.png"]
    write_alt_texts(teller, files)
    assert read_records(folder / "alt_text.jsonl")[0]["match"] == 0.5


@pytest.mark.parametrize(
    ("options", "mistake", "words"),
    [
        ({"output": "a.txt"}, ConfigError, r"output=a\.txt is no table; name a \.csv or \.jsonl file"),
        ({"output": "a.csv", "output_dir": "b"}, ConfigError, "give one of them"),
        ({"folder": "nowhere"}, DataError, "nowhere is no folder"),
        ({"folder": "empty"}, DataError, "empty holds no picture"),
        (
            {"output": "other.csv"},
            DataError,
            r"other\.csv has rows of other columns than image, caption, caption_score",
        ),
        ({"output": "a.csv.d/b.csv"}, DataError, r"b\.csv is there and is no file; move it, or choose another output"),
        ({"output_dir": "a.csv.d"}, DataError, r"alt_text\.jsonl is there and is no file"),
        ({"output_dir": "taken", "overwrite": "1"}, DataError, r"taken/in/d\.txt is there and is no file"),
        ({"output": "other.jsonl"}, DataError, r"other\.jsonl has rows of other columns"),
        ({"output": "short.csv"}, DataError, r"short\.csv has rows of other columns"),
        ({"output": "zero.csv"}, DataError, r"zero\.csv has rows of other columns"),
        ({"output_dir": "linked"}, DataError, r"linked/in/d\.txt is or lies behind a link"),
        ({"output_dir": "table"}, DataError, r"table/alt_text\.jsonl is or lies behind a link"),
    ],
)
def test_what_cannot_be_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], mistake: type, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    csv.field_size_limit(131_072)  # Python's own, which readers of other files in this process have raised
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.csv").write_text("image,caption\na.jpg,b\n")
    (tmp_path / "short.csv").write_text("image,caption,caption_score\na.jpg\n")
    (tmp_path / "zero.csv").write_bytes(b"image,caption,caption_score\na\0.jpg,b" + b"c" * 200_000 + b",1\n")
    (tmp_path / "other.jsonl").write_text('{"image": 1, "caption": "a", "caption_score": 1}\n')
    for name in ("a.csv.d/b.csv", "a.csv.d/alt_text.jsonl", "taken/in/d.txt"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/in").symlink_to(tmp_path / "empty")
    (tmp_path / "table").mkdir()
    (tmp_path / "table/alt_text.jsonl").symlink_to(tmp_path / "elsewhere")
    given = {"folder": folder, **{key: Path(value) for key, value in options.items()}}
    with pytest.raises(mistake, match=words):
        AltTextFiles(reads=PIXELS, columns=(), **given)


def test_two_pictures_do_not_share_a_text(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "b.jpg")
    with pytest.raises(DataError, match=r"b\.jpg and b\.png would both have their text in .*b\.txt"):
        AltTextFiles(folder, PIXELS, ())
    files = AltTextFiles(folder, PIXELS, (), output=tmp_path / "alt.csv")
    assert len(write_alt_texts(Teller(), files)) == 5
