"""A recipe starts from what ``fusionkit import`` makes of its published checkpoint: the same network, at the recipe's size."""

import copy
import difflib
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from fusionkit.checkpoints.build import compose_plan, empty_network
from fusionkit.checkpoints.load import inherited
from fusionkit.checkpoints.pretrained import from_pretrained
from fusionkit.cli.main import run
from fusionkit.tasks.itm import ITM
from fusionkit.tasks.ranking import Ranking
from tests.checkpoints.published import albef, blip, meter, uniter, vilt, xvlm
from tests.checkpoints.test_import import ALBEF, SIZES
from tests.checkpoints.test_published_sizes import source_of
from tests.checkpoints.worlds import coco_world
from tests.parity.imported import planned
from tests.test_config import composed
from tests.toys import toy_dims, toy_model

pytestmark = pytest.mark.usefixtures("fast")
ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
TEXTS = {  # by family, what the recipe's pretrained text encoder is
    "albef": {"model_type": "bert", "vocab_size": 30522},
    "blip": {"model_type": "bert", "vocab_size": 30524},
    "meter": ROBERTA | {"layer_norm_eps": 1e-5, "pad_token_id": 1},
    "uniter": {"model_type": "bert", "vocab_size": 28996},
    "vilt": {"vocab_size": 30522},
    "xvlm": {"model_type": "bert", "vocab_size": 30522},
}
STARTS: dict[str, tuple[Any, dict[str, Any]]] = {  # by recipe: the published list, and the options of its import
    "albef_retrieval_coco": (albef, {"image_size": 384}),
    "albef_vqa": (albef, {"image_size": 384, "start": "vqa"}),
    "albef_nlvr2": (albef, {"image_size": 384, "start": "nlvr"}),
    "blip_retrieval": (blip, {"image_size": 384}),
    "blip_vqa": (blip, {"image_size": 480, "start": "vqa"}),
    "blip_captioning": (blip, {"image_size": 384, "start": "caption"}),
    "meter_nlvr2": (meter, {"start": "nlvr2"}),
    "uniter_nlvr2": (uniter, {"start": "nlvr2"}),
    "vilt_nlvr2": (vilt, {"start": "nlvr2"}),
    "vilt_pretrain": (vilt, {}),
    "xvlm_pretrain": (xvlm, {}),
    "xvlm_grounding": (xvlm, {"image_size": 384, "swin": {"window_size": 12}}),
}


def reading(config: DictConfig, other: DictConfig) -> dict[str, Any]:
    """How a run reads images and texts, and what its matching aligns, of those sources and tasks that another one has too."""
    found: dict[str, Any] = {key: config.data.get(key, "squash") for key in ("fit", "mean", "std")}
    shared = config.data.sources.keys() & other.data.sources.keys()
    found |= {name: instantiate(config.data.sources[name].get("clean")) for name in shared}
    is_matching = "itm" in config.task and "itm" in other.task
    return found | {"alignment": instantiate(config.task.itm.alignment) if is_matching else None}


@pytest.mark.parametrize("name", STARTS)
def test_a_recipe_is_the_published_network(name: str) -> None:
    """Names, shapes, epsilons, dropout and activations; a head that both have is the same too; and what they read."""
    published, options = STARTS[name]
    family = name.partition("_")[0]
    config = composed("train", [f"experiment={name}", "data.root=x"])
    with open_dict(config):
        config.image_encoder.pop("pretrained", None)
        config.image_encoder.pop("drop_path_rate", None)  # of BLIP's VQA: what an import has is evaluated
        config.text_encoder.update(pretrained=None)
        config.text_encoder.config = {**(config.text_encoder.get("config") or {}), **TEXTS[family]}
        for task in config.task.values():
            task.update({"prompt": ""} if "prompt" in task else {})
    plan = planned(family, options)(source_of(published()))
    imported = compose_plan(plan, plan.tokenizer)
    assert reading(config, imported) == reading(imported, config)
    theirs = empty_network(imported, plan.ids, plan.answers)
    ours = empty_network(config, plan.ids, ["yes", "no"])
    changes = difflib.unified_diff(str(theirs.model).splitlines(), str(ours.model).splitlines(), n=0)
    assert not list(changes)
    named, own = theirs.module.state_dict(), ours.module.state_dict()
    assert {n: t.shape for n, t in own.items() if n.startswith("model.")} == {
        n: t.shape for n, t in named.items() if n.startswith("model.")
    }
    assert all(named[n].shape == tensor.shape for n, tensor in own.items() if n in named)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_world(tmp_path_factory.mktemp("coco"))


