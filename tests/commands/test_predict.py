"""``fusionkit predict`` on one's own inputs, and ``evaluate overlays=N``: a checkpoint alone, without the data of its run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusionkit.cli.main import run

LINE = (
    "experiment=quickstart trainer=cpu trainer.precision=32-true trainer.max_epochs=1 trainer.max_steps=1 logger=csv "
    "callbacks=last trainer.limit_val_batches=0 evaluation.checkpoint=last "
    "data.answers.min_count=1 text_encoder.config.hidden_size=32 fusion.num_layers=2 model.embed_size=16 "
    "evaluation.roles=[test] evaluation.options.gallery=false evaluation.options.reranking.k=0 data.spell_answers=true "
    "task=[itc,itm,mlm,vqa,grounding,captioning] +objectives.shapes.captioning=1"
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that was moved away from its data, which is gone; what it predicted; the images and what was asked."""
    folder, home = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("elsewhere")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=20"]) == 0
    options = [*LINE.split(), f"data.root={folder}/shapes", f"output_dir={folder}/run"]
    assert run(["train", *options]) == 0
    at = [f"checkpoint={folder}/run/checkpoints/last.ckpt", f"output_dir={home}/evaluated", "overlays=2"]
    assert run(["evaluate", *at]) == 0
    (folder / "run/checkpoints/last.ckpt").rename(home / "moved.ckpt")
    (folder / "shapes").rename(home / "kept")
    shutil.rmtree(folder)
    return home


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def predict(world: Path, *overrides: str) -> int:
    return run(["predict", f"checkpoint={world}/moved.ckpt", *overrides])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sentence(capsys: Capture) -> str:
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def image_of(world: Path, image_id: int) -> str:
    return str(world / f"kept/images/{image_id:012d}.jpg")


def asked_in(world: Path) -> list[dict]:
    """The questions, phrases and captions of the test split as requests, a few images asked for a caption, shuffled."""
    questions = json.loads((world / "kept/vqa/v2_OpenEnded_mscoco_test_questions.json").read_text())["questions"]
    captions = json.loads((world / "kept/annotations/captions_test.json").read_text())["annotations"]
    requests = [
        {"id": each["question_id"], "image": image_of(world, each["image_id"]), "question": each["question"]}
        for each in questions
    ]
    requests += [
        {"id": each["id"], "image": image_of(world, each["image_id"]), "text": each["caption"]} for each in captions
    ]
    requests += [
        {"id": each["image_id"], "image": image_of(world, each["image_id"]), "caption": True} for each in captions
    ]
    return (
        [requests[(7 * number) % len(requests)] for number in range(len(requests))] if len(requests) % 7 else requests
    )


def test_the_replies_are_what_the_evaluation_predicted(world: Path, tmp_path: Path) -> None:
    requests = asked_in(world)
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
    assert predict(world, f"image={tmp_path}/requests.jsonl", f"output={tmp_path}/replies.jsonl", "batch_size=3") == 0
    replies = lines(tmp_path / "replies.jsonl")
    assert [reply["id"] for reply in replies] == [request["id"] for request in requests]
    predicted = world / "evaluated/predictions"
    answers = {record["question_id"]: record["answer"] for record in lines(predicted / "shapes_vqa.jsonl")}
    asked = {reply["id"]: reply for reply in replies if "question" in reply}
    assert {number: reply["answer"] for number, reply in asked.items()} == answers
    for reply in asked.values():
        shares = [each["probability"] for each in reply["answers"]]
        assert reply["answers"][0]["answer"] == reply["answer"]
        assert len(shares) == 5
        assert 1 >= shares[0] == max(shares)
    matches = {
        record["caption_id"]: record["score"] for record in lines(predicted / "shapes_itm.jsonl") if record["label"]
    }
    told = {reply["id"]: reply["match"] for reply in replies if "match" in reply}
    assert told == pytest.approx(matches, abs=1e-5)
    captions = {record["image_id"]: record["caption"] for record in lines(predicted / "shapes_captioning.jsonl")}
    assert {r["id"]: r["caption"] for r in replies if "caption" in r} == captions
    ranked = {
        record["caption_id"]: record for record in lines(predicted / "shapes_itc.jsonl") if "caption_id" in record
    }
    for reply in (reply for reply in replies if "cosine" in reply):
        scores = dict(zip(ranked[reply["id"]]["image_ids"], ranked[reply["id"]]["scores"], strict=True))
        assert scores[int(Path(reply["image"]).stem)] == pytest.approx(reply["cosine"], abs=1e-5)


def test_the_samples_that_are_drawn_are_predicted_as_all_are_and_have_their_true_box(world: Path) -> None:
    folder = world / "evaluated/attention"
    boxes = {r["sent_id"]: r["bbox"] for r in lines(world / "evaluated/predictions/shapes_grounding.jsonl")}
    drawn = lines(folder / "shapes_grounding.jsonl")
    assert len(drawn) == 2
    for record in drawn:
        assert record["bbox"] == pytest.approx(boxes[record["text_id"]], abs=1e-3)
        assert len(record["true_bbox"]) == 4
        assert {Path(name).suffix for name in record["files"]} == {".png", ".npz"}
        assert all((folder / name).is_file() for name in record["files"])
    assert {path.name.split("_")[1].split(".")[0] for path in folder.glob("*.jsonl")} == {"grounding", "itm", "vqa"}


