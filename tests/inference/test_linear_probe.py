"""The linear probe: what it makes of known features, and the command end to end on drawn pictures."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from fusionkit.cli.main import run
from fusionkit.data.readers.class_folders import ClassFolders
from fusionkit.errors import ConfigError
from fusionkit.inference.linear_probe import LinearProbe, held_out
from fusionkit.inference.logistic import fit
from fusionkit.scoring.records import read_records
from tests.data.worlds import write_photo

OPTIONS = (
    "experiment=quickstart trainer=cpu trainer.precision=32-true trainer.max_epochs=-1 trainer.max_steps=1 callbacks=last "
    "trainer.limit_val_batches=0 evaluation.checkpoint=last evaluation.roles=[] logger=none data.answers.min_count=1 "
    "text_encoder.config.hidden_size=32 fusion.num_layers=2 model.embed_size=16 data.num_workers=0 "
    "task=[itc] objectives=none +objectives.shapes.itc=1"
)
COLOURS = {"blue": (20, 20, 230), "green": (20, 230, 20), "red": (230, 20, 20)}
Capture = pytest.CaptureFixture[str]


def draw(root: Path, split: str, counts: dict[str, int]) -> None:
    """Pictures of one colour a class, each a little other."""
    for name, count in counts.items():
        for number in range(count):
            path = root / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), tuple(part + number for part in COLOURS[name])).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, pictures of three colours, and what the probe leaves."""
    root = tmp_path_factory.mktemp("linear")
    assert run(["data", "make", "shapes", f"root={root}/shapes", "scenes=20"]) == 0
    assert run(["train", *OPTIONS.split(), f"data.root={root}/shapes", f"output_dir={root}/run"]) == 0
    draw(root / "world", "train", {"blue": 5, "green": 6, "red": 7})
    draw(root / "world", "test", {"blue": 3, "green": 2, "red": 1})
    assert evaluate(root, root / "world", root / "out") == 0
    return root


def evaluate(root: Path, world: Path, out: Path, *more: str) -> int:
    line = [f"checkpoint={root}/run/checkpoints/last.ckpt", f"root={world}", "resamples=20", f"output_dir={out}"]
    return run(["evaluate", *line, *(more or ("benchmark=[linear_probe]",))])


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_colours_are_told_apart_and_all_is_written(root: Path) -> None:
    metrics, details = content(root / "out/metrics.json"), content(root / "out/details.json")["linear_probe"]
    assert metrics["linear_probe/accuracy"] == 100
    assert metrics["linear_probe/mean_per_class"] == 100
    assert metrics["linear_probe/accuracy_baseline"] == pytest.approx(100 / 6)  # red is commonest in training
    assert metrics["linear_probe/accuracy_chance"] == pytest.approx(100 / 3)
    assert details["intervals"]["accuracy"] == [100, 100]
    assert details["images"] == details["samples"] == 6
    assert details["notes"]["strength"].startswith("L2 of ")
    assert "of 3 held-out pictures are right" in details["notes"]["strength"]
    records = read_records(root / "out/predictions/linear_probe.jsonl")
    assert [record["image_id"] for record in records][::3] == ["blue/0.png", "green/0.png"]
    assert all(set(record) == {"image_id", "label", "predicted", "probability"} for record in records)
    assert all(1 / 3 < record["probability"] <= 1 for record in records)


def test_the_same_command_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    assert evaluate(root, root / "world", tmp_path) == 0
    for name in ("metrics.json", "details.json", "predictions/linear_probe.jsonl", "samples.jsonl"):
        assert (tmp_path / name).read_bytes() == (root / "out" / name).read_bytes()


def test_the_records_are_scored_again_without_the_model_and_compared(root: Path, tmp_path: Path) -> None:
    line = [f"predictions={root}/out/predictions/linear_probe.jsonl", f"annotations={root}/world/test", "resamples=20"]
    assert run(["score", "benchmark=linear_probe", *line, f"output={tmp_path}/s"]) == 0
    told, again = (
        content(root / "out/details.json")["linear_probe"],
        content(tmp_path / "s/details.json")["linear_probe"],
    )
    assert (again["scores"], again["intervals"]) == (told["scores"], told["intervals"])
    both = [f"{root}/out", f"{root}/out", f"output_dir={tmp_path}/c", "resamples=20"]
    assert evaluate(root, root / "world", tmp_path / "b") == 0
    both[1] = f"{tmp_path}/b"
    assert run(["compare", *both]) == 0
    assert "accuracy" in (tmp_path / "c/table.md").read_text()


