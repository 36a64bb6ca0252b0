"""``compile``: compiled parts give the numbers of those that are not, whatever the lengths, and keep their names."""

import copy
import shutil

import pytest
import torch

from fusionkit.encoders.recompute import blocks_of
from fusionkit.errors import ConfigError
from fusionkit.internals import allow_recompiling
from fusionkit.training.compiling import compile_parts, compiled_modules
from fusionkit.training.recompute import recompute_parts
from tests.toys import toy_batch, toy_dims, toy_model, toy_task

OPTIONS = {"parts": True, "backend": "aot_eager"}


def step(model, task, images, texts):
    """The loss, and the gradients by name, of a batch of so many images and texts."""
    torch.manual_seed(images)
    batch = toy_batch(images=images, texts_per_image=texts)
    model.zero_grad()
    encoded = model.encode(batch, [task.reads] if task.encodes else [])
    loss = task(model, batch, encoded).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def equal_steps(fusion, name, options, is_recomputed=False, batches=((4, 1), (5, 2))):
    """Trains and reads on batches of several sizes, compiled and not."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = toy_model(fusion)
    task = toy_task(name, toy_dims(model))
    plain, head = copy.deepcopy(model), copy.deepcopy(task)
    if is_recomputed:
        recompute_parts(True, model, {name: task})
    (told,) = compile_parts(options, model, "cpu")
    assert f"torch.compile ({options['backend']}): " in told
    assert list(model.state_dict()) == list(plain.state_dict())
    for sizes in batches:
        (loss, grads), (wanted, expected) = step(model, task, *sizes), step(plain, head, *sizes)
        torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
        assert grads.keys() == expected.keys()
        for key, grad in grads.items():
            torch.testing.assert_close(grad, expected[key], atol=1e-5, rtol=1e-4)
    model.eval(), plain.eval()
    batch = toy_batch(images=3)
    with torch.no_grad():
        one, two = (m.encode(batch, ["captions"]) for m in (model, plain))
    torch.testing.assert_close(one.text_feats["captions"], two.text_feats["captions"], atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1  # something was compiled
    copied = copy.deepcopy(model)  # as a momentum teacher's: of the weights, and not compiled
    assert not any(module._compiled_call_impl for module in copied.modules())


@pytest.mark.parametrize(
    ("fusion", "name", "is_recomputed"),
    [("prefix", "captioning", False), ("merged_attention", "vqa", True)],
)
def test_losses_and_gradients_are_those_without(fusion, name, is_recomputed):
    equal_steps(fusion, name, OPTIONS, is_recomputed)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor compiles C++ on a CPU")
def test_by_inductor_too():
    equal_steps("cross_attention", "vqa", {"parts": ["fusion"], "backend": "inductor"})


def test_blocks_are_compiled_or_what_recomputed_ones_consist_of_or_all_of_a_part():
    model = toy_model()
    fusion = model.get_submodule("fusion")
    assert compiled_modules(fusion) == blocks_of(fusion, outermost=True) != []
    children = [child for block in blocks_of(fusion) for child in block.children()]
    recompute_parts(["fusion"], model, {})
    assert set(compiled_modules(fusion)) <= set(children)
    assert compiled_modules(fusion)
    plain = torch.nn.Linear(2, 2)
    assert compiled_modules(plain) == [plain]


def test_only_the_named_parts_are_compiled():
    model = toy_model()
    for section in (None, False, {"parts": False}, {"parts": []}):
        assert compile_parts(section, model, "cpu") == []
    assert not any(module._compiled_call_impl for module in model.modules())
    compile_parts({"parts": ["fusion"], "backend": "eager"}, model, "cpu")
    compiled = {name.partition(".")[0] for name, module in model.named_modules() if module._compiled_call_impl}
    assert compiled == {"fusion"}
    limit = torch._dynamo.config.recompile_limit
    assert limit >= 64
    allow_recompiling(3)
    assert torch._dynamo.config.recompile_limit == limit
    assert not torch._dynamo.config.optimize_ddp


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("fusoin", "compile.parts is 'fusoin'; give true, false or parts: did you mean 'fusion'"),
        (3, "compile.parts is '3'; give true, false or parts: "),
        ({"parts": ["task"]}, "compile.parts is 'task'; give true, false or parts: "),
        ({"part": True}, "compile.part: there is no such key; did you mean 'parts'"),
        ({"parts": True, "dynamic": "yes"}, "compile.dynamic is 'yes', but has to be true, false or null"),
        (
            {"parts": True, "backend": "nope"},
            "compile.parts: torch.compile does not work here with backend nope and mode None",
        ),
    ],
)
def test_a_mistake_is_one_sentence(section, told):
    with pytest.raises(ConfigError) as error:
        compile_parts(section, toy_model(), "cpu")
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)
