"""What the options of an import, and the tasks of a checkpoint, make of its network and its run."""

from functools import partial
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fusionkit.checkpoints.albef import to_published
from fusionkit.checkpoints.base import Plan
from fusionkit.checkpoints.build import compose_plan, empty_network
from fusionkit.data.tokenizer import word_tokenizer
from fusionkit.errors import ConfigError
from tests.checkpoints.published import albef, blip, xvlm
from tests.checkpoints.test_published_sizes import source_of
from tests.parity.imported import planned
from tests.toys import CONF

pytestmark = pytest.mark.usefixtures("fast")
LISTS = {
    "albef pretrain": albef,
    "albef nlvr": partial(albef, "nlvr"),
    "albef ve": partial(albef, "ve"),
    "albef vqa": partial(albef, "vqa"),
    "blip pretrain": blip,
    "xvlm pretrain": xvlm,
}


def plan_of(name: str, **options: Any) -> tuple[Plan, DictConfig]:
    """The plan of a published model, and its configuration."""
    plan = planned(name.partition(" ")[0], options)(source_of(LISTS[name]()))
    return plan, compose_plan(plan, plan.tokenizer)


@pytest.mark.parametrize("name", ["albef pretrain", "albef vqa", "blip pretrain", "xvlm pretrain"])
def test_norms_and_padding_reach_every_text_layer_and_head(name: str) -> None:
    plan, config = plan_of(name, bert={"layer_norm_eps": 1e-4}, ids={"pad": 7})
    parts = dict(empty_network(config, plan.ids).module.named_modules())
    norms = {n: m.eps for n, m in parts.items() if isinstance(m, nn.LayerNorm) and "image_encoder" not in n}
    assert {n for n, eps in norms.items() if eps != 1e-4} <= {f"tasks.{task}.head.1" for task in ("itm", "grounding")}
    tables = [m.padding_idx for n, m in parts.items() if n.endswith("word_embeddings")]
    assert set(tables) == {7}


@pytest.mark.parametrize("name", LISTS)
def test_its_tasks_are_scored_as_those_of_a_run_are(name: str) -> None:
    options = {"bert": {"num_hidden_layers": 18}} if name == "albef nlvr" else {}
    _, config = plan_of(name, **options)
    assert config.task
    for task, block in config.task.items():
        assert block.get("scorer") == OmegaConf.load(CONF / f"task/{task}.yaml").get("scorer")


@pytest.mark.parametrize("kind", ["ve", "vqa"])
def test_albefs_own_layout_holds_what_its_class_holds(kind: str) -> None:
    plan, config = plan_of(f"albef {kind}")
    ours = empty_network(config, plan.ids).module.state_dict()
    names = {name for name in to_published(ours, config) if not name.endswith("position_ids")}
    assert names == LISTS[f"albef {kind}"]().keys()


def test_an_answer_decoder_is_loaded_before_its_data_tell_the_answers() -> None:
    _, config = plan_of("albef vqa")
    task = empty_network(config, word_tokenizer(["what is it"])).tasks["vqa_decoder"]
    assert task.texts == ()


def test_blips_start_tokens_follow_the_vocabulary() -> None:
    plan, _ = plan_of("blip pretrain")
    assert (plan.ids["bos_DEC"], plan.ids["ENC"]) == (30522, 30523)
    with pytest.raises(ConfigError, match=r"ids\.ENC is 30524, but the text encoder embeds 30524 tokens"):
        plan_of("blip pretrain", ids={"ENC": 30524})
