"""Word-region alignment: the transport plan against known optima, and the option of matching that uses it."""

import itertools

import pytest
import torch

from fusionkit.assembly.checks import check_needs
from fusionkit.errors import ConfigError
from fusionkit.tasks.alignment import Alignment, cosine_cost, transport_plan
from fusionkit.tasks.itm import ITM
from fusionkit.types import Fused
from tests.toys import measured, toy_batch, toy_dims, toy_model


def test_a_plan_is_the_best_assignment():
    """Between equal uniform distributions the optimum is a permutation over their number."""
    torch.manual_seed(0)
    cost = torch.rand(1, 4, 4)
    full = torch.ones(1, 4, dtype=torch.bool)
    plan = transport_plan(cost, full, full, beta=0.05, iterations=500)
    best = min(sum(cost[0, i, j].item() for i, j in enumerate(order)) for order in itertools.permutations(range(4)))
    assert (cost * plan).sum().item() == pytest.approx(best / 4, abs=1e-4)
    torch.testing.assert_close(plan.sum(dim=2), torch.full((1, 4), 0.25))


def test_padding_has_no_mass_and_changes_nothing():
    torch.manual_seed(0)
    words, regions = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    masks = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 5, dtype=torch.bool)
    plan = transport_plan(cosine_cost(words, regions, *masks), *masks, beta=0.5, iterations=50)
    longer = torch.cat([words, torch.randn(1, 2, 8)], dim=1), torch.cat([regions, torch.randn(1, 1, 8)], dim=1)
    padded = torch.tensor([[1, 1, 1, 0, 0]]).bool(), torch.tensor([[1, 1, 1, 1, 1, 0]]).bool()
    more = transport_plan(cosine_cost(*longer, *padded), *padded, beta=0.5, iterations=50)
    torch.testing.assert_close(more[:, :3, :5], plan)
    assert more[:, 3:].abs().max() == more[:, :, 5:].abs().max() == 0


def test_special_tokens_take_no_part_where_the_image_has_a_prefix():
    """[CLS], the last real token and the image's class token, as in ViLT."""
    torch.manual_seed(0)
    text, image, targets = torch.randn(1, 5, 8), torch.randn(1, 4, 8), torch.tensor([1])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    loss = Alignment(weight=1.0, image_prefix=1)(Fused(None, text, image), mask, None, targets)
    inner = Alignment(weight=1.0)(Fused(None, text[:, 1:3], image[:, 1:]), torch.ones(1, 2), None, targets)
    torch.testing.assert_close(loss, inner)


def test_true_pairs_come_closer_and_false_ones_part():
    torch.manual_seed(0)
    states = torch.randn(2, 3, 8, requires_grad=True)
    image, mask = torch.randn(2, 4, 8), torch.ones(2, 3)
    Alignment(weight=1.0)(Fused(None, states, image), mask, None, torch.tensor([1, 0])).mean().backward()
    moved = (states - 0.1 * states.grad).detach()
    full, places = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    before, after = (
        (cosine_cost(each, image, full, places) * transport_plan(cosine_cost(each, image, full, places), full, places, 0.5, 50))
        .sum(dim=(1, 2))
        for each in (states.detach(), moved)
    )  # fmt: skip
    assert after[0] < before[0]
    assert after[1] > before[1]


@pytest.mark.parametrize("regions", [True, False])
def test_matching_aligns_where_the_fusion_gives_both(regions):
    torch.manual_seed(0)
    model = toy_model("merged_attention", regions)
    task = ITM(toy_dims(model), alignment=Alignment())
    check_needs("itm", task, model.fusion)
    out = task(model, (batch := toy_batch(images=4)), model.encode(batch, ["captions"]))
    plain = torch.nn.functional.cross_entropy(out.logits, out.targets)
    assert out.loss.item() == pytest.approx(plain.item() + measured(task, out)["alignment_loss"])
    assert measured(task, out)["alignment_loss"] != 0


def test_refusals():
    model = toy_model("cross_attention")
    with pytest.raises(ConfigError, match="task 'itm' needs 'image'"):
        check_needs("itm", ITM(toy_dims(model), alignment=Alignment()), model.fusion)
    with pytest.raises(ConfigError, match=r"alignment\.beta is 0"):
        Alignment(beta=0)
