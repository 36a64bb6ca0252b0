"""``teacher=checkpoint``: mistakes in the section, what a teacher can teach, and how it reads a run's batches."""

import pytest
import torch
from omegaconf import OmegaConf

from fusionkit.assembly.parts import CHECKPOINT_TEACHER, build_teacher, is_checkpoint_teacher
from fusionkit.contracts.toys import choice
from fusionkit.data.tokenizer import rules_of, word_tokenizer
from fusionkit.errors import ConfigError
from fusionkit.training.distillation.student import Distillation
from fusionkit.training.distillation.teacher import CheckpointTeacher, renormalised, why_not
from tests.toys import toy_dims, toy_model, toy_task


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"checkpoint": None},
            "teacher.checkpoint is missing; give the checkpoint that teaches as teacher.checkpoint=PATH",
        ),
        ({"weight": -1}, "teacher.weight is -1; give a number from 0 on"),
        ({"hard_weight": "a"}, "teacher.hard_weight is 'a'; give a number from 0 on"),
        ({"features_weight": float("inf")}, "teacher.features_weight is inf; give a number from 0 on"),
        ({"weight": True}, "teacher.weight is True; give a number from 0 on"),
        ({"temperature": 0}, "teacher.temperature is 0; give a number above 0"),
        ({"features": "image"}, "teacher.features is 'image'; give a list of parts: "),
        ({"features": None}, "teacher.features is None; give a list of parts: "),
        ({"tasks": None}, r"teacher.tasks is None; give all, or a list of tasks: teacher.tasks=\[NAME\]"),
        ({"features": ["image", "pears"]}, "teacher.features is 'pears'; give a list of parts: did you mean 'pair'"),
        ({"features_loss": "l1"}, "teacher.features_loss is 'l1'; known: cosine, mse"),
        ({"tasks": "vqa"}, r"teacher.tasks is 'vqa'; give all, or a list of tasks: teacher.tasks=\[vqa\]"),
    ],
)
def test_a_mistake_is_one_sentence(options, told):
    with pytest.raises(ConfigError, match=f"^{told}"):
        CheckpointTeacher(**{"checkpoint": "t.ckpt"} | options)


def test_the_file_of_the_group_has_the_options_of_the_class():
    section = choice("teacher", "checkpoint")
    assert is_checkpoint_teacher(section)
    options = {key: value for key, value in section.items() if key != "_target_"}
    made, plain = CheckpointTeacher(**options | {"checkpoint": "t.ckpt"}), CheckpointTeacher("t.ckpt")
    assert options.keys() == vars(plain).keys()
    for name, value in vars(plain).items():
        found = getattr(made, name)
        assert (list(found), list(value)) == ([], []) if value == () else found == value, name
    assert CheckpointTeacher("t.ckpt", weight=0, hard_weight=0, features=["image", "text", "pair"], tasks=[])
    assert section._target_ == CHECKPOINT_TEACHER == f"{CheckpointTeacher.__module__}.{CheckpointTeacher.__qualname__}"


def test_nothing_but_a_training_reads_the_checkpoint_that_teaches():
    config = OmegaConf.create({"teacher": {"_target_": CHECKPOINT_TEACHER, "checkpoint": "nowhere.ckpt"}})
    assert build_teacher(config, None, {}) is None
    assert build_teacher(OmegaConf.create({"teacher": None}), None, {}) is None
    momentum = OmegaConf.create({"teacher": choice("teacher", "momentum")})
    assert not is_checkpoint_teacher(momentum.teacher)
    assert not isinstance(build_teacher(momentum, toy_model(), {}), Distillation | type(None))


def test_one_trusted_package_needs_no_list(monkeypatch):
    asked = []

    def read(path, trust):
        asked.append((path, trust))
        raise ConfigError("enough")

    monkeypatch.setattr("fusionkit.training.distillation.teacher.from_pretrained", read)
    with pytest.raises(ConfigError, match="enough"):
        CheckpointTeacher("t.ckpt", trust="mine").build(None)
    assert asked == [("t.ckpt", "mine")]


def test_what_a_task_cannot_be_taught_is_said():
    model = toy_model()
    dims = toy_dims(model)
    make = lambda name, **changes: toy_task(name, dims.__class__(**vars(dims) | changes))  # noqa: E731
    vqa, mlm = make("vqa"), make("mlm")
    assert why_not(vqa, make("vqa"), same_prompts=False) is None
    assert why_not(vqa, None, True) == "it has no such task"
    assert why_not(vqa, make("vqa_generative"), True) == "its is a GenerativeVQA"
    assert why_not(vqa, make("vqa", answers=("no", "yes", "two", "red")), True) == "its answers are others"
    assert why_not(mlm, make("mlm", vocab_size=61), True) == "its words are others"
    assert why_not(make("mrm"), make("mrm"), True) == "it asks nothing that another model can be asked"
    assert why_not(make("captioning"), make("captioning"), True) is None
    assert why_not(make("captioning"), make("captioning"), False) == "its language model is of another kind"


def test_tokenizers_are_the_same_by_what_they_do():
    one, two = word_tokenizer(["a red dog"]), word_tokenizer(["a red dog"])
    two(["a dog"], padding=True, truncation=True, max_length=4)  # leaves a mark in it
    assert rules_of(one) == rules_of(two)
    assert rules_of(one) != rules_of(word_tokenizer(["a red cat"]))
    one.companion = word_tokenizer(["a red cat"])
    assert rules_of(one) != rules_of(two)


def test_a_teacher_sees_pixels_in_its_own_normalisation():
    pixels = torch.rand(2, 3, 2, 2)
    scale, shift = torch.tensor([2.0, 1.0, 1.0]).view(3, 1, 1), torch.tensor([0.0, 0.5, 0.0]).view(3, 1, 1)
    seen = renormalised({"source": "a", "pixel_values": pixels}, scale, shift)
    assert torch.equal(seen["pixel_values"], pixels * scale + shift)
    assert seen["source"] == "a"
    mask = torch.ones(2, 2, 2, dtype=torch.bool)
    mask[0, :, 1] = False
    padded = renormalised({"pixel_values": pixels, "pixel_mask": mask}, scale, shift)["pixel_values"]
    assert not padded[0, :, :, 1].any()
    assert torch.equal(padded[1], (pixels * scale + shift)[1])
    for batch, factor, added in (({"regions": 1}, scale, shift), ({"pixel_values": pixels}, scale * 0 + 1, shift * 0)):
        assert renormalised(batch, factor, added) is batch
