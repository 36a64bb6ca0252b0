"""What every task promises, over every file in conf/task and, for learning, every fusion that can feed it."""

import json

import pytest
import torch

from fusionkit.assembly.checks import check_needs
from fusionkit.data.requests import ASKED
from fusionkit.errors import ConfigError
from fusionkit.types import Regions
from tests.toys import choices, toy_batch, toy_dims, toy_model, toy_no_rows, toy_task

TEXT_KINDS = ("captions", "questions", "expressions", "hypotheses", "statements")
TASKS, FUSIONS = choices("task"), choices("fusion")


def build(task_name, fusion=None, regions=False):
    """A toy model with the task; without a fusion's name, with the first that can feed the task."""
    torch.manual_seed(0)
    for name in [fusion] if fusion else FUSIONS:
        model = toy_model(name, regions)
        task = toy_task(task_name, toy_dims(model))
        if fusion or feeds(model, task):
            return model, task
    raise AssertionError(f"no fusion feeds {task_name}")


def feeds(model, task):
    return task.needs - {"feats"} <= model.fusion.provides


def encode(model, task, batch):
    return model.encode(batch, [task.reads] if task.encodes else [])


REPLYING = [name for name in TASKS if build(name)[1].replies_to is not None]
assert len(REPLYING) > 8


@pytest.mark.parametrize("name", TASKS)
def test_loss_is_a_scalar_that_reaches_the_model(name):
    model, task = build(name)
    batch = toy_batch(images=4, texts_per_image=3)
    out = task(model, batch, encode(model, task, batch))
    assert out.loss.shape == ()
    assert torch.isfinite(out.loss)
    assert len(out.logits) == len(out.targets)
    out.loss.backward()
    assert not [n for n, p in task.named_parameters() if p.grad is None]
    for part in (model.image_encoder, model.text_encoder):
        assert not [n for n, p in part.named_parameters() if p.grad is None]


@pytest.mark.parametrize("name", TASKS)
def test_records_are_json_lines_with_one_id_each(name):
    model, task = build(name)
    model.eval()
    batch = toy_batch(images=4, texts_per_image=2)
    with torch.inference_mode():
        records = task.predict(model, batch, encode(model, task, batch))
    assert records
    assert task.ranks == any("feats" in record for record in records)
    for record in records:
        assert any(key.endswith("_id") for key in record)
        json.dumps({key: value for key, value in record.items() if key != "feats"})


@pytest.mark.parametrize("name", TASKS)
def test_a_task_that_matches_scores_any_caption_with_any_image(name):
    model, task = build(name)
    batch = toy_batch(images=4, texts_per_image=2)
    encoded = model.encode(batch, [task.reads])
    assert not (task.ranks and task.matches)
    if task.matches:
        assert task.reads == "captions"
        with torch.inference_mode():
            index = torch.tensor([3, 0, 1, 2, 3, 0, 1, 2])
            logits = task.score_pairs(model, encoded.memory, encoded.text[task.reads], index)
        assert logits.shape == (8, 2)


def test_some_tasks_rank_and_some_match():
    declared = {name: (build(name)[1].ranks, build(name)[1].matches) for name in TASKS}
    assert {name for name, (ranks, _) in declared.items() if ranks} == {"itc"}
    assert {name for name, (_, matches) in declared.items() if matches} == {"itm", "ranking"}


@pytest.mark.parametrize("name", REPLYING)
def test_a_reply_is_one_to_each_text_and_says_what_is_predicted(name):
    model, task = build(name)
    model.eval()
    batch = toy_batch(images=4, texts_per_image=2)
    with torch.inference_mode():
        encoded = encode(model, task, batch)
        replies, records = task.reply(model, batch, encoded, top=2), task.predict(model, batch, encoded)
    assert task.replies_to in ASKED
    assert len(replies) == (4 if task.replies_to == "caption" else 8)
    for reply, record in zip(replies, records, strict=False):
        json.dumps(reply)
        assert reply
        assert not [key for key in reply if key.endswith("_id")]
        shared = reply.keys() & record.keys()
        assert {key: reply[key] for key in shared} == {key: record[key] for key in shared}
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


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", TASKS)
def test_a_batch_without_texts_costs_nothing_and_still_reaches_every_parameter(name, fusion):
    """As where no image of a batch has an expression: plain DDP needs the gradients, and a NaN would stop the run."""
    model, task = build(name, fusion)
    if not feeds(model, task):
        pytest.skip(f"{fusion} cannot feed {name}")
    batch = toy_batch(images=4) | {kind: toy_no_rows(kind) for kind in TEXT_KINDS}
    out = task(model, batch, encode(model, task, batch))
    assert out.loss.item() == 0
    assert not [sums for sums in out.metrics.values() if isinstance(sums, tuple) and any(sums)]
    out.loss.backward()
    assert not [n for n, p in [*task.named_parameters(), *model.text_encoder.named_parameters()] if p.grad is None]
    model.eval()
    with torch.inference_mode():
        records = task.predict(model, batch, encode(model, task, batch))
    assert not [record for record in records if "image_id" not in record]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", TASKS)
def test_overfits_eight_samples(name, fusion):
    """Training on one batch of eight images brings the loss to a small part of where it starts; else the pair is refused."""
    model, task = build(name, fusion)
    if not feeds(model, task):
        missing = task.needs - {"feats"} - model.fusion.provides
        with pytest.raises(ConfigError, match=f"task '{name}' needs '{min(missing)}' .* choose another fusion"):
            check_needs(name, task, model.fusion)
        return
    check_needs(name, task, model.fusion)
    batch = toy_batch(images=8)
    parameters = [*model.parameters(), *task.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    losses = []
    for _ in range(150):
        torch.manual_seed(1)  # the same masks and negatives at each step: nothing but the weights changes
        loss = task(model, batch, encode(model, task, batch)).loss
        losses.append(loss.item())
        if losses[-1] < 0.35 * losses[0]:
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        model.clamp_temperature()
    assert losses[-1] < 0.35 * losses[0], losses[::25]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", TASKS)
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
            numbers = isinstance(value, float | list | torch.Tensor)
            assert value == (pytest.approx(other[key], rel=1e-4, abs=1e-5) if numbers else other[key])
