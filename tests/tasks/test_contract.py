"""What every task promises, over every file in conf/task and, for learning, every fusion that can feed it."""

import pytest
import torch

from fusionkit.assembly.checks import check_needs
from fusionkit.contracts.tasks import (
    CHECKS,
    LEARNS_TO,
    a_batch_without_texts_costs_nothing_and_still_reaches_every_parameter,
    encode,
    feeds,
    overfits_eight_samples,
)
from fusionkit.errors import ConfigError
from fusionkit.types import Regions
from tests.toys import choices, toy_batch, toy_dims, toy_model, toy_task

# the projectors of a prefix differ in what the language model reads, not in what a task reads: tests/fusion/test_prefix.py
OTHER_PROJECTORS = {f"prefix_{name}" for name in ("linear", "shuffle", "qformer", "perceiver")}
TASKS, FUSIONS = choices("task"), sorted(set(choices("fusion")) - OTHER_PROJECTORS)
assert set(choices("fusion")) > OTHER_PROJECTORS


def build(task_name, fusion=None, regions=False):
    """A toy model with the task; without a fusion's name, with the first that can feed the task."""
    torch.manual_seed(0)
    for name in [fusion] if fusion else FUSIONS:
        model = toy_model(name, regions)
        task = toy_task(task_name, toy_dims(model))
        if fusion or feeds(model, task):
            return model, task
    raise AssertionError(f"no fusion feeds {task_name}")


FED_BY = {  # a fusion for each task: cross-attention where it can
    name: next(fusion for fusion in ("cross_attention", *FUSIONS) if feeds(*build(name, fusion))) for name in TASKS
}


def is_learnt_by_heart(name, fusion):
    """Each task and each fusion once; of the other pairs it is seen that they begin to learn."""
    return name == "vqa" or fusion == FED_BY[name]


PAIRS = [  # every pair, but where only the libraries are other ones
    pytest.param(name, fusion, marks=() if is_learnt_by_heart(name, fusion) else pytest.mark.slow)
    for name in TASKS
    for fusion in FUSIONS
]
REPLYING = [name for name in TASKS if build(name)[1].replies_to is not None]
assert len(REPLYING) > 8


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", TASKS)
def test_it_keeps_the_contract(name, check):
    check(lambda: build(name))


def test_some_tasks_rank_and_some_match():
    declared = {name: (build(name)[1].ranks, build(name)[1].matches) for name in TASKS}
    assert {name for name, (ranks, _) in declared.items() if ranks} == {"itc"}
    assert {name for name, (_, matches) in declared.items() if matches} == {"itm", "likelihood", "ranking"}


@pytest.mark.parametrize("name", REPLYING)
def test_replies_name_as_many_answers_as_are_asked_for(name):
    model, task = build(name)
    model.eval()
    batch = toy_batch(images=4, texts_per_image=2)
    with torch.inference_mode():
        for reply in task.reply(model, batch, encode(model, task, batch), top=2):
            if "answers" in reply:
                assert reply["answers"][0]["answer"] == reply["answer"]
                assert len(reply["answers"]) == 2
            if "labels" in reply:
                assert sum(reply["labels"].values()) == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name in REPLYING if hasattr(build(name)[1], "evidence")])
def test_evidence_is_one_number_of_each_fused_pair(name):
    model, task = build(name)
    batch = toy_batch(images=4, texts_per_image=2)
    encoded = model.encode(batch, [task.reads])
    evidence = task.evidence(model.fuse(encoded.memory, encoded.text[task.reads], batch[task.reads]["image_index"]))
    assert evidence.shape == (8,)
    assert evidence.requires_grad


@pytest.mark.parametrize(("name", "fusion"), PAIRS)
def test_without_texts_every_fusion_costs_nothing(name, fusion):
    built = build(name, fusion)
    if not feeds(*built):
        pytest.skip(f"{fusion} cannot feed {name}")
    a_batch_without_texts_costs_nothing_and_still_reaches_every_parameter(lambda: built)


@pytest.mark.parametrize(("name", "fusion"), PAIRS)
def test_it_overfits_eight_samples_or_is_refused(name, fusion):
    model, task = build(name, fusion)
    if not feeds(model, task):
        missing = task.needs - {"feats"} - model.fusion.provides
        with pytest.raises(ConfigError, match=f"task '{name}' needs '{min(missing)}' .* choose another fusion"):
            check_needs(name, task, model.fusion)
        return
    check_needs(name, task, model.fusion)
    if task.draws_texts:
        pytest.skip("its loss is no measure of what is learnt; that its rewards rise: test_captioning_scst.py")
    overfits_eight_samples(model, task, goal=LEARNS_TO if is_learnt_by_heart(name, fusion) else 2 * LEARNS_TO)


@pytest.mark.parametrize(("name", "fusion"), PAIRS)
def test_regions_in_place_of_pixels_train_and_predict(name, fusion):
    """Whatever a fusion can feed, it feeds from regions of variable count too; what pads them changes no record."""
    model, task = build(name, fusion, regions=True)
    if not feeds(model, task):
        pytest.skip(f"{fusion} cannot feed {name}")
    batch = toy_batch(images=4)
    del batch["pixel_values"]
    longer = Regions(*(torch.cat([part, torch.zeros_like(part[:, :2])], dim=1) for part in batch["regions"]))
    out = task(model, batch, encode(model, task, batch))
    out.loss.backward()
    assert out.loss.isfinite()
    assert not [n for n, p in [*model.image_encoder.named_parameters(), *task.named_parameters()] if p.grad is None]
    model.eval()
    with torch.inference_mode():
        both = (batch, batch | {"regions": longer})
        records, padded = (task.predict(model, each, encode(model, task, each)) for each in both)
    assert len(records) == len(padded) > 0
    for record, other in zip(records, padded, strict=True):
        assert record.keys() == other.keys()
        for key, value in record.items():
            parts = value if isinstance(value, list) else [value]
            numbers = not any(isinstance(part, str | dict) for part in parts)
            assert value == (pytest.approx(other[key], rel=1e-4, abs=1e-5) if numbers else other[key])
