"""The teacher is a moving average that never trains."""

import pytest
import torch

from fusionkit.model.momentum import MomentumTeacher
from fusionkit.tasks.mlm import MLM
from tests.toys import toy_dims, toy_model


@pytest.fixture
def parts():
    model = toy_model()
    return model, {"mlm": MLM(toy_dims(model))}


def test_update_moves_model_and_heads_by_one_minus_momentum(parts):
    model, tasks = parts
    teacher = MomentumTeacher(model, tasks, momentum=0.9)
    with torch.no_grad():
        model.text_projection.weight.add_(1.0)
        tasks["mlm"].head.bias.add_(2.0)
    teacher.update(model, tasks)
    behind = model.text_projection.weight - teacher.model.text_projection.weight
    torch.testing.assert_close(behind, torch.full_like(behind, 0.9))
    torch.testing.assert_close(teacher.heads["mlm"].bias, torch.full_like(tasks["mlm"].head.bias, 0.2))


def test_it_needs_no_gradient_and_stays_in_evaluation(parts):
    teacher = MomentumTeacher(*parts).train()
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules())


def test_alpha_ramps_over_optimiser_steps(parts):
    teacher = MomentumTeacher(*parts, alpha=0.4, ramp_steps=10)
    assert [teacher.alpha(step) for step in (0, 5, 10, 99)] == pytest.approx([0.0, 0.2, 0.4, 0.4])
    assert MomentumTeacher(*parts, alpha=0.4).alpha(0) == 0.4
    first_epoch = MomentumTeacher(*parts, alpha=0.4, ramp_steps=0.1)
    assert [first_epoch.alpha(step, 1000) for step in (0, 50, 100, 500)] == pytest.approx([0.0, 0.2, 0.4, 0.4])


def test_buffers_are_copied_and_a_task_sees_its_own_head(parts):
    model, tasks = parts
    model.register_buffer("running_mean", torch.zeros(3))
    teacher = MomentumTeacher(model, tasks, momentum=0.9)
    model.running_mean.fill_(5.0)
    teacher.update(model, tasks)
    assert teacher.model.running_mean.tolist() == [5.0, 5.0, 5.0]
    seen = teacher.view("mlm", None, 0.3)
    assert seen.head is teacher.heads["mlm"]
    assert (seen.model, seen.alpha) == (teacher.model, 0.3)
    assert teacher.view("itc", None, 0.3).head is None


def test_a_ramp_of_one_step_is_a_step_and_not_a_fraction(parts):
    teacher = MomentumTeacher(*parts, alpha=0.4, ramp_steps=1)
    assert [teacher.alpha(step, 1000) for step in (0, 1)] == pytest.approx([0.0, 0.4])
