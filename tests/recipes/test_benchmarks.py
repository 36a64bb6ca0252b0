"""Recipes at toy size, trained a step and evaluated on the benchmark that each of them is for."""

import json

import pytest

from fusionkit.cli.main import run
from tests.recipes.test_recipes import overrides
from tests.recipes.world import make_world

COMMON = ["trainer.accelerator=cpu", "trainer.devices=1", "trainer.strategy=auto", "trainer.precision=32-true"]
COMMON += ["trainer.max_steps=1", "trainer.accumulate_grad_batches=1", "logger=csv"]
REGIONS = "benchmark.{}.files.images={}/regions"
OPTIONS = {
    "refcoco": [
        "benchmark.refcoco.instead.grounding=[grounding_regions]",
        "benchmark.refcoco.scorers.grounding.boxes=detected",
    ],
    "coco_caption": ["benchmark.coco_caption.scorers.captioning.java=false"],
}
RECIPES = {  # its benchmark, and a metric that it has; those of UNITER read regions
    "albef_retrieval_coco": ("coco_retrieval", "text_to_image_r1"),
    "albef_retrieval_flickr30k": ("flickr30k_retrieval", "image_to_text_r10"),
    "albef_vqa": ("vqav2", "accuracy/other"),
    "albef_snli_ve": ("snli_ve", "test/accuracy/neutral"),
    "albef_nlvr2": ("nlvr2", "test1/consistency"),
    "blip_captioning": ("coco_caption", "bleu_4"),
    "uniter_refcoco": ("refcoco", "testA/acc50"),
    "uniter_retrieval": ("flickr30k_retrieval", "text_to_image_r1"),
    "uniter_vqa": ("vqav2", "accuracy"),
    "xvlm_grounding": ("refcoco+", "testB/acc75"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_scored_on_its_benchmark(name, tmp_path, capsys):
    benchmark, metric = RECIPES[name]
    world, output = make_world(tmp_path / "world"), tmp_path / "run"
    assert run(["train", f"experiment={name}", *overrides(name, world), *COMMON, f"output_dir={output}"]) == 0
    line = [f"checkpoint={output}/checkpoints/last.ckpt", f"benchmark=[{benchmark}]", f"root={world}", "resamples=5"]
    line += [REGIONS.format(benchmark, world)] if name.startswith("uniter") else []
    line += OPTIONS.get(benchmark, [])
    assert run(["evaluate", *line, f"output_dir={tmp_path}/out"]) == 0, capsys.readouterr().err
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert 0 <= metrics[f"{benchmark}/{metric}"] <= 100
    assert f"{benchmark}/{metric}_chance" in metrics
