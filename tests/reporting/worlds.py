"""Folders as train, evaluate and score leave them, for tests of what reads them."""

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from fusionkit.data.sample import Sample

QUESTIONS = 40
CONFIG = {
    "name": "a",
    "seed": 1,
    "output_dir": "outputs/a",
    "fusion": {"_target_": "my.Cross", "num_layers": 2},
    "data": {"root": "${output_dir}/data"},
    "logger": {"wandb": {"name": "${name}"}},
}


class Named:
    """A reader whose splits have one image, called as the split."""

    def read(self, split: str) -> list[Sample]:
        return [Sample(split, Path("a.jpg"), {})]


def write_run(folder: Path, metrics: dict[str, float], **changes: Any) -> Path:
    """A finished training run: configuration, metrics, csv logs."""
    config = CONFIG | {"name": folder.name, "output_dir": f"outputs/{folder.name}"} | changes
    write(folder / "config.yaml", yaml.safe_dump(config))
    write(folder / "metrics.json", json.dumps(metrics))
    lines = ["step,train/loss,train/images_per_s,val/mean", "9,4.0,100,", "19,2.0,50,", "19,,,30.5", "29,1.0,200,"]
    write(folder / "logs/csv/version_0/metrics.csv", "\n".join(lines) + "\n")
    return folder


def write_evaluation(
    folder: Path, right: list[bool], checkpoint: str, benchmark: str = "vqav2", answer: str = "no", k: int = 4
) -> Path:
    """An evaluation, with setting ``k``, on VQA of two questions an image: what is right says "yes", the rest ``answer``."""
    rows = [
        {"id": at, "score": 100.0 * each, "image_id": at // 2, "values": {"accuracy": 100.0 * each}}
        for at, each in enumerate(right)
    ]
    records = [{"question_id": at, "answer": "yes" if each else answer} for at, each in enumerate(right)]
    score = 100 * sum(right) / len(right)
    details = {"split": "val", "scores": {"accuracy": score}, "intervals": {"accuracy": [score - 1.5, score + 2.5]}}
    files = folder.parent / "data"
    reader = {
        "_target_": "fusionkit.data.readers.vqa.VQAv2",
        "questions": f"{files}/q.json",
        "annotations": f"{files}/a.json",
        "images": str(files),
    }
    command = {
        "checkpoint": checkpoint,
        "parameters": 1000 * len(checkpoint),
        "benchmark": {benchmark: {"reader": reader}},
        "run": CONFIG | {"fusion": {"_target_": f"my.{Path(checkpoint).parent.name}"}, "evaluation": {"k": k}},
    }
    write(folder / "metrics.json", json.dumps({f"{benchmark}/accuracy": score}))
    write(folder / "details.json", json.dumps({benchmark: details}))
    write(folder / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(folder / f"predictions/{benchmark}.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    write(folder / "evaluation.yaml", yaml.safe_dump(command))
    return folder


def write_questions(files: Path, text: str = "Is it?") -> None:
    """The questions that ``write_evaluation`` answers, and their images."""
    questions = [{"question_id": at, "image_id": at // 2, "question": f"{text} {at}"} for at in range(QUESTIONS)]
    answers = [
        {
            "question_id": at,
            "image_id": at // 2,
            "answer_type": "yes/no",
            "question_type": "is it",
            "multiple_choice_answer": "yes",
            "answers": [{"answer": "yes"}] * 10,
        }
        for at in range(QUESTIONS)
    ]
    write(files / "q.json", json.dumps({"questions": questions}))
    write(files / "a.json", json.dumps({"annotations": answers}))
    for at in range(QUESTIONS // 2):
        Image.new("RGB", (8, 8), (10 * at, 0, 0)).save(files / f"{at:012d}.jpg")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
