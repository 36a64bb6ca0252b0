"""Every published recipe trains two steps, is validated and printed, at toy size on one small folder."""

from pathlib import Path

import pytest

from fusionkit.cli.main import run
from tests.recipes.world import make_world
from tests.toys import choices

RECIPES = [name for name in choices("experiment") if name.split("_")[0] in choices("recipe")]
VIT = ["++image_encoder.embed_dim=32", "++image_encoder.depth=1", "++image_encoder.num_heads=2", "data.image_size=32"]
SWIN = ["++image_encoder.embed_dim=32", "++image_encoder.depths=[1,1,1,1]", "++image_encoder.num_heads=[1,2,4,8]"]
BERT = "hidden_size:32,num_attention_heads:2,intermediate_size:128,max_position_embeddings:64"
WORDS = ["text_encoder.pretrained=null", f"++text_encoder.config={{model_type:bert,num_hidden_layers:2,{BERT}}}"]
SPLIT = [*WORDS, "text_encoder.num_layers=1"]
FAMILIES = {
    "albef": [*VIT, *SPLIT, "image_encoder.pretrained=false"],
    "blip": [*VIT, *WORDS, "image_encoder.pretrained=false", "text_encoder.first_token_id=5"],
    "meter": [*VIT, *WORDS],
    "uniter": [*WORDS, "image_encoder.feature_size=8", "image_encoder.hidden_size=32"],
    "vilt": [
        f"++text_encoder.config={{num_hidden_layers:0,{BERT}}}",
        *(f"image_encoder.{key}" for key in ("hidden_size=32", "patch_size=16", "image_size=32")),
        "data.image_size=32",
    ],
    "xvlm": [*SWIN, *SPLIT, "image_encoder.pretrained=false", "data.image_size=64"],
}
TASKS = {  # what is too large, or has no words, in a task's own settings
    "vqa_decoder": [
        "++data.spell_answers=true",
        "task.vqa_decoder.decoder.num_layers=1",
        "task.vqa_decoder.decoder.num_heads=2",
    ],
    "grounding_gradcam": ["task.grounding_gradcam.layer=0"],
    "nlvr2_paired": ["task.nlvr2_paired.num_heads=2"],
    "itc": ["task.itc.queue_size=8"],
    "mrm": ["task.mrm.num_classes=5"],
}
DECODERS = {  # of BLIP
    "blip_pretrain": [
        f"task.captioning.{key}" for key in ("first_token_id=5", "decoder.num_layers=2", "decoder.num_heads=2")
    ],
    "blip_vqa": ["task.vqa_decoder.decoder.first_token_id=5"],
}
TRAINER = ["accelerator=cpu", "devices=1", "strategy=auto", "precision=32-true", "fast_dev_run=2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("recipes"))


def overrides(name: str, world: Path) -> list[str]:
    """What makes a recipe small: widths, depths, batches and vocabularies; nothing of how it trains."""
    from tests.test_config import composed

    config = composed("train", [f"experiment={name}", "data.root=x"])
    small = [f"data.sources.{source}.batch_size=4" for source in config.data.sources]
    small += [
        "data.num_workers=0",
        "fusion.num_heads=2",
        f"fusion.num_layers={2 if name.startswith('blip') or 'alternating' in str(config.fusion) else 1}",
    ]
    small += [text for task, texts in TASKS.items() if task in config.task for text in texts]
    small += DECODERS.get(name, [])
    small += ["data.answers.min_count=1"] if "answers" in config.data else []
    return [*FAMILIES[name.split("_")[0]], *small, f"data.root={world}", "tokenizer=null"]


def test_every_family_has_its_recipes():
    assert len(RECIPES) == 29
    assert {name.split("_")[0] for name in RECIPES} == set(choices("recipe")) == set(FAMILIES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_two_steps(name, world, tmp_path, capsys):
    options = [f"trainer.{option}" for option in TRAINER] + ["trainer.accumulate_grad_batches=1"]
    code = run(["train", f"experiment={name}", *overrides(name, world), *options, f"output_dir={tmp_path}/run"])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert f"{name}  seed 1" in told.out  # the run is printed before it starts
