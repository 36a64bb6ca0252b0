"""What is private in the libraries: touched in one file, and still there.

Seen with torch 2.10 to 2.14, lightning 2.6, transformers 5.6 to 5.24 and timm 1.0.22 to 1.0.31.
"""

import ast
import signal
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from fusionkit import internals
from fusionkit.training.callbacks import LastCheckpoint
from tests.training.fakes import FakeData, fake_module
from tests.training.test_module import fit, trainer

PACKAGE = Path(__file__).parents[1] / "fusionkit"
PUBLIC = {"_asdict", "_fields", "_replace", "_make"}  # documented parts of named tuples


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def _trees():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def _own_names(trees) -> set[str]:
    """The private names that the package itself defines, as functions, classes, fields, assignments or slots."""
    own = set()
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            own |= {node.attr} if node.value.id in ("self", "cls") else set()
    return own


def test_only_one_file_touches_what_is_private_in_a_library():
    trees = _trees()
    own = _own_names(trees)
    found = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and _is_private(node.attr)
                and node.attr not in own | {"_target_", "_exit"}
            ):  # os._exit is documented
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.attr}")
            elif isinstance(node, ast.ImportFrom) and any(_is_private(part) for part in (node.module or "").split(".")):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.module}")
    assert {row.partition(":")[0] for row in found} == {"internals.py"}, found
    assert len(found) >= 8  # or this test sees nothing


def test_tensors_are_moved_and_copied_at_once():
    ours, theirs = [torch.zeros(2), torch.ones(3)], [torch.full((2,), 4.0), torch.full((3,), 5.0)]
    internals.lerp_all(ours, theirs, 0.25)
    assert [tensor.tolist() for tensor in ours] == [[1.0, 1.0], [2.0, 2.0, 2.0]]
    internals.copy_all(ours, theirs)
    assert [tensor.tolist() for tensor in ours] == [[4.0, 4.0], [5.0, 5.0, 5.0]]


def test_shapes_are_computed_without_numbers():
    mode = internals.FAKE_TENSORS(allow_non_fake_inputs=True)
    with mode:
        assert (torch.zeros(2, 3) @ torch.zeros(3, 4)).shape == (2, 4)
        with pytest.raises(internals.NEEDS_NUMBERS):
            torch.zeros(3).sum().item()


def test_what_lightning_logs_reads_and_saves(tmp_path):
    seen = []

    class Watching(LastCheckpoint):
        def on_train_batch_end(self, trainer, *args) -> None:
            internals.save_now(self, trainer)
            is_saved = (Path(self.dirpath) / "last.ckpt").exists()
            seen.append((internals.uses_metrics(trainer), internals.training_batches(trainer) is not None, is_saved))

    options = {"max_steps": 4, "max_epochs": -1, "limit_val_batches": 0, "log_every_n_steps": 2}
    fit(tmp_path, fake_module(), callbacks=[Watching(str(tmp_path))], enable_checkpointing=True, **options)
    assert seen == [(False, True, True), (True, True, True)] * 2


def test_what_is_logged_stands_at_the_steps_made(tmp_path):
    run = fit(tmp_path, fake_module(), max_steps=4, max_epochs=-1, limit_val_batches=0)
    loop = run.fit_loop.epoch_loop
    assert loop._batches_that_stepped == 4  # Lightning's own name of it
    loop._batches_that_stepped = 7
    internals.log_at_step_made(run)
    assert loop._batches_that_stepped == 4


def test_between_the_batches_of_a_fit(tmp_path):
    """What is asked before each batch sees the one before whole; Lightning's own signals and waiting are left out."""
    seen, run = [], trainer(tmp_path, max_steps=3, max_epochs=-1, limit_val_batches=0, accumulate_grad_batches=2)
    handler = signal.getsignal(signal.SIGTERM)

    def check() -> None:
        seen.append((run.global_step, internals.is_between_steps(run), signal.getsignal(signal.SIGTERM) is handler))

    internals.at_each_batch(run, check)
    run.fit(fake_module(), datamodule=FakeData())
    steps = [step for step, *_ in seen]
    assert steps == sorted(steps)
    assert set(steps) == {0, 1, 2}
    assert all(is_ours for *_, is_ours in seen)
    assert [is_between for step, is_between, _ in seen if step == 0] == [True, False]
    assert {step for step, is_between, _ in seen if is_between} == {0, 1, 2}


