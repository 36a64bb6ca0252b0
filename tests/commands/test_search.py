"""``fusionkit search``: what is found is what the model's vectors and its matching say; mistakes are sentences."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import fusionkit as fk
from fusionkit.cli.main import run
from fusionkit.errors import ConfigError, DataError
from fusionkit.files.tensors import read_tensors, save_tensors
from fusionkit.inference import embedding
from fusionkit.inference.index_update import Update

LINE = (
    "experiment=quickstart trainer=cpu trainer.precision=32-true trainer.max_epochs=1 trainer.max_steps=1 logger=csv "
    "callbacks=last trainer.limit_val_batches=0 evaluation.checkpoint=last data.answers.min_count=1 "
    "text_encoder.config.hidden_size=32 fusion.num_layers=2 model.embed_size=16 evaluation.roles=[] "
    "task=[itc,itm,vqa,grounding]"
)
TEMPLATE = "data.sources.shapes.template={captions: 'a picture: {text}'}"
TEXTS = ["a red star", "two blue rings, and a square", "green"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and drawn scenes."""
    folder = tmp_path_factory.mktemp("run")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=24"]) == 0
    assert run(["train", *LINE.split(), TEMPLATE, f"data.root={folder}/shapes", f"output_dir={folder}/run"]) == 0
    return folder


@pytest.fixture(scope="module")
def checkpoint(world: Path) -> Path:
    return world / "run/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> fk.Model:
    return fk.load(checkpoint, device="cpu")


@pytest.fixture
def photos(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve pictures in the working folder, two of them the same, and one almost."""
    monkeypatch.chdir(tmp_path)
    for number, file in enumerate(sorted((world / "shapes/images").iterdir())[:10]):
        place = tmp_path / "photos" / ("in" if number % 2 else "") / f"{number}{file.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    shutil.copy(tmp_path / "photos/0.jpg", tmp_path / "photos/same.jpg")
    Image.open(tmp_path / "photos/0.jpg").save(tmp_path / "photos/almost.png")
    return tmp_path / "photos"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the encoder is given."""
    counts: list[int] = []
    project = embedding.Embedder.project_images

    def counted(self: Any, batch: Any) -> torch.Tensor:
        counts.append(len(batch["image_ids"]))
        return project(self, batch)

    monkeypatch.setattr(embedding.Embedder, "project_images", counted)
    return counts


def search(checkpoint: Path, *words: str) -> int:
    return run(["search", f"checkpoint={checkpoint}", "index=photos.index", *words])


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def near(row: dict[str, Any]) -> dict[str, Any]:
    """A record whose numbers another batch may give with other last digits."""
    return {key: pytest.approx(value, abs=1e-4) if isinstance(value, float) else value for key, value in row.items()}


def names(photos: Path) -> list[str]:
    return sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))


def cosines(model: fk.Model, photos: Path, text: str) -> dict[str, float]:
    """By name, of each picture alone."""
    return {name: float((model.embed(photos / name) @ model.embed(texts=text)).detach()) for name in names(photos)}


def log_odds(model: fk.Model, path: Path, text: str) -> float:
    """What ``score_pairs`` says of one picture and one text."""
    embedder, matcher = model._embedder, model.parts.tasks["itm"]
    words = embedder.tokenize([text], "shapes")

    def scored(batch: Any) -> torch.Tensor:
        memory = model.parts.model.fusion.prepare(embedder.image_tokens(batch))
        return matcher.score_pairs(model.parts.model, memory, embedder.encode_text(words), torch.tensor([0]))

    (logits,) = embedder.map_images([embedding.Request(path, {})], scored)
    return float(logits[0, 1] - logits[0, 0])


