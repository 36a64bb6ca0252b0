"""Runs on drawn streams from the command line: training, evaluation, one's own questions; and what cannot work."""

import json
from pathlib import Path

import pytest

from fusionkit.cli.main import run

EXPERIMENTS = {"video_small": "video", "audio_small": "audio", "several_images": "images"}
LINE = (
    "data.prepare.clips=20 data.sources.streams.batch_size=4 text_encoder.config.hidden_size=32 fusion.num_layers=1 "
    "fusion.num_heads=4 logger=csv trainer.precision=32-true trainer.max_steps=3 trainer.limit_val_batches=1 "
    "scheduler.warmup_steps=0 trainer.log_every_n_steps=1"
)
SMALL = LINE.split()


@pytest.mark.parametrize(("name", "column"), EXPERIMENTS.items())
def test_training_evaluation_and_questions(
    name: str, column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert run(["train", f"experiment={name}", *SMALL, f"output_dir={output}"]) == 0, capsys.readouterr().err
    metrics = json.loads((output / "metrics.json").read_text())
    assert {"streams/vqa_agreement", "streams/vqa_agreement_baseline"} <= metrics.keys()
    checkpoint = f"checkpoint={output}/checkpoints/last.ckpt"
    assert run(["evaluate", checkpoint, "split=val"]) == 0, capsys.readouterr().err
    row = json.loads((output / "data/test.jsonl").read_text().splitlines()[0])
    named = row[column] if isinstance(row[column], list) else [row[column]]
    files = [str(output / "data" / each) for each in named]
    capsys.readouterr()
    shown = f"image=[{','.join(files)}]" if len(files) > 1 else f"image={files[0]}"
    assert run(["predict", checkpoint, shown, f"question='{row['question']}'"]) == 0, capsys.readouterr().err
    assert "answer" in capsys.readouterr().out
    foreign = tmp_path / ("a.png" if column == "audio" else "a.wav")
    foreign.write_bytes(b"anything")
    assert run(["predict", checkpoint, f"image={foreign}", "question='what?'"]) == 1
    assert "is of another kind than the checkpoint was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["image_encoder=resnet_small"], "reads pixel_values, but source 'streams' has frames"),
        (["image_encoder.max_length=3"], "gives streams of up to 4 frames, but image_encoder.max_length is 3"),
        (["+data.fit=keep"], "data.fit=keep gives frames of different shapes"),
        (["data.sources.streams.stream.length=0"], "stream.length is 0, but"),
        (["image_encoder.layers=-1"], "image_encoder.layers is -1, but"),
        (["+data.sources.streams.cache=true"], "set data.sources.streams.cache=false"),
    ],
)
def test_what_cannot_work_is_said_before_training(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["experiment=video_small", *SMALL, "trainer.fast_dev_run=1", f"output_dir={tmp_path}/run", *options]
    assert run(["train", *lines]) == 2
    assert message in capsys.readouterr().err


def test_bands_that_differ_are_said_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["experiment=audio_small", *SMALL, "trainer.fast_dev_run=1", f"output_dir={tmp_path}/run"]
    assert run(["train", *lines, "image_encoder.mels=80"]) == 2
    shown = capsys.readouterr()
    assert "data.sources.streams.stream.mels is 64, but image_encoder.mels is 80" in shown.err
    assert "validation" not in shown.out
