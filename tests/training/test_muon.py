"""Muon and AdamW as one optimiser: who moves what, and that schedules and checkpoints see one."""

import copy

import pytest
import torch
from torch import nn

from fusionkit.errors import ConfigError
from fusionkit.training.muon import build_muon
from fusionkit.training.schedule import warmup_cosine


def toy() -> nn.ModuleDict:
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)), nn.Linear(6, 4)])
    return nn.ModuleDict({"embedding": nn.Embedding(5, 4), "layers": layers, "head": nn.Linear(4, 2)})


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, schedule=None) -> None:
    for step in range(steps):
        states = model["embedding"](torch.tensor([step % 5, (step + 2) % 5]))
        loss = model["head"](model["layers"][1](model["layers"][0](states))).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def test_muon_moves_the_matrices_in_layers_and_adamw_the_rest():
    model = toy()
    muon, adamw = build_muon(model.named_parameters(), lr=0.1, rules=[["layers.1", 0.5, None]]).parts
    names = {parameter: name for name, parameter in model.named_parameters()}
    moved = {names[p]: group["lr"] for group in muon.param_groups for p in group["params"]}
    assert moved == {"layers.0.0.weight": 0.2, "layers.1.weight": 0.1}  # twice AdamW's
    others = {names[p] for group in adamw.param_groups for p in group["params"]}
    assert others == set(names.values()) - set(moved)


def test_a_step_is_that_of_the_two_optimisers():
    ours, theirs = toy(), toy()
    learn(ours, build_muon(ours.named_parameters(), lr=0.1, weight_decay=0.0, matrix_scale=1), 3)
    matrices = [theirs["layers"][0][0].weight, theirs["layers"][1].weight]
    others = [p for p in theirs.parameters() if not any(p is m for m in matrices)]
    parts = [
        torch.optim.Muon(matrices, lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.1, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]
    for step in range(3):
        states = theirs["embedding"](torch.tensor([step % 5, (step + 2) % 5]))
        loss = theirs["head"](theirs["layers"][1](theirs["layers"][0](states))).square().sum()
        theirs.zero_grad()
        loss.backward()
        for part in parts:
            part.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_restored_optimiser_goes_on_exactly_and_still_obeys_its_schedule():
    model = toy()
    optimizer = build_muon(model.named_parameters(), lr=0.1)
    schedule = warmup_cosine(optimizer, total_steps=8, warmup_steps=2)
    learn(model, optimizer, 3, schedule)
    weights, state, place = (copy.deepcopy(x.state_dict()) for x in (model, optimizer, schedule))
    learn(model, optimizer, 3, schedule)

    again = toy()
    again.load_state_dict(weights)
    restored = build_muon(again.named_parameters(), lr=0.1)
    schedule = warmup_cosine(restored, total_steps=8, warmup_steps=2)
    restored.load_state_dict(state)
    schedule.load_state_dict(place)
    learn(again, restored, 3, schedule)
    rates = [[group["lr"] for group in one.param_groups] for one in (optimizer, restored)]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert rates[0] == rates[1]
    assert max(rates[0]) < 0.2
    assert [group["lr"] for part in restored.parts for group in part.param_groups] == rates[0]


def test_without_a_matrix_it_says_so():
    with pytest.raises(ConfigError, match=r"optimizer\.matrices: 'blocks' finds no trainable matrix"):
        build_muon(toy().named_parameters(), lr=0.1, matrices="blocks")


def test_large_matrices_are_orthogonalised_in_fp32_where_bf16_is_slow(monkeypatch):
    def moved(size: int, is_fast: str) -> torch.Tensor:
        monkeypatch.setenv("FUSIONKIT_CPU_BF16", is_fast)
        torch.manual_seed(0)
        matrix = nn.Parameter(torch.zeros(size, size))
        matrix.grad = torch.randn(size, size)
        muon, *_ = build_muon([("layers.0.weight", matrix)], lr=0.1, weight_decay=0.0).parts
        muon.step()
        return matrix.detach()

    assert torch.equal(moved(128, "0"), moved(128, "1"))
    slow, fast = moved(130, "0"), moved(130, "1")
    assert not torch.equal(slow, fast)
    torch.testing.assert_close(slow, fast, atol=0.01, rtol=0.05)
    assert torch.equal(slow.bfloat16().float(), slow) is False