def train(world: Path, checkpoint: Path, folder: Path) -> int:
    """A recipe at toy size, on images of 96 pixels."""
    vit = ["++image_encoder.embed_dim=64", "++image_encoder.depth=3", "++image_encoder.num_heads=4"]
    sizes = [*vit, "image_encoder.name=vit_base_patch16_224", "model.embed_size=32", "fusion.num_heads=4"]
    small = ["data.num_workers=0", "data.sources.coco.batch_size=4", "task.itc.queue_size=64", "fusion.num_layers=2"]
    cpu = ["trainer=cpu", "trainer.devices=1", "trainer.fast_dev_run=1", f"tokenizer={world}/words"]
    line = ["experiment=albef_retrieval_coco", f"data.root={world}", "data.image_size=96", f"output_dir={folder}"]
    return run(["train", *line, f"checkpoint={checkpoint}", *sizes, *small, *cpu])


def test_fine_tuning_starts_from_pre_training_at_its_own_size(world, tmp_path, capsys):
    imported = tmp_path / "albef"
    sizes = [size for size in SIZES if not size.startswith("image_size")]
    for size, folder in ((64, tmp_path / "small"), (96, imported)):
        line = [f"albef={ALBEF}", f"output={folder}", f"tokenizer={world}/words", f"image_size={size}", *sizes]
        assert run(["import", *line]) == 0
    capsys.readouterr()
    assert train(world, imported, tmp_path / "run") == 0, capsys.readouterr().err
    assert f"started from {imported}\n" in capsys.readouterr().out  # nothing is new, and BERT was not asked for
    assert train(world, tmp_path / "small", tmp_path / "run") == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "was imported for images of 64 pixels" in sentence
    assert "image_size=96" in sentence


def test_ranking_starts_from_matching():
    dims = toy_dims(toy_model())
    tasks = torch.nn.ModuleDict({"ranking": Ranking(dims)})
    found = {f"tasks.itm.{name}": tensor for name, tensor in ITM(dims).state_dict().items()}
    taken = inherited(tasks, found)
    assert taken["tasks.ranking.head.weight"].equal(found["tasks.itm.head.weight"])
    own = {f"tasks.ranking.{name}": tensor for name, tensor in copy.deepcopy(tasks.ranking).state_dict().items()}
    assert inherited(tasks, found | own)["tasks.ranking.head.weight"].equal(own["tasks.ranking.head.weight"])


def test_a_start_of_vqa_is_exported_and_is_a_published_vqa_model(world, tmp_path):
    """Without a list of answers, and with a tokenizer, which could not spell any."""
    sizes = [*SIZES, "decoder.num_layers=2", f"tokenizer={world}/words"]
    assert run(["import", f"albef={ALBEF}", "start=vqa", f"output={tmp_path}/start", *sizes]) == 0
    assert run(["export", f"checkpoint={tmp_path}/start", "layout=albef", f"output={tmp_path}/vqa.pth"]) == 0
    assert run(["import", f"albef={tmp_path}/vqa.pth", f"output={tmp_path}/again", *sizes]) == 0
    first, again = (from_pretrained(tmp_path / name).module.state_dict() for name in ("start", "again"))
    changed = {name for name in first if not first[name].equal(again[name])}
    assert changed
    assert all(
        "_projection." in name or name.endswith("temperature") for name in changed
    )  # a VQA model has no contrast
