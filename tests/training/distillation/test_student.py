"""Distillation from another checkpoint: what is asked of a teacher, what it adds to the losses, and what it leaves alone."""

import copy
import math
from functools import partial

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader

from fusionkit.balance import Fixed
from fusionkit.errors import ConfigError
from fusionkit.losses import distillation_loss, feature_loss
from fusionkit.training.callbacks import LastCheckpoint, StopAfter
from fusionkit.training.distillation.student import Distillation, FrozenTeacher, Weights, pooled_states
from fusionkit.training.module import TrainingModule
from fusionkit.training.optim import build_optimizer
from fusionkit.training.stages import Stage
from fusionkit.types import MARKS, NUMBERS
from tests.toys import choices, scatter_weights, toy_batch, toy_dims, toy_model, toy_task
from tests.training.fakes import FakeData
from tests.training.test_draws import Batches
from tests.training.test_module import Interrupt, fit

FUSIONS = {"grounding_gradcam": "cross_attention", "vqa_decoder": "cross_attention"}
SILENT = ("captioning_scst", "likelihood", "mrm", "ranking")  # nothing of theirs is asked of a teacher
TAUGHT = [name for name in choices("task") if name not in SILENT]


def network(name, seed=0, fusion=None, **options):
    """A model and a task with the weights of a seed."""
    torch.manual_seed(seed)
    model = toy_model(fusion or FUSIONS.get(name, "merged_attention"), **options)
    task = toy_task(name, toy_dims(model))
    return scatter_weights(model, seed).eval(), scatter_weights(task, seed + 500).eval()


def distilled(teacher, name="x", widths=(), **weights) -> Distillation:
    model, task = teacher
    frozen = FrozenTeacher(model, {name: task}, {"checkpoint": "t.ckpt", "hash": "1"}, lambda batch: batch)
    return Distillation(frozen, [name], dict(widths), Weights(**weights))


def losses(student, distillation, batch):
    """The plain output of a student's task, and the outputs and features' losses with what the teacher adds."""
    model, task = student
    torch.manual_seed(5)
    encoded = model.encode(batch, [task.reads] if task.encodes else [])
    plain = task(model, batch, encoded)
    return plain, *distillation(batch, model, encoded, {"x": plain})


def soft_loss(output) -> float:
    """What is logged of a batch."""
    total, rows = output.metrics["soft_loss"]
    return float(total / rows)


def toy():
    torch.manual_seed(3)
    return toy_batch(images=4, texts_per_image=2)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_student_that_is_its_teacher_learns_nothing_more_and_another_does(name):
    student, batch = network(name), toy()
    plain, found, features = losses(student, distilled(network(name)), batch)
    assert features == {}
    assert soft_loss(found["x"]) == pytest.approx(0, abs=1e-5)
    parameters = [p for part in student for p in part.parameters() if p.requires_grad]
    extra = torch.autograd.grad(found["x"].loss - plain.loss, parameters, allow_unused=True)
    assert max(float(g.abs().max()) for g in extra if g is not None) < 1e-5
    plain, found, _ = losses(student, distilled(network(name, seed=9)), batch)
    soft = soft_loss(found["x"])
    assert soft > 1e-4
    assert found["x"].loss.item() == pytest.approx(plain.loss.item() + soft, rel=1e-5)


@pytest.mark.parametrize("name", SILENT)
def test_other_tasks_have_no_columns_to_be_learnt(name):
    model = toy_model("merged_attention", regions=name == "mrm")
    assert toy_task(name, toy_dims(model)).columns() is None


@pytest.mark.parametrize(("name", "fusion"), [("itm", "late"), ("vqa", "co_attention"), ("itc", "cross_attention")])
def test_a_teacher_may_have_another_fusion_and_another_space(name, fusion):
    _, found, _ = losses(network(name), distilled(network(name, 9, fusion, embed_size=8)), toy())
    assert soft_loss(found["x"]) > 0


def test_the_weights_and_the_temperature_are_those_of_the_formula():
    student, teacher, batch = network("vqa"), network("vqa", seed=9), toy()
    plain, found, _ = losses(student, distilled(teacher, soft=0.5, hard=0.25, temperature=3.0), batch)
    logits = [task.pair_scores(model, batch, model.encode(batch, ["questions"])) for model, task in (student, teacher)]
    soft = distillation_loss(*logits, 3.0, MARKS)
    assert found["x"].loss.item() == pytest.approx(0.25 * plain.loss.item() + 0.5 * soft.item(), rel=1e-5)


def test_a_teacher_is_in_the_precision_of_the_run_and_rests():
    model, task = network("vqa")
    distillation = distilled((model.train(), task.train()))
    assert not any(part.training for part in distillation.teacher.module["model"].modules())
    distillation.begin(torch.device("cpu"), lambda module: module.to(torch.bfloat16).train())
    assert {p.dtype for p in distillation.teacher.module.parameters()} == {torch.bfloat16}
    assert not any(part.training for part in distillation.teacher.module["model"].modules())


