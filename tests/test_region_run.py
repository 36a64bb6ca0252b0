"""A run on region features from the command line: all of UNITER's objectives, then an evaluation; and what cannot work."""

import json
from pathlib import Path

import numpy as np
import pytest

from fusionkit.cli.main import run

SPLITS = ["train"] * 8 + ["restval"] * 4 + ["val"] * 4 + ["test"] * 4
LINE = (
    "data=coco_regions data.num_workers=0 data.sources.coco.batch_size=3 data.sources.coco.regions.min_regions=2 "
    "image_encoder=regions image_encoder.feature_size=12 image_encoder.hidden_size=32 text_encoder.config.hidden_size=32 "
    "text_encoder.config.num_hidden_layers=1 fusion=merged_attention fusion.num_layers=1 fusion.num_heads=4 "
    "objectives=captions +objectives.coco.mrm=1 task=[itc,itm,mlm,mrm] task.mrm.num_classes=6 "
    "data.sources.coco.regions.class_scores=true logger=csv trainer=cpu trainer.max_epochs=1"
)
OPTIONS = LINE.split()
ALIGNED = "task.itm.alignment={_target_: fusionkit.tasks.alignment.Alignment, weight: 0.1}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Karpathy's captions of twenty images, and three to eight regions of each."""
    root, draw = tmp_path_factory.mktemp("regions"), np.random.default_rng(0)
    (root / "regions").mkdir()
    images = []
    for number, split in enumerate(SPLITS):
        said = [{"raw": f"a thing {number % 5} or {k}", "sentid": 10 * number + k, "imgid": number} for k in range(2)]
        name = f"{number:012d}"
        images.append({"filename": f"{name}.jpg", "cocoid": number, "imgid": number, "split": split, "sentences": said})
        count = int(draw.integers(3, 9))
        corner, size = draw.random((count, 2)) * 0.5, draw.random((count, 2)) * 0.4
        boxes = np.concatenate([corner, corner + size, size], axis=1)
        scores, conf = draw.dirichlet(np.ones(6), count), np.sort(draw.random(count))[::-1]
        np.savez(
            root / f"regions/{name}.npz",
            features=draw.normal(size=(count, 12)),
            norm_bb=boxes,
            conf=conf,
            soft_labels=scores,
        )
    (root / "dataset_coco.json").write_text(json.dumps({"images": images}))
    return root


def test_training_and_evaluation(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    code = run(["train", *OPTIONS, ALIGNED, f"data.root={world}", f"output_dir={output}"])
    assert code == 0, capsys.readouterr().err
    assert {"coco/mrm_explained", "coco/text_to_image_r1"} <= json.loads((output / "metrics.json").read_text()).keys()
    assert not (output / "gallery").exists()  # there are no pixels to show
    assert "pictures" not in capsys.readouterr().out
    checkpoint = f"checkpoint={output}/checkpoints/last.ckpt"
    assert run(["evaluate", checkpoint, "split=val"]) == 0
    benchmark = ["evaluate", checkpoint, "benchmark=coco_retrieval", f"root={world}", "resamples=10"]
    assert run([*benchmark, f"output_dir={tmp_path}/b", f"benchmark.coco_retrieval.files.images={world}/regions"]) == 0
    assert "coco_retrieval/text_to_image_r1_chance" in json.loads((tmp_path / "b/metrics.json").read_text())
    capsys.readouterr()
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(16, 20):
        (photos / f"{number:012d}.jpg").touch()
    assert run([*benchmark, f"benchmark.coco_retrieval.files.images={photos}"]) == 1
    assert "reads region features (npz files), which" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["image_encoder.feature_size=2048"], "image_encoder.feature_size is 2048, but the data's region features are 12"),
        (["fusion.num_heads=5"], "fusion.num_heads is 5, which does not divide the width 32"),
        (["fusion=cross_attention"], "task 'mrm' needs 'image' (image tokens that have seen the"),
        (["data.sources.coco.regions.max_regions=1"], "regions.min_regions is 2 and max_regions 1"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_when_the_run_is_built(world: Path, tmp_path: Path, overrides, words, capsys) -> None:
    assert run(["train", *OPTIONS, *overrides, f"data.root={world}", f"output_dir={tmp_path}/run"]) == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("data: ")]
    assert words in sentence
    assert not (tmp_path / "run").exists()
