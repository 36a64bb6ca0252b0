"""What every task promises, over every file in conf/task and, for learning, every fusion that can feed it."""

import json

import pytest
import torch

from fusionkit.errors import ConfigError
from fusionkit.training.launch import check_needs
from tests.toys import choices, toy_batch, toy_dims, toy_model, toy_no_rows, toy_task

TEXT_KINDS = ("captions", "questions", "expressions", "hypotheses", "statements")
TASKS, FUSIONS = choices("task"), choices("fusion")


def build(task_name, fusion="cross_attention"):
    torch.manual_seed(0)
    model = toy_model(fusion)
    task = toy_task(task_name, toy_dims(model))
    return model, task


def encode(model, task, batch):
    return model.encode(batch, [task.reads] if task.encodes else [])


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
    for record in records:
        assert any(key.endswith("_id") for key in record)
        json.dumps({key: value for key, value in record.items() if key != "feats"})


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", TASKS)
def test_a_batch_without_texts_costs_nothing_and_still_reaches_every_parameter(name, fusion):
    """As where no image of a batch has an expression: plain DDP needs the gradients, and a NaN would stop the run."""
    model, task = build(name, fusion)
    if task.needs - model.fusion.provides - {"feats"}:
        pytest.skip(f"{fusion} cannot feed {name}")
    batch = toy_batch(images=4) | {kind: toy_no_rows(kind) for kind in TEXT_KINDS}
    out = task(model, batch, encode(model, task, batch))
    assert out.loss.item() == 0
    assert all(value.isfinite() for value in out.metrics.values())
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
    if missing := task.needs - model.fusion.provides - {"feats"}:
        with pytest.raises(ConfigError, match=f"task '{name}' needs '{min(missing)}' .* choose another fusion"):
            check_needs(name, task, model.fusion)
        return
    check_needs(name, task, model.fusion)
    batch = toy_batch(images=8)
    parameters = [*model.parameters(), *task.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(150):
        torch.manual_seed(1)  # the same masks and negatives at each step: nothing but the weights changes
        loss = task(model, batch, encode(model, task, batch)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        model.clamp_temperature()
        losses.append(loss.item())
        if losses[-1] < 0.2 * losses[0]:
            break
    assert losses[-1] < 0.2 * losses[0], losses[::25]
