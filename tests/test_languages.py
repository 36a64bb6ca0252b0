"""One answer a question, in Vietnamese, from training to a benchmark: the score that can be reached, notes, and cut texts."""

import json
from pathlib import Path

import pytest
from PIL import Image

from fusionkit.cli.main import run

COLOURS = {"đỏ": (255, 0, 0), "Xanh Lá": (0, 255, 0)}
ASKED = "hình tròn bên trái có màu gì"
LINE = (
    "data=vqa_v2 image_encoder=resnet_small text_encoder=bert_small fusion=late trainer=cpu task=[vqa] objectives=none "
    "+objectives.vqa.vqa=1 data.image_size=64 data.num_workers=0 data.answers.min_count=1 data.sources.vqa.batch_size=6 "
    "trainer.max_epochs=1 trainer.precision=32-true evaluation.options.gallery=false logger=none "
    "text_encoder.config.hidden_size=32 model.embed_size=16 +data.sources.vqa.max_length=12"
)
CUT = "source vqa: 1 of the 4 texts read were cut at 12 tokens, data.sources.vqa.max_length"


def write(root: Path, split: str, numbers: range) -> None:
    asked, answered = [], []
    (root / split).mkdir(parents=True)
    for number in numbers:
        name = list(COLOURS)[number % 2]
        Image.new("RGB", (64, 64), COLOURS[name]).save(root / split / f"COCO_{split}_{number:012d}.jpg")
        ids = {"question_id": number, "image_id": number}
        asked.append(ids | {"question": ASKED + " vậy" * 20 * (number % 4 == 0)})
        types = {"answer_type": "Màu sắc", "question_type": "gì", "multiple_choice_answer": name}
        answered.append(ids | types | {"answers": [{"answer": name}]})
    (root / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps({"questions": asked}))
    (root / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps({"annotations": answered}))


def test_one_answer_a_question_in_another_language(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "data", "train2014", range(6))
    write(tmp_path / "data", "val2014", range(100, 104))
    assert run(["train", *LINE.split(), f"data.root={tmp_path}/data", f"output_dir={tmp_path}/run"]) == 0
    told = capsys.readouterr().out.splitlines()
    few = (
        "few answers: 4 of 4 questions have fewer than four answers, for which the rule gives a right one 0, 33 or 67; "
    )
    assert sum(line.startswith(f"validation on vqa, vqa, {few}") for line in told) == 1
    assert sum(line.startswith(f"vqa: vqa, {few}") for line in told) == 1
    assert [line for line in told if " cut at " in line] == [CUT.replace("1 of the 4", "2 of the 6"), CUT]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert {name.removeprefix("vqa/") for name in metrics if "chance" not in name and "baseline" not in name} == {
        "vqa_agreement",
        "vqa_agreement_màu_sắc",
        "vqa_accuracy",
        "vqa_accuracy_màu_sắc",
    }
    shown = next(line for line in told if line.startswith("validation at step"))
    mean, agreed = (float(shown.partition(f"{name} ")[2].partition(",")[0]) for name in ("mean", "vqa_agreement"))
    assert mean == agreed
    assert metrics["vqa/vqa_accuracy"] == 0

    checkpoint = f"checkpoint={tmp_path}/run/checkpoints/last.ckpt"
    assert run(["predict", checkpoint, f"output_dir={tmp_path}/predicted"]) == 0
    assert CUT in capsys.readouterr().out.splitlines()
    image = tmp_path / "data/val2014/COCO_val2014_000000000100.jpg"
    assert run(["predict", checkpoint, f"image={image}", "question=what " + "is it " * 20]) == 0
    assert CUT.replace("of the 4", "of the 1") in capsys.readouterr().out.splitlines()
    options = [
        f"root={tmp_path}/data",
        "+benchmark.vqav2.max_length=12",
        f"output_dir={tmp_path}/scored",
        "resamples=5",
    ]
    assert run(["evaluate", checkpoint, "benchmark=[vqav2]", *options]) == 0
    notes = json.loads((tmp_path / "scored/details.json").read_text())["vqav2"]["notes"]
    assert list(notes) == ["rule", "few answers", "language", "length"]
    assert notes["length"] == "1 of the 4 texts read were cut at 12 tokens, the benchmark's max_length"
    assert run(["predict", checkpoint, "benchmark=[vqav2]", *options[:3]]) == 0
    assert f"vqav2: {notes['length']}" in capsys.readouterr().out.splitlines()