def test_all_is_asked_of_a_picture_of_one_s_own_and_drawn(world: Path, tmp_path: Path, capsys: Capture) -> None:
    Image.new("RGB", (90, 60), "#3366aa").save(tmp_path / "a photo, (mine).png")
    words = ["question=what's left, (really)?", "phrase=the red circle", "text=a blue wall", "caption=true"]
    out = [f"output={tmp_path}/out/replies.jsonl", f"output_dir={tmp_path}/seen", "attention=true", "top=2"]
    assert predict(world, f"image={tmp_path}/a photo, (mine).png", *words, *out) == 0
    (reply,) = lines(tmp_path / "out/replies.jsonl")
    assert reply["question"] == "what's left, (really)?"
    assert len(reply["answers"]) == 2
    x, y, width, height = reply["bbox"]
    assert 0 <= x <= x + width <= 90.01
    assert 0 <= y <= y + height <= 60.01
    assert isinstance(reply["caption"], str)
    assert {Path(path).suffix for path in reply["files"]} == {".png", ".npz"}
    with np.load(next(path for path in reply["files"] if path.endswith("phrase.npz"))) as file:
        assert file["words"].tolist() == ["the", "red", "circle"]
        assert file["attention"].shape == file["gradcam"].shape == (4, 8, 8)
        np.testing.assert_allclose(file["attention"].sum(axis=(1, 2)), 1, rtol=1e-4)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("question", "phrase", "match", "cosine", "caption"))


def test_a_folder_is_answered_but_for_what_cannot_be_read(world: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("a", "c"):
        Image.new("RGB", (64, 64), "#aa3366").save(tmp_path / f"mine/{name}.png")
    (tmp_path / "mine/b.png").write_bytes(b"no image")
    (tmp_path / "mine/notes.txt").write_text("no picture")
    assert (
        predict(world, f"image={tmp_path}/mine", "question=what is it?", f"output={tmp_path}/r.jsonl", "batch_size=2")
        == 1
    )
    assert "b.png cannot be decoded (no known format); of 3 requests 1 could not be answered" in sentence(capsys)
    replies = lines(tmp_path / "r.jsonl")
    assert [Path(reply["image"]).name for reply in replies] == ["a.png", "b.png", "c.png"]
    assert ["answer" in reply for reply in replies] == [True, False, True]
    assert "error" in replies[1]


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["image=a.png"], 2, "nothing is asked; give a question, a phrase, a text or caption=true"),
        (["image=a.png", "question=x", "by=itm"], 2, "by=itm is no task that answers what is asked; known: vqa"),
        (["image=a.png", "question=x", "attention=true", "layer=2"], 2, "layer is 2, but CrossAttention has 2 layers"),
        (["image=a.png", "question=x", "split=test"], 2, "split is about the run's own data"),
        (["image=r.npz", "question=x"], 1, "r.npz is of another kind than the checkpoint was trained on, which reads pixels"),
        (["image=gone.jsonl"], 1, "gone.png does not exist; of 2 requests 1 could not be answered"),
        (["overlay=true"], 2, "overlay is given, but no image to ask about; add image=PICTURE"),
        (["image=a.png", "question=x", "overlays=2"], 2, "unknown key 'overlays'"),
        (["question=x"], 2, "question is given, but no image to ask about; add image=PICTURE"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(
    overrides: list[str], code: int, words: str, world: Path, tmp_path: Path, capsys: Capture
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "r.npz").write_bytes(b"")
    ask = '{"image": "%s.png", "question": "x"}\n'
    (tmp_path / "gone.jsonl").write_text(ask % "a" + ask % "gone")
    assert predict(world, *overrides) == code
    assert words in sentence(capsys)
    assert not (tmp_path / "overlays").exists()


def test_a_checkpoint_that_has_not_learnt_what_is_asked_says_what_it_has(
    world: Path, tmp_path: Path, capsys: Capture
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    checkpoint = torch.load(world / "moved.ckpt", weights_only=True)
    config = (
        checkpoint["fusionkit"]["config"].replace("vqa: 1.0", "vqa: 0.0").replace("grounding: 2.0", "grounding: 0.0")
    )
    assert config.count(": 0.0\n") - checkpoint["fusionkit"]["config"].count(": 0.0\n") == 2
    checkpoint["fusionkit"]["config"] = config
    torch.save(checkpoint, tmp_path / "other.ckpt")
    assert run(["predict", f"checkpoint={tmp_path}/other.ckpt", "image=a.png", "question=x"]) == 2
    assert (
        "a question is asked for, but no task of the checkpoint answers it; it answers: caption, phrase, text"
        in sentence(capsys)
    )
    assert run(["predict", f"checkpoint={tmp_path}/other.ckpt", "image=a.png", "phrase=a ring", "output=r.jsonl"]) == 0
    assert len(lines(tmp_path / "r.jsonl")[0]["bbox"]) == 4  # found by matching
