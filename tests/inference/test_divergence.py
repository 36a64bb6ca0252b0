"""How far a changed model's distributions lie from what they were: the formula, and which of them are compared."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence

from fusionkit.assembly.evaluation_options import EvaluationOptions
from fusionkit.inference.divergence import divergence, divergences
from fusionkit.losses import IGNORE
from fusionkit.tasks.base import Task
from fusionkit.types import TaskOutput
from tests.toys import toy_batch, toy_dims, toy_model, toy_task

NAMES = ["captioning", "vqa", "mlm", "itm", "itc", "grounding"]


def output(logits, targets=None):
    return TaskOutput(torch.zeros(()), logits, torch.zeros(logits.shape) if targets is None else targets)


def test_of_classes_it_is_the_formula():
    ours, theirs = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1))
    ours[:2] += theirs[:2] * 9
    kl, rows, same = divergence(output(ours), output(theirs), "softmax")
    torch.testing.assert_close(kl.float(), kl_divergence(Categorical(logits=ours), Categorical(logits=theirs)).sum())
    assert rows == 7
    assert same == (ours.argmax(dim=1) == theirs.argmax(dim=1)).sum()
    assert 0 < same < 7
    assert divergence(output(ours), output(ours), "softmax").tolist() == [0, 7, 7]


def test_of_answers_that_are_each_right_or_not_it_is_the_sum_over_them():
    ours, theirs = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    kl, rows, _ = divergence(output(ours), output(theirs), "sigmoid")
    torch.testing.assert_close(kl.float(), kl_divergence(Bernoulli(logits=ours), Bernoulli(logits=theirs)).sum())
    assert rows == 7


def test_rows_that_teach_nothing_do_not_count_and_what_is_impossible_says_nothing():
    ours, theirs = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    whole = divergence(output(ours[:2]), output(theirs[:2]), "softmax")
    targets = torch.tensor([0, 1, IGNORE, IGNORE])
    assert torch.equal(divergence(output(ours, targets), output(theirs, targets), "softmax"), whole)
    closed = [torch.cat([logits, torch.full((4, 1), -torch.inf)], dim=1) for logits in (ours, theirs)]
    assert torch.equal(divergence(output(closed[0], targets), output(closed[1], targets), "softmax"), whole)


@pytest.fixture
def world():
    torch.manual_seed(0)
    model = toy_model()
    tasks = {name: toy_task(name, toy_dims(model)) for name in NAMES}
    batches = [toy_batch(3, 2), toy_batch(2, 1)]
    data = SimpleNamespace(eval_loader=lambda source, role: batches)
    labels = {name: f"toys_{name}" for name in NAMES}
    split = SimpleNamespace(source="toys", role="test", tasks=tasks, labels=labels)
    return (model, tasks), split, data


def compare(before, after, split, data):
    options = EvaluationOptions(quiet=True)
    return divergences(before, after, [split], data, torch.device("cpu"), options)


def test_the_same_model_says_the_same(world):
    before, split, data = world
    found = compare(before, copy.deepcopy(before), split, data)
    assert set(found) == {"toys_captioning", "toys_vqa", "toys_mlm"}  # those whose rows are a text's own
    assert all((each.kl, each.agreement) == (0.0, 1.0) for each in found.values())
    rows = sum(len(batch["questions"]["ids"]) for batch in data.eval_loader("toys", "test"))
    assert found["toys_vqa"].rows == rows


def test_another_model_says_others_and_only_where_it_is_other(world):
    before, split, data = world
    after = copy.deepcopy(before)
    after[1]["vqa"].head[-1].bias.data[0] += 1.0
    found = compare(before, after, split, data)
    assert found["toys_vqa"].kl > 0.01
    assert found["toys_captioning"].kl == 0.0
    assert before[0].training  # as it was


def test_what_a_new_task_says_is_not_guessed():
    assert Task.distribution is None