def test_a_text_finds_what_is_nearest_to_it(
    checkpoint: Path, model: fk.Model, photos: Path, capsys: Capture, encoded: list[int]
) -> None:
    assert search(checkpoint, "images=photos", "batch_size=5") == 0
    assert (
        "index=photos.index: 12 images: 11 embedded, 0 as they were, 0 renamed, 1 of known bytes"
        in capsys.readouterr().out
    )
    assert encoded == [5, 5, 1]
    assert (
        search(
            checkpoint, f"query=[{TEXTS[0]}, 'two blue rings, and a square']", "k=0", "top=20", "output=out/found.jsonl"
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert encoded == [5, 5, 1]  # nothing is embedded again
    assert "rank    score  image   (score: cosine)" in printed
    rows = lines("out/found.jsonl")
    for text in TEXTS[:2]:
        found = [row for row in rows if row["query"] == text]
        expected = cosines(model, photos, text)
        assert [row["rank"] for row in found] == list(range(1, 13))
        assert {row["image"]: row["cosine"] for row in found} == pytest.approx(expected, abs=1e-5)
        assert [row["score"] for row in found] == sorted((row["cosine"] for row in found), reverse=True)
        images = [row["image"] for row in found]
        place = images.index("0.jpg")
        assert images[place : place + 3] == [
            "0.jpg",
            "almost.png",
            "same.jpg",
        ]  # equal ones in the order of their paths
        assert f"\n   1 {found[0]['score']:>8.4f}  {images[0]}\n" in printed
    assert search(checkpoint, "query=two blue rings, and a square", "k=0", "top=3", "output=one.jsonl") == 0
    assert [near(row) for row in lines("one.jsonl")] == [row for row in rows if row["query"] == TEXTS[1]][:3]


def test_matching_ranks_the_nearest_again(checkpoint: Path, model: fk.Model, photos: Path, capsys: Capture) -> None:
    assert search(checkpoint, "images=photos", f"query={TEXTS[0]}", "top=3", "k=8", "output=found.jsonl") == 0
    assert "(score: density_ratio, of the 8 nearest, by matching)" in capsys.readouterr().out
    near = sorted(cosines(model, photos, TEXTS[0]).items(), key=lambda each: (-round(each[1], 5), each[0]))[:8]
    odds = {name: log_odds(model, photos / name, TEXTS[0]) for name, _ in near}
    temperature = model.parts.model.temperature.item()
    scores = {name: odds[name] + cosine / temperature for name, cosine in near}
    rows = lines("found.jsonl")
    best = sorted(scores.values(), reverse=True)[:3]
    assert [row["score"] for row in rows] == pytest.approx(best, abs=1e-4)
    for row in rows:
        assert row["score"] == pytest.approx(scores[row["image"]], abs=1e-4)
        assert row["match"] == pytest.approx(torch.tensor(odds[row["image"]]).sigmoid().item(), abs=1e-5)
        assert row["match"] == pytest.approx(float(model.match(photos / row["image"], TEXTS[0])), abs=1e-5)
    assert (
        search(checkpoint, f"query={TEXTS[0]}", "top=12", "k=1", "output=all.jsonl") == 0
    )  # all that is shown is matched
    assert all("match" in row for row in lines("all.jsonl"))
    line = ["top=2", "k=2", "evaluation.options.reranking.rule=itm", "output=itm.jsonl"]
    assert search(checkpoint, f"query={TEXTS[0]}", *line) == 0
    assert "(score: itm, of" in capsys.readouterr().out


def test_python_finds_the_same(checkpoint: Path, model: fk.Model, photos: Path, encoded: list[int]) -> None:
    index = model.index("photos.index", images=photos)
    assert (index.update, len(index), encoded) == (Update(embedded=11, copied=1), 12, [11])
    assert search(checkpoint, f"query={TEXTS[0]}", "output=found.jsonl") == 0
    rows = [{key: value for key, value in row.items() if key != "query"} for row in lines("found.jsonl")]
    assert [pytest.approx(row["score"], abs=1e-4) for row in rows] == [row["score"] for row in index.search(TEXTS[0])]
    first, second = index.search(TEXTS[:2], top=2)
    assert first == [near(row) for row in rows[:2]]
    assert second[0]["rank"] == 1
    by_file, by_picture = index.search(image=photos / "2.jpg"), index.search(image=Image.open(photos / "2.jpg"))
    assert by_file == by_picture
    assert (by_file[0]["image"], by_file[0]["cosine"]) == ("2.jpg", pytest.approx(1, abs=1e-5))
    assert "match" not in by_file[0]
    opened = model.index("photos.index")
    assert opened.update is None
    assert "12 images of" in repr(opened)
    for weight in (0.0, 0.3, 1.0):
        found = opened.search(TEXTS[0], image=photos / "2.jpg", weight=weight, top=12)
        seen, said = model.embed(photos / "2.jpg", TEXTS[0])
        mean = torch.nn.functional.normalize(weight * seen + (1 - weight) * said, dim=0)
        expected = {name: float((model.embed(photos / name) @ mean).detach()) for name in names(photos)}
        assert {row["image"]: row["score"] for row in found} == pytest.approx(expected, abs=1e-5)
        assert "match" not in found[0]


def test_captions_find_the_images_that_the_evaluation_finds(
    world: Path, checkpoint: Path, model: fk.Model, tmp_path: Path
) -> None:
    scores = fk.evaluate(
        checkpoint,
        "split=test",
        f"data.root={world}/shapes",
        f"output_dir={tmp_path}/scores",
        "evaluation.options.reranking.k=5",
    )
    told = json.loads((world / "shapes/annotations/captions_test.json").read_text())
    files = {image["id"]: image["file_name"] for image in told["images"]}
    (tmp_path / "photos").mkdir()
    for file in files.values():
        shutil.copy(world / "shapes/images" / file, tmp_path / "photos")
    index, asked = model.index(tmp_path / "index", tmp_path / "photos"), told["annotations"]
    for k, name in ((0, "text_to_image_r1_itc"), (5, "text_to_image_r1")):
        found = index.search([each["caption"] for each in asked], top=1, k=k)
        hits = [files[each["image_id"]] == rows[0]["image"] for each, rows in zip(asked, found, strict=True)]
        assert 100 * sum(hits) / len(hits) == pytest.approx(scores.metrics[f"shapes/{name}"])
        assert 0 < sum(hits) < len(hits) == 10


def test_only_changed_pictures_are_embedded_again(
    checkpoint: Path, photos: Path, capsys: Capture, encoded: list[int]
) -> None:
    assert search(checkpoint, "images=photos") == 0
    for number in (1, 3, 5):
        Image.new("RGB", (20, 20), (number, 99, 30)).save(photos / f"in/{number}.jpg")
    (photos / "8.jpg").unlink()
    (photos / "torn.jpg").write_bytes(b"no picture")
    assert search(checkpoint, "images=photos", "batch_size=2") == 0
    printed = capsys.readouterr().out
    assert (
        "11 images: 3 embedded, 8 as they were, 0 renamed, 0 of known bytes, 1 dropped, 1 could not be read" in printed
    )
    assert "not read: photos/torn.jpg cannot be decoded (no known format)" in printed
    assert encoded == [11, 1, 2]


def test_what_looks_alike_is_named_in_groups(checkpoint: Path, model: fk.Model, photos: Path, capsys: Capture) -> None:
    assert (
        search(checkpoint, "images=photos", "duplicates=true", "threshold=1", "output=twins.jsonl", "sheet=twins.png")
        == 0
    )
    printed = capsys.readouterr().out
    assert "1 groups of pictures of a cosine from 1" in printed
    assert (
        "group 1\n       1.0000  0.jpg\n       1.0000  almost.png\n       1.0000  same.jpg  (the same bytes)\n"
        in printed
    )
    assert [(row["group"], row["image"], row["same_bytes"]) for row in lines("twins.jsonl")] == [
        (1, "0.jpg", False),
        (1, "almost.png", False),
        (1, "same.jpg", True),
    ]
    with Image.open("twins.png") as sheet:
        assert sheet.width > 700
    every = model.index("photos.index").duplicates(threshold=0.01)
    assert len(every[0]) == 12  # a network that has learnt nothing sees one picture everywhere


def test_sheets_show_what_was_found(checkpoint: Path, photos: Path, capsys: Capture) -> None:
    (photos / "0.jpg").rename(photos / "<b>&\n.jpg")
    shutil.copy(photos / "2.jpg", photos / os.fsdecode(b"\xff.jpg"))
    assert (
        search(
            checkpoint, "images=photos", f"query=[{TEXTS[0]},<i>]", "sheet=a/found.html", "output=found.jsonl", "top=13"
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "output: found.jsonl   sheet: a/found.html" in printed
    assert "  <b>&\\n.jpg\n" in printed
    assert "  \\udcff.jpg\n" in printed
    assert {row["image"] for row in lines("found.jsonl")} >= {"<b>&\n.jpg", "\udcff.jpg"}
    page = Path("a/found.html").read_text()
    assert page.count("<img ") == 26
    assert page.count("data:image/") == 26
    assert "<h2>&lt;i&gt;</h2>" in page
    assert "<b>" not in page
    assert search(checkpoint, "query=a", "top=13", "sheet=found.png") == 0
    with Image.open("found.png") as sheet:
        assert sheet.height > 600


def test_a_picture_that_vanished_is_named_and_the_others_are_told(
    checkpoint: Path, model: fk.Model, photos: Path, capsys: Capture
) -> None:
    assert search(checkpoint, "images=photos") == 0
    (photos / "2.jpg").unlink()
    shutil.copy(photos / "4.jpg", photos / "6.jpg")
    data = bytearray((photos / "8.jpg").read_bytes())
    data[15] ^= 1  # the resolution: another file of the same size
    (photos / "8.jpg").write_bytes(data)
    assert search(checkpoint, "query=a", "top=12", "output=found.jsonl", "sheet=found.html") == 1
    told = capsys.readouterr()
    rows = lines("found.jsonl")
    assert [row.get("rank") for row in rows] == [*range(1, 10), None, None, None]
    faults = {row["image"]: row["error"] for row in rows if "error" in row}
    assert faults["2.jpg"].endswith(f"photos/2.jpg does not exist; update the index with images={photos}")
    for name in ("8.jpg", "6.jpg"):
        assert faults[name].endswith(
            f"photos/{name} has changed since it was embedded; update the index with images={photos}"
        )
    assert "(and 2 more)" in told.err
    assert "   9 " in told.out
    assert len(model.index("photos.index").search("a", k=0, top=20)) == 12  # by cosine alone no file is read
    assert model.index("photos.index", "photos").search("a", top=20)[-1]["rank"] == 11


def test_an_index_of_another_checkpoint_is_refused(checkpoint: Path, photos: Path, capsys: Capture) -> None:
    assert search(checkpoint, "images=photos") == 0
    content = read_tensors(checkpoint)
    name = next(name for name in content["state_dict"] if name.endswith("image_projection.weight"))
    content["state_dict"][name] = content["state_dict"][name] + 1
    save_tensors(content, Path("other.ckpt"))
    for words in (["query=a"], ["images=photos"]):
        assert search(Path("other.ckpt"), *words) == 2
        assert (
            f"index=photos.index was made by checkpoint={checkpoint}, whose weights are others than those of "
            "checkpoint=other.ckpt; search it with that checkpoint, or name another folder" in capsys.readouterr().err
        )
    shutil.copy(checkpoint, "moved.ckpt")
    assert search(Path("moved.ckpt"), "images=photos", "data.mean=[0.4,0.4,0.4]") == 2
    assert "whose ways to read images are others" in capsys.readouterr().err
    assert search(Path("moved.ckpt"), "images=photos") == 0
    assert "12 images: 0 embedded, 12 as they were" in capsys.readouterr().out


def test_a_checkpoint_without_contrast_is_refused(checkpoint: Path, photos: Path) -> None:
    model = fk.load(checkpoint, device="cpu")
    model.parts.config.objectives.shapes.itc = 0
    with pytest.raises(
        ConfigError, match=r"was trained without contrast.*it was trained by itm, vqa, grounding: use match"
    ):
        fk.Model(model.parts, model.device).index("photos.index", photos)
    assert not Path("photos.index").exists()


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ([], 2, "nothing is asked for; give images=FOLDER, query=TEXT, image=FILE or duplicates=true"),
        (["images=photos", "output=a.jsonl"], 2, "output and sheet are of what is found; give query=TEXT"),
        (["query=a", "duplicates=true"], 2, "duplicates=true is about the images of the index alone"),
        (["query=a"], 1, "index=photos.index does not exist; make one there with images=FOLDER"),
        (["images=nowhere"], 1, "images=nowhere is no folder; give one that holds pictures"),
        (["images=empty"], 1, "images=empty holds no picture; give another folder"),
        (["images=torn"], 1, "images=torn: of its 1 pictures none can be read: torn/a.jpg cannot be decoded"),
        (["images=photos", "image=nowhere.jpg"], 1, "the image nowhere.jpg does not exist"),
        (["images=photos", "image=torn/a.jpg"], 1, "torn/a.jpg cannot be decoded"),
        (["query="], 2, "query is '', but has to be words"),
        (["query=[]"], 2, "query is an empty list; name what is looked for"),
        (["query=[a: {]"], 2, "is no list of texts; write query='[a dog, a cat]'"),
        (["query=a", "top=0"], 2, "top is 0, but has to be a whole number from 1"),
        (["query=a", "k=-1"], 2, "k is -1, but has to be a whole number from 0"),
        (["query=a", "weight=1.5"], 2, "weight is 1.5, but has to be a number from 0"),
        (["query=a", "batch_size=0"], 2, "batch_size is 0, but has to be at least 1"),
        (
            ["images=photos", "duplicates=true", "threshold=2"],
            2,
            "threshold is 2, but has to be a cosine above 0 and at most 1",
        ),
        (
            ["query=a", "sheet=found.pdf"],
            2,
            "sheet=found.pdf is neither a picture nor a page; name a .png or .html file",
        ),
        (["query=a", "output=photos"], 1, "output=photos is a folder; name a file in it"),
        (
            ["images=photos", "query=a", "output=photos/in/a.jsonl"],
            2,
            "output=photos/in/a.jsonl is in the folder of images",
        ),
        (["images=photos", "image=empty/../torn/a.png", "sheet=torn/a.png"], 2, "is the picture that is looked for"),
        (["query=a", "indx=b"], 2, "indx"),
    ],
)
def test_mistakes_are_sentences(
    checkpoint: Path, photos: Path, capsys: Capture, words: list[str], code: int, sentence: str
) -> None:
    Path("empty").mkdir()
    Path("torn").mkdir()
    Path("torn/a.jpg").write_bytes(b"no picture")
    assert search(checkpoint, *words) == code
    told = capsys.readouterr().err
    assert sentence in told
    assert "Traceback" not in told


def test_no_picture_of_an_index_is_replaced_by_what_is_found(checkpoint: Path, photos: Path, capsys: Capture) -> None:
    assert search(checkpoint, "images=photos") == 0
    before = {path: path.read_bytes() for path in photos.glob("*.*")}
    Path("link").symlink_to(photos)
    assert search(checkpoint, "query=a", "sheet=link/0.png") == 2  # whose index says where they are
    assert "sheet=link/0.png is in the folder of images" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in photos.glob("*.*")} == before


def test_python_s_mistakes_are_sentences(model: fk.Model, photos: Path) -> None:
    with pytest.raises(DataError, match="does not exist; make one there"):
        model.index("photos.index")
    index = model.index("photos.index", str(photos))
    for attempt, told in (
        (lambda: index.search(), "nothing is looked for; give a text, image=... or both"),
        (lambda: index.search([]), "no text is given"),
        (lambda: index.search("a", top=True), "top is True, but has to be a whole number from 1"),
        (lambda: index.search("a", weight="b"), "weight is 'b', but has to be a number"),
        (lambda: index.search(3), "the query is 3, but has to be words"),
        (lambda: index.duplicates(0), "threshold is 0, but has to be a cosine above 0"),
    ):
        with pytest.raises(ConfigError, match=told):
            attempt()
