"""What the options of an import, and the tasks of a checkpoint, make of its network and its run."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fusionkit.checkpoints.base import Plan
from fusionkit.checkpoints.build import compose_plan, empty_network
from fusionkit.checkpoints.families.albef import to_published
from fusionkit.data.answers import AnswerVocabulary
from fusionkit.data.tokenizer import word_tokenizer
from fusionkit.errors import ConfigError, DataError
from tests.checkpoints.published import albef, blip, linear, meter, of_transformers, uniter, vilt, xvlm
from tests.checkpoints.test_published_sizes import covered, source_of
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
    assert task.decoding.texts == ()


def test_blips_start_tokens_follow_the_vocabulary() -> None:
    plan, _ = plan_of("blip pretrain")
    assert (plan.ids["bos_DEC"], plan.ids["ENC"]) == (30522, 30523)
    with pytest.raises(ConfigError, match=r"ids\.ENC is 30524, but the text encoder embeds 30524 tokens"):
        plan_of("blip pretrain", ids={"ENC": 30524})


FORMS = [
    ["yes", "no", "0"],
    {"answers": ["yes", "no", "0"]},
    {"no": 1, "0": 2, "yes": 0},
    {"1": "no", "0": "yes", "2": "0"},
]


@pytest.mark.parametrize("form", FORMS)
def test_answers_are_read_in_every_form_that_they_are_published_in(form: Any, tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(form))
    assert AnswerVocabulary.load(path).answers == ["yes", "no", "0"]
    source = source_of(vilt("vqa") | linear("vqa_classifier.3", 3, 1536))
    assert planned("vilt", {"answers": str(path)})(source).answers == ("yes", "no", "0")
    path.write_text(json.dumps(planned("vilt", {"answers": str(path)})(source).answers))  # as import itself writes them
    assert planned("vilt", {"answers": str(path)})(source).answers == ("yes", "no", "0")


DECODERS = {
    "albef": (partial(albef, "vqa"), albef),
    "blip": (partial(blip, "vqa"), blip),
    "xvlm": (partial(xvlm, "vqa"), xvlm),
}
CLASSIFIERS = {
    "vilt": (partial(vilt, "vqa"), vilt),
    "meter": (partial(meter, "vqa"), meter),
    "uniter": (partial(uniter, "vqa"), uniter),
}


@pytest.mark.parametrize("family", DECODERS | CLASSIFIERS)
def test_every_family_takes_a_list_of_answers_for_vqa_alone(family: str, tmp_path: Path) -> None:
    answering, other = (DECODERS | CLASSIFIERS)[family]
    path, count = tmp_path / "answers.json", 3129 if family in CLASSIFIERS else 5
    path.write_text(json.dumps([f"word {number}" for number in range(count)]))
    plan = planned(family, {"answers": str(path)})(source_of(answering()))
    assert len(plan.answers) == count
    assert plan.has_named_answers
    with pytest.raises(ConfigError, match="answers no questions; leave it out"):
        planned(family, {"answers": str(path)})(source_of(other()))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 20000, "not complete JSON"),
        ('["a", "a"]', "has the answer 'a' twice"),
        ("[1, 2]", "is no answer list"),
        ('{"a": 0, "b": 5}', "is no answer list"),
        ('{"0": "a", "2": "b"}', "is no answer list"),
        ("[]", "is no answer list"),
        ('"a"', "is no answer list"),
    ],
)
def test_a_file_of_other_things_is_named(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text(content)
    source = source_of(vilt("vqa"))
    with pytest.raises(DataError, match=rf"answers\.json .*{words}"):
        planned("vilt", {"answers": str(tmp_path / "answers.json")})(source)
    with pytest.raises(DataError, match=r"nowhere\.json does not exist"):
        planned("vilt", {"answers": str(tmp_path / "nowhere.json")})(source)


def test_a_list_of_another_length(tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text('["a", "b"]')
    with pytest.raises(ConfigError, match="holds 2 answers, but the checkpoint chooses among 3129"):
        planned("vilt", {"answers": str(tmp_path / "answers.json")})(source_of(vilt("vqa")))


def test_saved_labels_are_the_answers_where_all_are_there() -> None:
    shapes, config = of_transformers("ViltForQuestionAnswering", num_labels=2)
    labels = {"0": "red", "1": "blue"}
    assert planned("vilt", {})(source_of(shapes, config | {"id2label": labels})).answers == ("red", "blue")
    for other in ({}, {"0": "red"}, {"0": "red", "2": "blue"}, None):
        assert planned("vilt", {})(source_of(shapes, config | {"id2label": other})).answers == ("0", "1")


@pytest.mark.parametrize("family", ["clip", "blip", "flava"])
def test_intermediate_sizes_are_numbers(family: str) -> None:
    """29 / 20 * 20 is less than 29 in floats."""
    sizes = {"hidden_size": 20, "num_attention_heads": 2, "intermediate_size": 29, "num_hidden_layers": 1}
    vision, text = sizes | {"image_size": 16, "patch_size": 8}, sizes | {"vocab_size": 40, "bos_token_id": 3}
    groups = {"clip": ("vision_config", "CLIPModel"), "blip": ("vision_config", "BlipForImageTextRetrieval")}
    group, name = groups.get(family, ("image_config", "FlavaModel"))
    more = {"init_codebook": False, "multimodal_config": sizes, "hidden_size": 20} if family == "flava" else {}
    config = getattr(transformers, name).config_class(**{group: vision, "text_config": text}, **more)
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    found = covered(family, source_of(shapes, config.to_dict() | {"architectures": [name]}), {})
    assert found["model.image_encoder.backbone.blocks.0.mlp.fc1.weight"].shape == (29, 20)


@pytest.mark.parametrize(("kind", "asks"), [("pretrain", True), ("retrieval", False)])
def test_blip_draws_by_the_teacher_in_pretraining_alone(kind: str, asks: bool) -> None:
    plan = planned("blip", {})(source_of(blip(kind)))
    assert plan.config["negatives"] == {"by_teacher": asks}
    assert compose_plan(plan, plan.tokenizer).negatives.by_teacher is asks


def test_clip_keeps_its_logit_scale_between_1_and_100() -> None:
    plan = planned("clip", {})(source_of(*of_transformers("CLIPModel")))
    assert compose_plan(plan, plan.tokenizer).model.temperature_range == [1 / 100, 1 / 1]