@pytest.mark.parametrize(("ranks", "device", "kept"), [(4, "cpu", True), (2, "cpu", False), (4, "meta", False)])
def test_buckets_of_more_than_two_ranks_on_cpus_stay(ranks, device, kept):
    strategy = SimpleNamespace(_ddp_kwargs={}, root_device=torch.device(device))
    internals.keep_buckets(SimpleNamespace(strategy=strategy, world_size=ranks))
    assert strategy._ddp_kwargs == ({"find_unused_parameters": True} if kept else {})
    assert DDPStrategy(find_unused_parameters=True)._ddp_kwargs == {"find_unused_parameters": True}


def test_how_long_ranks_wait(tmp_path):
    strategy, alone = DDPStrategy(process_group_backend="gloo"), SimpleNamespace(strategy=SingleDeviceStrategy("cpu"))
    run = SimpleNamespace(strategy=strategy)
    assert internals.own_timeout(run) is None
    internals.set_timeout(run, 20)
    assert strategy._timeout == timedelta(seconds=20)
    assert internals.own_timeout(run) == 20.0
    internals.set_timeout(alone, 20)
    assert internals.own_timeout(alone) is None


def test_a_dry_run_saves_nothing(tmp_path):
    checkpoint = LastCheckpoint(str(tmp_path))
    fit(tmp_path, fake_module(), callbacks=[checkpoint], enable_checkpointing=True, fast_dev_run=1)
    assert not list(tmp_path.glob("*.ckpt"))


def test_the_run_of_a_wandb_logger(tmp_path):
    logger = WandbLogger(save_dir=tmp_path, name="one", offline=True)
    assert internals.wandb_options(logger)["name"] == "one"
    assert internals.wandb_run(logger) is None
    run = SimpleNamespace(name="another")
    internals.replace_run(logger, run)
    assert internals.wandb_run(logger) is run


def test_networks_of_the_other_libraries():
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    assert isinstance(internals.build_from_config(BertModel, BertConfig(**sizes)), BertModel)
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 0}
    tower = timm.create_model("vit_tiny_patch16_224", **sizes)
    patches = torch.randn(2, 4, 8)
    found = internals.with_positions(tower, patches)
    assert found.shape == (2, 5, 8)
    torch.testing.assert_close(found[:, 1:], patches + tower.pos_embed[:, 1:])


def test_chat_templates_write_one_date_within_and_todays_outside():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({})))

    def year() -> str:
        said = [{"role": "user", "content": "hello"}]
        return tokenizer.apply_chat_template(said, chat_template="{{ strftime_now('%Y') }}", tokenize=False)

    with internals.on_one_day():
        assert year() == "2024"
    assert year() == f"{date.today():%Y}"


def test_muon_orthogonalises_in_fp32_within_and_as_it_does_outside():
    torch.manual_seed(0)
    for shape in ((8, 5), (5, 8)):
        start, grad = torch.randn(shape), torch.randn(shape)

        def step(start=start, grad=grad) -> torch.Tensor:
            parameter = torch.nn.Parameter(start.clone())
            parameter.grad = grad.clone()
            torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0, nesterov=False, momentum=0.0).step()
            return start - parameter.detach()

        outside = step()
        with internals.newton_schulz_in_fp32():
            within = step()
        assert not torch.equal(within, outside)
        torch.testing.assert_close(within, outside, atol=0.05, rtol=0.05)  # what bf16 rounds
        assert torch.equal(step(), outside)
        assert torch.linalg.svdvals(within / max(1, shape[0] / shape[1]) ** 0.5).sub(1).abs().max() < 0.4


def test_operations_are_seen_with_their_results():
    class Names(internals.DISPATCH_MODE):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    seen = []
    with Names():
        x = torch.ones(2, requires_grad=True)
        (x * 2).sum().backward()
    assert "mul.Tensor" in seen
    assert len(seen) > seen.index("sum.default") + 1  # the backward pass, too
    assert internals.leaves_of({"a": [1, (2, None)], "b": 3}) in ([1, 2, None, 3], [1, 2, 3])


def test_strategies_of_multiprocessing_are_known():
    kinds = {
        name: internals.uses_multiprocessing(SimpleNamespace(strategy=DDPStrategy(start_method=name)))
        for name in ("popen", "spawn", "fork")
    }
    assert kinds == {"popen": False, "spawn": True, "fork": True}
    assert not internals.uses_multiprocessing(SimpleNamespace(strategy=SingleDeviceStrategy()))