def test_a_teacher_draws_nothing():
    student, teacher, batch = network("mlm"), distilled(network("mlm", seed=9)), toy()
    encoded = student[0].encode(batch, [])
    output = student[1](student[0], batch, encoded)
    state = torch.get_rng_state()
    teacher(batch, student[0], encoded, {"x": output})
    assert torch.equal(torch.get_rng_state(), state)


def test_both_directions_of_contrast_count_half_and_a_queue_not_at_all():
    student, teacher, batch = network("itc"), network("itc", seed=9, embed_size=8), toy()
    _, found, _ = losses(student, distilled(teacher, temperature=1.0), batch)
    cosines = []
    for model, _ in (student, teacher):
        encoded = model.encode(batch, ["captions"])
        cosines.append(encoded.image_feats @ encoded.text_feats["captions"].T / model.temperature)
    wanted = distillation_loss(*cosines, 1.0) / 2 + distillation_loss(*(each.T for each in cosines), 1.0) / 2
    assert soft_loss(found["x"]) == pytest.approx(wanted.item(), rel=1e-4)
    queued = type(student[1])(toy_dims(student[0]), queue_size=6)
    output, *_ = losses((student[0], queued), distilled(teacher), batch)
    assert [asked.logits.shape[1] for asked in output.asked] == [8, 4]
    assert output.logits.shape[1] == 14


def test_logits_of_other_shapes_are_one_sentence():
    student, other = network("vqa"), network("vqa", seed=9)
    other[1].head[-1] = torch.nn.Linear(other[1].head[-1].in_features, 7)
    told = r"t.ckpt: its task.x gives \(8, 7\) numbers for a batch, the run's \(8, 4\); leave x out of teacher.tasks"
    with pytest.raises(ConfigError, match=told):
        losses(student, distilled(other), toy())


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_features_are_learnt_through_a_map_where_widths_differ(kind):
    (model, _), other, batch = network("vqa"), network("vqa", seed=9), toy()
    widths = {"image": (32, 32), "text": (32, 32), "pair": (32, 32)}
    student = distilled(other, widths=widths, features=0.5, kind=kind)
    assert not list(student.parameters())  # equal widths need none
    encoded, seen = (each.encode(batch, ["questions", "captions"]) for each in (model, other[0]))
    _, found = student(batch, model, encoded, {})
    for part in widths:
        own, taught = (torch.cat(pooled_states(part, batch, *of)) for of in ((model, encoded), (other[0], seen)))
        assert len(own) == (4 if part == "image" else 16)
        expected = 0.5 * feature_loss(own, taught, kind).item()
        assert found[f"train/toy/{part}_feature_loss"].item() == pytest.approx(expected, rel=1e-5)
    mapped = distilled(other, widths={"image": (32, 32), "pair": (16, 32)})
    assert [name for name, _ in mapped.named_parameters()] == ["maps.pair.weight", "maps.pair.bias"]
    assert mapped.maps["pair"].weight.shape == (32, 16)
    assert distilled(other)(batch, model, encoded, {}) == ({}, {})


def test_the_formula_of_hinton_by_hand():
    logits, taught = torch.tensor([[0.0, 0.0]], requires_grad=True), torch.tensor([[2 * math.log(3), 0.0]])
    loss = distillation_loss(logits, taught, 2.0)  # softened to 3/4 and 1/4, and to 1/2 each
    wanted = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.tolist() == [pytest.approx([2 * (0.5 - 0.75), 2 * (0.5 - 0.25)])]  # T (q - p)
    marks = distillation_loss(logits, taught, 2.0, MARKS)
    assert marks.item() == pytest.approx(wanted, rel=1e-6)  # the second is 1/2 in both
    one, two = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.5, 2.0], [0.0, 1.0]])
    assert distillation_loss(one, two, 9.0, NUMBERS) == 0.625
    out = distillation_loss(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -math.inf]]), 1.0)
    assert out.item() == pytest.approx(math.log(1.5))
    assert distillation_loss(torch.zeros(0, 3), torch.zeros(0, 3), 2.0) == 0


def test_features_by_hand():
    one, two = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [6.0, 8.0]])
    assert feature_loss(one, two, "cosine").item() == pytest.approx(0.5)
    assert feature_loss(one, two, "mse").item() == pytest.approx(((1 + 4) / 2 + (9 + 16) / 2) / 2)


class Data(FakeData):
    def train_dataloader(self):
        return CombinedLoader({"toy": Batches("toy", self.batches, self)}, "min_size")


def training(teacher, content="1", weights=None, stages=None) -> TrainingModule:
    """A student that is taught by ``teacher``, also its images and, through a map, its pairs; None: by the data alone."""
    model, task = network("vqa")
    distillation = None
    if teacher is not None:
        torch.manual_seed(4)
        origin = {"checkpoint": "t.ckpt", "hash": content}
        frozen = FrozenTeacher(teacher[0], {"vqa": teacher[1]}, origin, lambda batch: batch)
        widths = {"image": (32, 32), "pair": (32, 64)}  # co_attention pools twice the width
        distillation = Distillation(frozen, ["vqa"], widths, weights or Weights())
    torch.manual_seed(0)
    optimizer, objectives = partial(build_optimizer, lr=1e-3), {"toy": {"vqa": 1.0}}
    options = {"distillation": distillation, "stages": stages}
    return TrainingModule(model, {"vqa": task}, objectives, Fixed(), optimizer, None, **options)


