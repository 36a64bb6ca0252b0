"""ALBEF's step in its published formulation and in ours: the same numbers, and what is held against what."""

import json
import sys

import pytest
import torch

from benchmarks import albef_flops, albef_step, suite
from benchmarks.albef_ours import GivenNegatives
from benchmarks.albef_published import Published
from benchmarks.timing import Turn, medians, take_turns

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("shortest", [4, 30])
def test_the_formulations_have_the_same_losses_and_gradients(shortest: int) -> None:
    both, parameters, _ = albef_step.rivals("tiny", shortest, torch.float32, CPU)
    apart = albef_step.compare(both, parameters())
    assert set(both) == {albef_step.PUBLISHED, albef_step.OURS}
    assert apart["losses"] <= 1e-5
    assert apart["gradients"] <= 1e-5
    assert apart["worst_gradient"] <= 1e-4
    assert apart["losses_of_next_step"] <= 1e-5  # after AdamW, the moving average and the queue have moved on


def test_other_negatives_are_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison ends with 1 where ours draws another partner."""

    def other(self, similarity, is_excluded, mined=None):
        drawn = super(GivenNegatives, self).forward(similarity, is_excluded, mined)
        return drawn._replace(columns=(self.given.images[:, None] + 1) % len(similarity))

    monkeypatch.setattr(GivenNegatives, "forward", other)
    monkeypatch.setattr(sys, "argv", ["albef_step", "--size", "tiny", "--rounds", "0", "--threads", "1"])
    assert albef_step.main() == 1
    assert "the two formulations differ" in capsys.readouterr().err


def test_the_same_step_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["albef_step", "--size", "tiny", "--rounds", "0", "--threads", "1"])
    assert albef_step.main() == 0


def test_a_gradient_that_is_off_is_found() -> None:
    both, parameters, _ = albef_step.rivals("tiny", 4, torch.float32, CPU)
    published = both[albef_step.PUBLISHED]
    module = published.parts[0]
    assert isinstance(module, Published)
    with torch.no_grad():
        module.student.bert.upper[1].cross_attention.value.weight[0, 0] += 0.5
    assert albef_step.compare(both, parameters())["worst_gradient"] > albef_step.GRADIENTS


def test_operations_counted_by_hand_are_those_that_torch_counts() -> None:
    """Of parts that compute nothing but what is needed: texts without padding, all of whose states are read."""
    shape, size, _ = albef_step.SIZES["tiny"]
    student, patches = Published.half(shape), 16
    pixels, mask = torch.randn(size, 3, 32, 32), torch.ones(size, 30, dtype=torch.long)
    image, text, lengths = student.vision(pixels), student.bert.read(mask, mask), mask.sum(dim=1)
    memory = shape.fusion_layers * 4 * size * (1 + patches) * shape.image_width * shape.text_width
    stem = 2 * size * patches * 3 * shape.patch**2 * shape.image_width
    by_hand = {
        "vision": stem + albef_flops._vision(shape, size, 1 + patches),
        "text": albef_flops._text(shape, lengths),
        "fusion": memory + albef_flops._fusion(shape, lengths, lengths, 1 + patches),
        "words": albef_flops._words(shape, size * 30),
    }
    counted = {
        "vision": albef_flops.done(lambda: student.vision(pixels)),
        "text": albef_flops.done(lambda: student.bert.read(mask, mask)),
        "fusion": albef_flops.done(lambda: student.bert.fuse(text, mask, image)),
        "words": albef_flops.done(lambda: student.bert.words(text)),
    }
    assert by_hand == counted


def test_fewer_operations_are_needed_than_done_and_fewer_done_than_published() -> None:
    both, _, needed = albef_step.rivals("tiny", 30, torch.float32, CPU)
    ours, published = (albef_flops.done(both[name]) for name in (albef_step.OURS, albef_step.PUBLISHED))
    assert 0.7 * ours < needed < ours < published


def test_our_step_keeps_less_for_the_backward_pass() -> None:
    both, _, _ = albef_step.rivals("tiny", 4, torch.float32, CPU)
    kept = {name: albef_step.kept_bytes(rival.loss, *rival.parts) for name, rival in both.items()}
    assert 0 < kept[albef_step.OURS] < kept[albef_step.PUBLISHED]


def test_rivals_take_turns_in_changing_order() -> None:
    order: list[str] = []
    turns = take_turns({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)
    assert "".join(order) == "abbaabba"  # the first round warms up
    assert {name: len(took) for name, took in turns.items()} == {"a": 3, "b": 3}
    assert medians({"a": [Turn(3.0, 1.0), Turn(1.0, 5.0), Turn(2.0, 2.0)]}) == {"a": Turn(2.0, 2.0)}


def test_the_suite_tells_ratios_and_draws_them(tmp_path, monkeypatch, capsys) -> None:
    def run(command, check):
        facts = {"base": "old", "ratios": {"old": 1.0, "new": 1.5}, "more_ratios": {"bytes": 2.0}}
        facts |= {"processor": "p", "device": "cpu", "torch": "2", "date": "d"}
        (tmp_path / "one_encoding.json").write_text(json.dumps(facts))
        assert command[2:] == ["benchmarks.one_encoding", "--rounds=3", "--output", str(tmp_path / "one_encoding.json")]
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(suite.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["suite", "--rounds", "3", "--folder", str(tmp_path), "--only", "one_encoding"])
    assert suite.main() == 0
    told = capsys.readouterr().out
    assert "1.50x" in told
    assert "2.00x" in told
    assert " old " not in told
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_the_suite_ends_with_the_code_of_what_fails(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(suite.subprocess, "run", lambda command, check: type("Done", (), {"returncode": 3}))
    monkeypatch.setattr(sys, "argv", ["suite", "--folder", str(tmp_path), "--only", "reranking"])
    assert suite.main() == 3