def test_zero_shot_stands_beside_it_and_splits_have_other_names(root: Path, tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    for name, split in (("train", "training"), ("test", "val")):
        (root / "world" / name).rename(tmp_path / "world" / split)
    try:
        names = ["benchmark.linear_probe.train=training", "benchmark.linear_probe.splits=[val]"]
        both = "benchmark=[zero_shot,linear_probe]"
        assert evaluate(root, tmp_path / "world", tmp_path / "out", both, *names) == 0
    finally:
        for name, split in (("train", "training"), ("test", "val")):
            (tmp_path / "world" / split).rename(root / "world" / name)
    metrics = content(tmp_path / "out/metrics.json")
    assert metrics["linear_probe/accuracy"] == 100
    assert 0 <= metrics["zero_shot/itc/top1"] <= 100


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            {"blue": 2, "red": 2},
            {"blue": 1, "green": 1},
            "the class 'green' has test pictures and no training pictures",
        ),
        ({"blue": 2}, {"blue": 1, "red": 1}, "has pictures of 1 classes, but two are needed"),
        ({}, {"blue": 1, "red": 1}, "train does not exist"),
        ({"blue": 2, "red": 1}, {"blue": 1, "red": 1}, "the class 'red' has one training picture, but two are needed"),
    ],
)
def test_folders_that_cannot_be_learnt_from_are_one_sentence(
    train: dict[str, int], test: dict[str, int], message: str, root: Path, tmp_path: Path, capsys: Capture
) -> None:
    draw(tmp_path, "train", train)
    draw(tmp_path, "test", test)
    assert evaluate(root, tmp_path, tmp_path / "out") == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_empty_folder_a_broken_picture_and_a_fit_to_what_is_scored_are_one_sentence(
    root: Path, tmp_path: Path, capsys: Capture
) -> None:
    draw(tmp_path, "test", {"blue": 1, "red": 1})
    (tmp_path / "train").mkdir()
    assert evaluate(root, tmp_path, tmp_path / "out") == 1
    assert "has pictures of 0 classes" in " ".join(capsys.readouterr().err.split())
    draw(tmp_path, "train", {"blue": 2, "red": 2})
    (tmp_path / "train/red/0.png").write_bytes(b"no picture")
    assert evaluate(root, tmp_path, tmp_path / "out") == 1
    assert "0.png" in capsys.readouterr().err
    same = ("benchmark=[linear_probe]", "benchmark.linear_probe.train=test")
    assert evaluate(root, tmp_path, tmp_path / "out", *same) == 2
    assert "has to name a split that is not scored" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("pooled", [None, torch.zeros(1, 4, 3), torch.zeros(1, 0)])
def test_an_encoder_that_pools_nothing_is_told(pooled: Any) -> None:
    batch: Any = {"captions": {"ids": ["a"], "image_index": torch.zeros(1, dtype=torch.long)}}
    encoded: Any = SimpleNamespace(image=SimpleNamespace(pooled=pooled))
    with pytest.raises(ConfigError, match="image_encoder SimpleNamespace gives no pooled vector to probe"):
        LinearProbe().predict(SimpleNamespace(image_encoder=SimpleNamespace()), batch, encoded)  # type: ignore[arg-type]


def folder(root: Path, split: str, count: int) -> Any:
    for name in ("ant", "bee"):
        for number in range(count):
            write_photo(root / split / name / f"{number}.png")
    return ClassFolders(f"{root}/{{split}}", own=True).read(split)


def known(samples: Any, noise: float, seed: int) -> list[dict[str, Any]]:
    """Features of which the first tells the class, and the others nothing."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for sample in samples:
        row = noise * torch.randn(6, generator=generator)
        row[0] += 1.0 if sample.image_id.startswith("bee") else -1.0
        found.append({"caption_id": sample.texts["captions"][0].id, "pooled": row})
    return found


@pytest.mark.parametrize("noise", [0.1, 1.5])
def test_known_features_give_known_answers_by_the_best_strength(noise: float, tmp_path: Path) -> None:
    train, test = folder(tmp_path, "train", 40), folder(tmp_path, "test", 10)
    learnt, asked, probe = known(train, noise, 0), known(test, noise, 1), LinearProbe()
    records = probe.fitted(learnt, asked, train, test)
    right = sum(record["predicted"] == record["label"] for record in records)
    assert right == 20 if noise < 1 else 10 < right < 20
    features = torch.stack([record["pooled"] for record in learnt]).double()
    names = [sample.image_id.split("/")[0] for sample in train]
    targets = torch.tensor([name == "bee" for name in names]).long()
    held = held_out([sample.image_id for sample in train], names)

    def accuracy(strength: float) -> float:
        made = fit(features[~held], targets[~held], 2, strength)
        return (made.probabilities(features[held]).argmax(dim=1) == targets[held]).double().mean().item()

    strength = float(probe.notes["strength"].split()[2])
    coarse = [10.0**power for power in range(-6, 7, 2)]
    assert accuracy(strength) >= max(map(accuracy, coarse))
    made = fit(features, targets, 2, strength)  # on all pictures, those held out too
    chances = made.probabilities(torch.stack([record["pooled"] for record in asked]).double()).max(dim=1).values
    assert [record["probability"] for record in records] == pytest.approx(chances.tolist(), abs=1e-5)


def test_what_is_held_out_hangs_on_names_alone_and_leaves_each_class_some() -> None:
    ids, names = [f"{at}.png" for at in range(17)], ["a"] * 12 + ["b"] * 3 + ["c"] * 2
    held = held_out(ids, names)
    assert [int(held[names.index(name) :][: names.count(name)].sum()) for name in "abc"] == [2, 1, 1]
    turned = held_out(ids[::-1], names[::-1])
    assert torch.equal(turned.flip(0), held)