def test_a_teacher_stays_as_it_is_and_a_cut_run_goes_on_bit_for_bit(tmp_path):
    teacher = network("vqa", 9, "co_attention")
    teacher[0].image_encoder.requires_grad_(True).train()
    whole, other, resumed = (training(teacher) for _ in range(3))
    before = [copy.deepcopy(part.state_dict()) for part in teacher]
    options = {"max_epochs": 3, "limit_val_batches": 0, "enable_checkpointing": True, "accumulate_grad_batches": 2}
    data = partial(Data, ("toy",), batches=4)
    fit(tmp_path, whole, data(), callbacks=[LastCheckpoint(str(tmp_path / "whole")), StopAfter()], **options)
    half = tmp_path / "half"
    with pytest.raises(KeyError, match="interrupted"):
        fit(tmp_path, other, data(), callbacks=[LastCheckpoint(str(half)), StopAfter(), Interrupt(3)], **options)
    callbacks = [LastCheckpoint(str(half)), StopAfter()]
    assert fit(tmp_path, resumed, data(), half / "last.ckpt", callbacks=callbacks, **options).global_step == 6
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert any(not torch.equal(value, other.state_dict()[key]) for key, value in whole.state_dict().items())
    for part, state in zip(teacher, before, strict=True):
        assert not any(module.training for module in part.modules())
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())
    kept = torch.load(half / "last.ckpt", weights_only=True)
    assert kept["progress"]["taught_by"] == {"checkpoint": "t.ckpt", "hash": "1"}
    added = kept["state_dict"].keys() - training(None).state_dict().keys()
    assert added == {"distillation.maps.pair.weight", "distillation.maps.pair.bias"}
    told = r"t.ckpt is not what the run was taught by, which was t.ckpt of content 1, not 2; give that one, or start a new run"
    with pytest.raises(ConfigError, match=told):
        fit(tmp_path, training(teacher, "2"), data(), half / "last.ckpt", callbacks=[StopAfter()], **options)


def test_maps_of_features_train_in_every_stage():
    module = training(network("vqa", 9, "co_attention"), stages={"heads": Stage(None, [r"^tasks\."])})
    trained = {name for name in module.stages.training if not name.startswith("tasks.")}
    assert trained == {"distillation.maps.pair.weight", "distillation.maps.pair.bias"}


def test_what_is_logged_is_what_is_minimised(tmp_path):
    module = training(network("vqa", 9, "co_attention"), weights=Weights(soft=0.5, hard=2.0, features=0.1))
    once = {"max_steps": 1, "limit_val_batches": 0}
    told = fit(tmp_path, module, Data(("toy",), batches=4), **once).callback_metrics
    logged = {name: float(value) for name, value in told.items()}
    features = logged["train/toy/image_feature_loss"] + logged["train/toy/pair_feature_loss"]
    assert features > 0
    assert logged["train/loss"] == pytest.approx(logged["train/toy/vqa_loss"] + features, rel=1e-5)
    hard = float(
        fit(tmp_path, training(None), Data(("toy",), batches=4), **once).callback_metrics["train/toy/vqa_loss"]
    )
    assert logged["train/toy/vqa_loss"] == pytest.approx(2 * hard + 0.5 * logged["train/toy/vqa_soft_loss"], rel=1e-5)
    assert "soft_loss" not in module.outputs("toy", toy())["vqa"].metrics  # the gain by the image knows no teacher


def test_a_student_of_few_labels_comes_nearer_to_its_teacher_than_without():
    """Eight labelled questions, which the teacher answers in its own way, and eight new ones to be asked both."""
    (teacher, judge), batch = network("vqa", 9, "co_attention"), toy()
    torch.manual_seed(8)
    asked = toy_batch(images=4, texts_per_image=2)
    distillation, apart = distilled((teacher, judge), soft=4.0, hard=0.0), {}
    for is_taught in (False, True):
        torch.manual_seed(0)
        model, task = network("vqa", seed=2)
        optimizer = torch.optim.AdamW([*model.parameters(), *task.parameters()], lr=2e-3)
        for _ in range(30):
            encoded = model.encode(batch, ["questions"])
            outputs = {"x": task(model, batch, encoded)}
            found = distillation(batch, model, encoded, outputs)[0] if is_taught else outputs
            optimizer.zero_grad()
            found["x"].loss.backward()
            optimizer.step()
        logits = [t.pair_scores(m, asked, m.encode(asked, ["questions"])) for m, t in ((model, task), (teacher, judge))]
        apart[is_taught] = distillation_loss(*logits, 1.0, MARKS).item()
    assert apart[True] < 0.5 * apart[False]
