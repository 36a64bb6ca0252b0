"""``fusionkit alt-text``: a checkpoint captions a folder; what is said is what predict says, and mistakes are sentences."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

import fusionkit as fk
from fusionkit.cli.main import run

LINE = (
    "experiment=quickstart trainer=cpu trainer.precision=32-true trainer.max_epochs=1 trainer.max_steps=1 logger=csv "
    "callbacks=last trainer.limit_val_batches=0 evaluation.checkpoint=last data.answers.min_count=1 "
    "text_encoder.config.hidden_size=32 fusion.num_layers=2 model.embed_size=16 evaluation.roles=[] "
    "task=[itc,itm,mlm,vqa,grounding,captioning] +objectives.shapes.captioning=1"
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=20"]) == 0
    assert run(["train", *LINE.split(), f"data.root={folder}/shapes", f"output_dir={folder}/run"]) == 0
    return folder / "run/checkpoints/last.ckpt"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.png", "in/b.jpg", "in/c.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (60 * number, 90, 200)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def alt_text(checkpoint: Path, *words: str) -> int:
    return run(["alt-text", "photos", f"checkpoint={checkpoint}", *words])


def test_captions_are_predict_s_and_the_scores_those_of_the_model(
    checkpoint: Path, photos: Path, capsys: Capture
) -> None:
    assert alt_text(checkpoint, "batch_size=2") == 0
    printed = capsys.readouterr().out
    assert "3 pictures: 3 captioned, 0 had a caption, 0 could not be read" in printed
    assert (
        "texts: photos   scores: photos/alt_text.jsonl (caption_score: mean log-probability of a caption's tokens, "
        in printed
    )
    assert "match by itm, cosine by itc)" in printed
    rows = [json.loads(line) for line in (photos / "alt_text.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == ["a.png", "in/b.jpg", "in/c.png"]
    model = fk.load(checkpoint, device="cpu")
    paths = [photos / row["image"] for row in rows]
    assert [row["caption"] for row in rows] == model.caption(paths)
    for row, path in zip(rows, paths, strict=True):
        assert path.with_suffix(".txt").read_text() == row["caption"] + "\n"
        said = model.ask(path, caption=True, text=row["caption"])
        assert [row[key] for key in ("caption_score", "match", "cosine")] == pytest.approx(
            [said[key] for key in ("caption_score", "match", "cosine")], abs=1e-4
        )
        assert row["caption_score"] < 0 < row["match"] < 1
    assert model.alt_text(photos) == []
    assert model.alt_text(str(photos), output="python.jsonl") == [
        pytest.approx(row, abs=1e-4) if isinstance(row, float) else row for row in read("python.jsonl")
    ]
    assert [row["caption"] for row in read("python.jsonl")] == [row["caption"] for row in rows]


def read(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_damaged_picture_is_named_and_counted_and_the_others_are_captioned(
    checkpoint: Path, photos: Path, capsys: Capture
) -> None:
    (photos / "in/b.jpg").write_bytes(b"no picture")
    (photos / "z.png").write_bytes(b"none either")
    assert alt_text(checkpoint, "output=out/alt.csv") == 1
    told = capsys.readouterr()
    assert "4 pictures: 2 captioned, 0 had a caption, 2 could not be read" in told.out
    assert "not read: " in told.out
    assert "b.jpg" in told.out
    assert "z.png" in told.err
    assert "of 4 pictures 2 could not be captioned" in told.err
    with Path("out/alt.csv").open(newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["a.png", "in/c.png"]
    assert not list(photos.rglob("*.txt"))
    assert alt_text(checkpoint, "output=out/alt.csv") == 1
    assert "4 pictures: 0 captioned, 2 had a caption, 2 could not be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["output=alt.txt"], 2, "output=alt.txt is no table; name a .csv or .jsonl file"),
        (["batch_size=0"], 2, "batch_size is 0, but has to be at least 1"),
        (["more"], 2, "2 folders are named; give one: fusionkit alt-text FOLDER checkpoint=PATH"),
        (["by=itm"], 2, "by=itm is no task that answers what is asked; known: captioning"),
        (["ouput=alt.csv"], 2, "ouput"),
    ],
)
def test_mistakes_are_sentences(
    checkpoint: Path, photos: Path, capsys: Capture, words: list[str], code: int, sentence: str
) -> None:
    assert alt_text(checkpoint, *words) == code
    assert sentence in capsys.readouterr().err
    assert not list(photos.rglob("*.txt"))
