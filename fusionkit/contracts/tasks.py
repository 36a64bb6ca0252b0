"""What every task promises. Each check takes a function that builds it with a toy model, and raises AssertionError."""

import json
from collections.abc import Callable
from typing import Any

import torch

from fusionkit.contracts.toys import TEXT_KINDS, module, require, toy_batch, toy_no_rows
from fusionkit.data.requests import ASKED
from fusionkit.model.model import VisionLanguageModel
from fusionkit.tasks.base import Task
from fusionkit.types import Encoded

Build = Callable[[], tuple[VisionLanguageModel, Task[Any]]]


def feeds(model: VisionLanguageModel, task: Task[Any]) -> bool:
    """Whether the model's fusion provides what the task needs."""
    return task.needs - {"feats"} <= model.fusion.provides


def encode(model: VisionLanguageModel, task: Task[Any], batch: Any) -> Encoded:
    """What the task is handed of a batch."""
    return model.encode(batch, [task.reads] if task.encodes else [])


def idle(part: object) -> list[str]:
    """The parameters that train, and that no gradient has reached."""
    return [name for name, p in module(part).named_parameters() if p.requires_grad and p.grad is None]


def loss_is_a_scalar_that_reaches_the_model(build: Build) -> None:
    """The loss is one finite number, and trains the head and both encoders, but for what a run of the task freezes."""
    model, task = build()
    model.freeze_unused(task.needs)
    batch = toy_batch(images=4, texts_per_image=3)
    out = task(model, batch, encode(model, task, batch))
    require(out.loss.shape == (), f"the loss has the shape {tuple(out.loss.shape)}, but has to be one number, ()")
    require(torch.isfinite(out.loss), f"the loss is {out.loss.item()}")
    require(len(out.logits) == len(out.targets), f"{len(out.logits)} logits for {len(out.targets)} targets")
    out.loss.backward()
    for name, part in (("the task", task), ("image", model.image_encoder), ("text", model.text_encoder)):
        require(not idle(part), f"no gradient of the loss reaches {', '.join(idle(part)[:3])} of {name}")


def records_are_json_lines_with_one_id_each(build: Build) -> None:
    """What it predicts can be written as json, and says what each record is about."""
    model, task = build()
    model.eval()
    task.eval()
    batch = toy_batch(images=4, texts_per_image=2)
    with torch.inference_mode():
        records = task.predict(model, batch, encode(model, task, batch))
    require(records, "predict gives no record of a batch with texts")
    require(task.ranks == any("feats" in record for record in records), "ranks: whether its records have 'feats'")
    for record in records:
        require(any(key.endswith("_id") for key in record), f"the record {record} has no key that ends in _id")
        json.dumps({key: value for key, value in record.items() if key != "feats"})


def what_matches_scores_any_caption_with_any_image(build: Build) -> None:
    """A task that declares ``matches`` gives two logits of any pair."""
    model, task = build()
    require(not (task.ranks and task.matches), "a task ranks or matches, not both")
    if task.matches:
        batch = toy_batch(images=4, texts_per_image=2)
        encoded = model.encode(batch, [task.reads])  # type: ignore[arg-type]  # a Batch has further keys, one a kind
        index = torch.tensor([3, 0, 1, 2, 3, 0, 1, 2])
        require(task.reads == "captions", f"a task that matches reads captions, not {task.reads}")
        texts: Any = encoded.text[task.reads] if task.encodes else batch[task.reads]
        with torch.inference_mode():
            logits = task.score_pairs(model, encoded.memory, texts, index)  # type: ignore[operator]
        require(logits.shape == (8, 2), f"score_pairs gives {tuple(logits.shape)} of 8 pairs, but has to give (8, 2)")


def a_reply_is_one_to_each_text_and_says_what_is_predicted(build: Build) -> None:
    """What a person is told of one's own pictures is what is predicted of a data set."""
    model, task = build()
    if task.replies_to is None:
        return
    require(task.replies_to in ASKED, f"replies_to is '{task.replies_to}'; known: {', '.join(ASKED)}")
    model.eval()
    task.eval()
    batch = toy_batch(images=4, texts_per_image=2)
    with torch.inference_mode():
        encoded = encode(model, task, batch)
        replies, records = task.reply(model, batch, encoded, top=2), task.predict(model, batch, encoded)
    wanted = 4 if task.replies_to == "caption" else 8
    require(len(replies) == wanted, f"{len(replies)} replies, but there are {wanted} to give")
    for reply, record in zip(replies, records, strict=False):
        json.dumps(reply)
        require(reply and not [key for key in reply if key.endswith("_id")], f"the reply {reply} is empty or has an id")
        for key in reply.keys() & record.keys():
            require(reply[key] == record[key], f"the reply says {key} {reply[key]!r}, the record {record[key]!r}")


def a_batch_without_texts_costs_nothing_and_still_reaches_every_parameter(build: Build) -> None:
    """As where no image of a batch has an expression: plain DDP needs the gradients, and a NaN would stop the run."""
    model, task = build()
    model.freeze_unused(task.needs)
    batch = toy_batch(images=4) | {kind: toy_no_rows(kind) for kind in TEXT_KINDS}
    out = task(model, batch, encode(model, task, batch))
    require(out.loss.item() == 0, f"the loss of a batch without texts is {out.loss.item()}, but has to be 0")
    counted = [name for name, sums in out.metrics.items() if isinstance(sums, tuple) and any(map(_counts, sums))]
    require(not counted, f"metrics {', '.join(counted)} count what is not there")
    out.loss.backward()
    reached = idle(task) + idle(model.text_encoder)
    require(not reached, f"without texts no gradient reaches {', '.join(reached[:3])}")
    model.eval()
    task.eval()
    with torch.inference_mode():
        records = task.predict(model, batch, encode(model, task, batch))
    about_texts = [record for record in records if "image_id" not in record]
    require(not about_texts, f"predict gives records of texts that are not there: {about_texts[:1]}")


def _counts(value: Any) -> bool:
    return bool(value.numel() and value.any()) if isinstance(value, torch.Tensor) else bool(value)


CHECKS = (
    loss_is_a_scalar_that_reaches_the_model,
    records_are_json_lines_with_one_id_each,
    what_matches_scores_any_caption_with_any_image,
    a_reply_is_one_to_each_text_and_says_what_is_predicted,
    a_batch_without_texts_costs_nothing_and_still_reaches_every_parameter,
)
LEARNS_TO = 0.35  # of the loss that training begins with


def overfits_eight_samples(
    model: VisionLanguageModel, task: Task[Any], steps: int = 400, goal: float = LEARNS_TO
) -> None:
    """Training on one batch of eight images brings the loss to a small part, ``goal``, of where it starts."""
    batch = toy_batch(images=8)
    parameters = [*model.parameters(), *task.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        torch.manual_seed(1)  # the same masks and negatives at each step: nothing but the weights changes
        loss = task(model, batch, encode(model, task, batch)).loss
        losses.append(loss.item())
        if losses[-1] < goal * losses[0]:
            return
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        model.clamp_temperature()
    raise AssertionError(f"{steps} steps on eight samples bring the loss from {losses[0]:.3g} to {losses[-1]:.3g} only")
