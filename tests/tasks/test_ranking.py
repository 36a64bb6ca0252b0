"""Retrieval through the fusion, and matching of one pair a caption."""

import math

import pytest
import torch

from fusionkit.negatives import HardNegatives, RandomNegatives
from fusionkit.tasks.itm import ITM, tossed_pairs
from fusionkit.tasks.ranking import Ranking, triplet_loss
from tests.toys import toy_batch, toy_dims, toy_model


def build(task, images=6, **options):
    torch.manual_seed(0)
    model = toy_model()
    batch = toy_batch(images=images)
    return model, task(toy_dims(model), **options), batch, model.encode(batch, ["captions"])


def test_the_true_caption_is_ranked_among_k_wrong_ones():
    model, task, batch, encoded = build(Ranking, negatives=RandomNegatives(k=3))
    out = task(model, batch, encoded)
    assert out.logits.shape == (6, 4)
    text = encoded.text["captions"]
    true = task.score_pairs(model, encoded.memory, text, torch.arange(6))[:, 1]
    torch.testing.assert_close(out.logits[:, 0], true)
    torch.testing.assert_close(out.loss, -out.logits.log_softmax(dim=1)[:, 0].mean())
    out.loss.backward()
    assert all(p.grad is not None for p in [*task.parameters(), *model.image_encoder.parameters()])


def test_all_wrong_captions_of_a_small_batch_are_ranked_once():
    """With k above the batch every other caption is drawn, and none is the image's own."""
    model, task, batch, encoded = build(Ranking, images=3, negatives=HardNegatives(k=9))
    batch["image_keys"][2] = batch["image_keys"][0]
    logits = task(model, batch, encoded).logits
    assert (~logits.isneginf()).sum(dim=1).tolist() == [2, 3, 2]
    text = encoded.text["captions"]
    pairs = task.score_pairs(model, encoded.memory, text, torch.tensor([0, 0, 0]))[:, 1]
    torch.testing.assert_close(logits[0][~logits[0].isneginf()], pairs[:2])


def test_the_hardest_are_those_that_the_model_scores_highest():
    model, task, batch, encoded = build(Ranking, negatives=HardNegatives(k=9))
    everything = task(model, batch, encoded).logits[:, 1:]
    task.hardest = 2
    hardest = task(model, batch, encoded).logits
    assert hardest.shape == (6, 3)
    torch.testing.assert_close(hardest[:, 1:], everything.topk(2, dim=1).values)


def test_triplets_of_sigmoids():
    logits = torch.tensor([[0.0, 0.0, -math.inf], [math.log(3), 0.0, -20.0]])  # sigmoids .5 | .5; .75 | .5, 0
    assert triplet_loss(logits, 0.2).item() == pytest.approx(0.2 / 3)
    assert triplet_loss(logits, 0.3).item() == pytest.approx((0.3 + 0.05) / 3)


def test_a_tossed_coin_makes_one_pair_a_caption():
    model, task, batch, encoded = build(ITM, images=8, join=tossed_pairs)
    shares = []
    for seed in range(40):
        torch.manual_seed(seed)
        out = task(model, batch, encoded)
        assert len(out.targets) == 8
        shares.append(out.targets.float().mean().item())
    assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.08)
    text = encoded.text["captions"]
    true = task.score_pairs(model, encoded.memory, text, torch.arange(8))
    is_same = (out.logits == true).all(dim=1)
    assert torch.equal(is_same, out.targets.bool())
