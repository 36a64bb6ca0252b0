"""The teacher is a moving average that never trains."""

import pytest
import torch
from torch import nn

from fusionkit.assembly.composition import training_config
from fusionkit.checkpoints.load import initialise
from fusionkit.cli.main import run
from fusionkit.commands.train import build
from fusionkit.model.momentum import MomentumTeacher
from fusionkit.tasks.mlm import MLM
from tests.toys import toy_batch, toy_dims, toy_model


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


def size(*modules) -> int:
    """Bytes of the parameters; what modules share counts once."""
    storages = [p.untyped_storage() for module in modules for p in module.parameters()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_what_is_frozen_is_the_students_and_the_numbers_are_those_of_a_full_copy(parts):
    model, tasks = parts
    copied = MomentumTeacher(model, tasks, momentum=0.9)
    model.image_encoder.requires_grad_(False)
    tasks["mlm"].head.bias.requires_grad_(False)
    teacher = MomentumTeacher(model, tasks, momentum=0.9)
    frozen = size(model.image_encoder) + tasks["mlm"].head.bias.nbytes
    student = (model, *tasks.values())
    assert size(*student, teacher) == size(*student, copied) - frozen
    with torch.no_grad():
        for parameter in (*model.parameters(), *tasks["mlm"].parameters()):
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    for each in (teacher, copied):
        each.update(model, tasks)
    batch = toy_batch()
    for name, tensor in copied.state_dict().items():
        assert torch.equal(tensor, teacher.state_dict()[name]), name
    taught, as_copied = teacher.encode(batch, ["captions"]), copied.encode(batch, ["captions"])
    assert torch.equal(taught.text_feats["captions"], as_copied.text_feats["captions"])
    assert not any(p.requires_grad for p in teacher.parameters())
    assert model.text_projection.weight.requires_grad


def test_where_all_is_frozen_there_is_nothing_to_average(parts):
    model, tasks = parts
    model.requires_grad_(False)
    teacher = MomentumTeacher(model, tasks, momentum=0.9)
    with torch.no_grad():
        tasks["mlm"].head.bias.add_(2.0)
    teacher.update(model, tasks)
    torch.testing.assert_close(teacher.heads["mlm"].bias, torch.full_like(tasks["mlm"].head.bias, 0.2))
    assert size(model, teacher.model) == size(model)


def test_a_checkpoint_whose_teacher_was_another_leaves_the_frozen_weights_alone(parts):
    """One of before, or of a run that trained what is frozen now: the teacher's values would be the student's."""
    model, tasks = parts
    model.image_encoder.requires_grad_(False)
    whole = nn.ModuleDict(
        {"model": model, "tasks": nn.ModuleDict(tasks), "teacher": MomentumTeacher(model, tasks, momentum=0.9)}
    )
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    state |= {name: tensor + 1 for name, tensor in state.items() if name.startswith("teacher.")}
    name = next(name for name, _ in model.named_parameters() if name.startswith("image_encoder"))
    weight = model.get_parameter(name).clone()
    checkpoint = {"state_dict": dict(state), "fusionkit": {"answers": None, "config": "{}"}}
    for load in (lambda: whole.load_state_dict(state), lambda: initialise(whole, checkpoint, "some.ckpt")):
        load()
        assert torch.equal(model.get_parameter(name), weight)
        trained = whole["teacher"].model.text_projection.weight
        assert torch.equal(trained, state["teacher.model.text_projection.weight"])
    assert torch.equal(state[f"teacher.model.{name}"], weight + 1)  # the caller's own is as it was


def test_what_a_stage_freezes_at_first_is_the_teachers_own(tmp_path):
    """Later stages train it: the teacher is built before any stage begins."""
    options = ["teacher=momentum", "stages=heads_first", "logger=csv", f"data.root={tmp_path}/shapes"]
    assert run(["data", "make", "shapes", f"root={tmp_path}/shapes", "scenes=12"]) == 0
    _, module = build(training_config("experiment=quickstart", *options, f"output_dir={tmp_path}/run"), None)
    waiting = {name for name, p in module.stages.parameters.items() if not p.requires_grad}
    assert any(name.startswith("model.image_encoder") for name in waiting)
    assert not [name for name in module.teacher._shared if name in waiting]
    own = {p.data_ptr() for p in module.teacher.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in module.stages.parameters.values())
