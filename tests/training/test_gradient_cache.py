"""``gradient_cache``: gradients of the whole batch in chunks, dropout, teacher, queue and negatives included; what is refused."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from torch import nn

from fusionkit.cli.main import run
from fusionkit.errors import ConfigError
from fusionkit.model import chunks
from fusionkit.model.chunks import Chunk, in_chunks
from fusionkit.model.momentum import MomentumTeacher
from fusionkit.model.nested import tensors_of, with_tensors
from fusionkit.negatives import HardNegatives, Queue
from fusionkit.tasks.itc import ITC
from fusionkit.tasks.itm import ITM
from fusionkit.training.gradient_cache import (
    check_gradient_cache,
    parts_read,
    require_whole_weights,
    tell_of_micro_batches,
)
from fusionkit.training.memory.live import LiveMemory
from fusionkit.training.recompute import recompute_parts
from fusionkit.types import Tokens
from tests.commands.test_train import SMALL
from tests.distributed.global_batch import cast
from tests.toys import WIDTH, choices, toy_batch, toy_dims, toy_model, toy_task

FIVE = ("itc", "itm", "mlm", "vqa", "grounding")
NO_DROPOUT = [
    "text_encoder.config.hidden_dropout_prob=0",
    "text_encoder.config.attention_probs_dropout_prob=0",
    "fusion.dropout=0",
    "image_encoder=patches",
]
FUSIONS = ("cross_attention", "merged_attention", "co_attention", "gated_cross_attention", "bottleneck")


def kept(function: Any, given: Any, parts: list[Chunk], _: Any) -> Any:
    """As ``chunks._call``, by the same chunks in the same order, with the graph of all kept: nothing is computed again."""
    found = []
    for chunk in parts:
        picked = [
            with_tensors(part, iter([x[rows] for x in tensors_of(part)]))
            for part, rows in zip(given, chunk.picks, strict=True)
        ]
        found.append(function(*picked, *chunk.more))
    back = torch.cat([chunk.rows for chunk in parts]).argsort()
    joined = [torch.cat(rows)[back] for rows in zip(*map(tensors_of, found), strict=True)]
    return with_tensors(found[0], iter(joined))


def world(
    fusion: str, tasks: Any, dtype: torch.dtype = torch.float64, dropout: float = 0.0
) -> tuple[Any, nn.ModuleDict]:
    """A toy model that trains, and those of the tasks, names or ways to build them by name, that its fusion can feed."""
    torch.manual_seed(0)
    model = toy_model(fusion)
    builds = tasks if isinstance(tasks, dict) else {name: partial(toy_task, name) for name in tasks}
    made = {name: build(toy_dims(model)) for name, build in builds.items()}
    made = {name: task for name, task in made.items() if task.needs - {"feats"} <= model.fusion.provides}
    assert {"itc", "itm"} & made.keys()
    whole = nn.ModuleDict(made).to(dtype)
    model.to(dtype).freeze_unused(frozenset().union(*(task.needs for task in made.values())))
    drops = [part for part in (*model.modules(), *whole.modules()) if isinstance(part, nn.Dropout)]
    assert drops
    for part in drops:
        part.p = dropout
    return model.train(), whole.train()


def gradient(
    model: Any, tasks: Any, batch: Any, rows: int | None, teacher: Any = None, autocast: bool = False
) -> tuple[list[float], torch.Tensor]:
    """The losses of all tasks on a batch, and the gradient of their sum."""
    torch.manual_seed(3)
    for part in (model, tasks):
        part.zero_grad()
    kinds = sorted({task.reads for task in tasks.values() if task.encodes})
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), in_chunks(rows, parts_read(tasks.values())):
        encoded = model.encode(batch, kinds)
        taught = teacher.encode(batch, kinds) if teacher else None
        views = {name: teacher.view(name, taught, 0.4) if teacher else None for name in tasks}
        losses = [task(model, batch, encoded, views[name]).loss for name, task in tasks.items()]
    before = torch.get_rng_state()
    sum(losses).backward()
    assert torch.equal(torch.get_rng_state(), before)  # what is drawn again is nobody else's draw
    found = [p.grad.flatten() for part in (model, tasks) for p in part.parameters() if p.grad is not None]
    assert len(found) > 10
    return [loss.item() for loss in losses], torch.cat(found)


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def batch_of(images: int = 5, texts: int = 2, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(1)
    return cast(toy_batch(images, texts), dtype)


@pytest.mark.parametrize("fusion", [name for name in choices("fusion") if not name.endswith("instructed")])
def test_all_objectives_together_have_the_gradient_of_the_whole_batch(fusion):
    model, tasks = world(fusion, FIVE)
    expected = gradient(model, tasks, batch_of(), None)
    for rows in (1, 3, 64):
        losses, found = gradient(model, tasks, batch_of(), rows)
        assert losses == pytest.approx(expected[0], rel=1e-8)
        # language models of transformers norm their states in fp32 whatever their weights are
        assert apart(found, expected[1]) < (1e-7 if hasattr(model.fusion, "join") else 1e-9), rows


def test_what_no_task_reads_of_pairs_is_not_kept():
    model, tasks = world("cross_attention", FIVE)
    assert parts_read([tasks["itc"]]) == frozenset()
    assert parts_read([tasks["itm"]]) == {"pooled"}
    assert parts_read(tasks.values()) == {"pooled", "text"}
    batch = batch_of()
    with in_chunks(2, frozenset({"text"})), torch.no_grad():
        encoded = model.encode(batch, ["captions"])
        fused = model.fuse(encoded.memory, encoded.text["captions"], batch["captions"]["image_index"])
    assert fused.pooled is None
    assert fused.text is not None


@pytest.mark.parametrize("tasks", [("itc",), FIVE])
def test_in_fp32_it_is_equal_to_five_digits(tasks):
    model, tasks = world("cross_attention", tasks, torch.float32)
    batch = batch_of(dtype=torch.float32)
    expected = gradient(model, tasks, batch, None)[1]
    assert 0 < apart(gradient(model, tasks, batch, 2)[1], expected) < 1e-5


@pytest.mark.parametrize("fusion", FUSIONS)
def test_dropout_is_drawn_again(fusion, monkeypatch):
    """Against the same chunks with the graphs of all of them kept; without dropout that is the whole batch."""
    model, tasks = world(fusion, FIVE, dropout=0.3)
    losses, found = gradient(model, tasks, batch_of(), 2)
    _, other = gradient(model, tasks, batch_of(), 1)
    monkeypatch.setattr(chunks, "_call", kept)
    expected = gradient(model, tasks, batch_of(), 2)
    assert losses == pytest.approx(expected[0], rel=1e-12)
    assert apart(found, expected[1]) < 1e-9
    assert apart(other, expected[1]) > 1e-3  # of other draws


def test_blocks_that_are_computed_anew_draw_again_too(monkeypatch):
    """activation_checkpointing within a chunk: what is computed in the backward pass is computed in its backward pass again."""
    model, tasks = world("cross_attention", FIVE, dropout=0.3)
    recompute_parts(True, model, tasks)
    calls = []
    inner = next(part for part in model.fusion.get_submodule("layers")[0].modules() if isinstance(part, nn.Linear))
    inner.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    found = gradient(model, tasks, batch_of(), 4)[1]
    assert 0 < 2 * calls.count(False) == calls.count(True)
    monkeypatch.setattr(chunks, "_call", kept)
    assert apart(found, gradient(model, tasks, batch_of(), 4)[1]) < 1e-9


def test_a_step_of_several_sources_has_the_gradient_of_all_batches():
    model, tasks = world("cross_attention", ("itc", "itm", "mlm"))
    sources = (batch_of(), batch_of(3, 1))
    whole = [gradient(model, tasks, batch, None)[1] for batch in sources]
    model.zero_grad()
    tasks.zero_grad()
    losses = []
    for batch in sources:
        torch.manual_seed(3)
        with in_chunks(2, parts_read(tasks.values())):
            encoded = model.encode(batch, ["captions"])
        with in_chunks(2, parts_read(tasks.values())):
            losses += [task(model, batch, encoded).loss for task in tasks.values()]
    torch.stack(losses).sum().backward()
    found = [p.grad.flatten() for part in (model, tasks) for p in part.parameters() if p.grad is not None]
    assert apart(torch.cat(found), whole[0] + whole[1]) < 1e-9


def test_a_teacher_and_queues_see_the_whole_batch():
    def pool() -> Queue:
        return Queue(7, (17, WIDTH), (9, WIDTH), 16)

    builds = {
        "itc": lambda dims: ITC(dims, queue_size=9),
        "itm": lambda dims: ITM(dims, HardNegatives(pool(), k=2)),
        "mlm": partial(toy_task, "mlm"),
        "taught": lambda dims: ITM(dims, HardNegatives(by_teacher=True)),
    }
    found = []
    for rows in (None, 2):
        model, tasks = world("cross_attention", builds)
        teacher = MomentumTeacher(model, tasks).double()
        torch.manual_seed(5)
        for parameter in teacher.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        steps = [
            gradient(model, tasks, batch_of() | {"image_keys": torch.arange(5) + 10 * step}, rows, teacher)
            for step in (1, 2)
        ]
        queues = torch.cat([buffer.double().flatten() for buffer in tasks.buffers()])
        found.append((steps, queues))
    (whole, queues), (parts, same) = found
    for (losses, ours), (expected, theirs) in zip(parts, whole, strict=True):
        assert losses == pytest.approx(expected, rel=1e-12)
        assert apart(ours, theirs) < 1e-9
    assert torch.allclose(same, queues, atol=1e-12)
    assert apart(whole[0][1], whole[1][1]) > 1e-3  # queues are not empty at the second step


def test_in_bf16_what_is_computed_again_is_computed_in_bf16(monkeypatch):
    model, tasks = world("cross_attention", FIVE[:4], torch.float32)
    batch = batch_of(dtype=torch.float32)
    losses, found = gradient(model, tasks, batch, 2, autocast=True)
    plain = gradient(model, tasks, batch, 2)[1]
    monkeypatch.setattr(chunks, "_call", kept)
    expected = gradient(model, tasks, batch, 2, autocast=True)
    assert losses == pytest.approx(expected[0], rel=1e-3)
    assert apart(found, expected[1]) < 0.03  # kernels without a graph round otherwise; a box's L1 would flip its sign
    assert apart(found, plain) > 1e-4


def test_a_weight_that_is_read_in_chunks_and_beside_them_has_both_gradients():
    """A cast that autocast had kept of a chunk, which has no graph, would be given to the other reader too."""
    layer, rows = nn.Linear(3, 3), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16), in_chunks(1):
        chunks.by_rows(layer, (rows,), [layer])
        layer(rows).sum().backward()
    assert layer.weight.grad is not None


def test_what_a_later_call_ignores_has_no_gradient():
    first, second, rows = nn.Linear(3, 3), nn.Linear(3, 3), torch.randn(2, 3)
    with in_chunks(1):
        ignored = chunks.by_rows(first, (rows,), [first])
        chunks.by_rows(lambda own, _: second(own), (rows, ignored), [second]).sum().backward()
    assert first.weight.grad is None
    assert second.weight.grad is not None


def test_what_nothing_trains_is_not_computed_again(monkeypatch):
    model, tasks = world("cross_attention", FIVE)
    model.image_encoder.requires_grad_(False)
    calls = []
    model.image_encoder.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    expected = gradient(model, tasks, batch_of(), None)[1]
    calls.clear()
    assert apart(gradient(model, tasks, batch_of(), 2)[1], expected) < 1e-9
    assert calls == [False] * 3


def test_a_chunk_is_alive_at_a_time():
    """Bytes alive: of eight times the rows hardly more, where plain steps take eight times as much."""
    model, tasks = world("cross_attention", ("itc", "itm", "mlm", "vqa"), torch.float32)
    peaks = {}
    for images, rows in ((4, None), (32, None), (32, 4)):
        batch = batch_of(images, 1, torch.float32)
        with LiveMemory() as memory:
            gradient(model, tasks, batch, rows)
        peaks[images, rows] = memory.peak
    assert peaks[32, 4] < peaks[32, None] / 2


class Norms(nn.Module):
    """An encoder with a batch norm, of one token an image."""

    hidden_size, reads = WIDTH, "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, WIDTH), nn.BatchNorm1d(WIDTH)

    def forward(self, images: torch.Tensor) -> Tokens:
        states = self.norm(self.layer(images.mean(dim=(2, 3))))
        return Tokens(states[:, None], None, states)


def test_batch_norms_count_a_chunk_once_and_are_told():
    model, tasks = world("cross_attention", FIVE)
    model.image_encoder = Norms().double()
    gradient(model, tasks, batch_of(4), 2)
    assert int(model.image_encoder.norm.num_batches_tracked) == 2
    (told,) = check_gradient_cache(2, model, tasks, FIVE, False)
    frozen = model.image_encoder.norm.requires_grad_(False)
    assert check_gradient_cache(2, model, tasks, FIVE, False) == []
    frozen.affine = False  # one without weights has nothing to freeze
    assert check_gradient_cache(2, model, tasks, FIVE, False) == [told]
    assert told.startswith(
        "gradient_cache: image_encoder has batch norms, which take the statistics of 2 rows at a time"
    )


def test_what_is_not_exact_is_refused():
    model, tasks = world("cross_attention", (*FIVE, "entailment"))
    assert check_gradient_cache(None, model, tasks, tasks, True) == []
    assert (
        check_gradient_cache(3, model, tasks, FIVE, False) == check_gradient_cache(1, model, tasks, FIVE, False) == []
    )
    for wrong in (0, True, 1.5, "2"):
        with pytest.raises(ConfigError, match=rf"^gradient_cache is {wrong!r}; give the number of images"):
            check_gradient_cache(wrong, model, tasks, FIVE, False)
    with pytest.raises(
        ConfigError, match=r"^gradient_cache: task entailment \(\w+\) has not been seen .* leave entailment out"
    ):
        check_gradient_cache(3, model, tasks, ["itc", "entailment"], False)
    with pytest.raises(ConfigError, match=r"teacher=checkpoint; use teacher=momentum or none"):
        check_gradient_cache(3, model, tasks, FIVE, True)
    with pytest.raises(ConfigError, match=r"fusion \w+ reads images by what is asked of them"):
        check_gradient_cache(3, toy_model("prefix_instructed"), tasks, FIVE, False)
    with in_chunks(2), pytest.raises(ConfigError, match="views of images"):
        model.encode({"pixel_values": torch.zeros(1, 3, 32, 32).double(), "views": {}}, [])
    with in_chunks(2), pytest.raises(ConfigError, match="several images at once"):
        model.fuse(None, Tokens(torch.zeros(1, 2, WIDTH), None, torch.zeros(1, WIDTH)), torch.zeros(1, 1, 2).long())
    assert not chunks.is_on()
    trainer: Any = SimpleNamespace(strategy=DDPStrategy())
    require_whole_weights(trainer)
    require_whole_weights(SimpleNamespace(strategy=SingleDeviceStrategy()))  # type: ignore[arg-type]
    for kind in (FSDPStrategy, DeepSpeedStrategy):  # Lightning has the latter for a kind of DDP's
        with pytest.raises(ConfigError, match=rf"^gradient_cache: {kind.__name__} splits weights.*; use trainer=ddp"):
            require_whole_weights(SimpleNamespace(strategy=kind.__new__(kind)))  # type: ignore[arg-type]


def test_weights_that_a_call_does_not_name_are_refused():
    first, other = nn.Linear(3, 3), nn.Linear(3, 3)
    with in_chunks(2):
        found = chunks.by_rows(lambda x: other(first(x)), (torch.zeros(2, 3),), [first])
        named = chunks.by_rows(lambda x: other(first(x)), (torch.zeros(2, 3),), [first, other])
    with pytest.raises(ConfigError, match=r"^gradient_cache: Linear reads weights of another part of the model"):
        found.sum().backward()
    named.sum().backward()
    other.requires_grad_(False)
    with in_chunks(1):
        chunks.by_rows(lambda x: other(first(x)), (torch.zeros(2, 3),), [first]).sum().backward()


def test_rows_of_other_sizes_are_refused():
    sizes = iter((3, 4))
    with (
        in_chunks(1),
        pytest.raises(ConfigError, match=r"^gradient_cache: Linear gives rows of \(4,\) for some .* \(3,\)"),
    ):
        chunks.by_rows(lambda x: x.new_zeros(len(x), next(sizes)), (torch.zeros(2, 3),), [nn.Linear(3, 3)])


def test_plain_accumulation_tells_whose_negatives_it_has():
    _, tasks = world("cross_attention", FIVE)
    assert tell_of_micro_batches(1, None, tasks, FIVE) == []
    assert tell_of_micro_batches(4, None, tasks, ["mlm", "vqa"]) == []
    assert tell_of_micro_batches(2, 8, tasks, FIVE)[0].endswith(
        "gradient_cache=8 (images at a time) and accumulate_grad_batches=1"
    )
    (told,) = tell_of_micro_batches(4, None, tasks, ["itc", "itm", "mlm"])
    assert told == (
        "trainer.accumulate_grad_batches=4: itc and itm draw their negatives from one micro-batch, not from the 4 of a step; for "
        "those of all, make data.sources.NAME.batch_size 4 times as large with gradient_cache=N (images at a time) and "
        "accumulate_grad_batches=1"
    )


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=24"]) == 0
    return folder


def weights(folder: Path, *line: str) -> dict[str, torch.Tensor]:
    given = [*SMALL, f"data.root={folder}/shapes", "overwrite=true", "trainer.limit_val_batches=0", *line]
    assert run(["train", *given, f"output_dir={folder}/run"]) == 0
    found: dict[str, torch.Tensor] = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=False)["state_dict"]
    return found


@pytest.mark.parametrize(
    "more", [["teacher=momentum", "trainer.gradient_clip_val=0.1"], ["balance=pcgrad"], ["balance=gradnorm"]]
)
def test_a_run_has_the_weights_of_one_without(shapes, capsys, more):
    line = [*NO_DROPOUT, *more]
    plain, cached = weights(shapes, *line), weights(shapes, *line, "gradient_cache=3")
    assert plain.keys() == cached.keys()
    for name, value in plain.items():
        if value.is_floating_point():
            assert torch.allclose(cached[name], value, atol=2e-4, rtol=1e-3), name


def test_a_run_tells_of_micro_batches(shapes, capsys):
    weights(shapes, "trainer.accumulate_grad_batches=2")
    assert (
        "trainer.accumulate_grad_batches=2: itc and itm draw their negatives from one micro-batch"
        in capsys.readouterr().out
    )


def test_a_run_refuses_statistics_that_wait_for_chunks(shapes, capsys):
    line = [*SMALL, f"data.root={shapes}/shapes", f"output_dir={shapes}/none", "trainer.sync_batchnorm=true"]
    assert run(["train", *line, "gradient_cache=2"]) == 2
    assert "trainer.sync_batchnorm: batch norms would wait for chunks" in capsys.readouterr().err
