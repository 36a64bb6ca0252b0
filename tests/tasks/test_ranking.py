"""Retrieval through the fusion, and matching of one pair a caption."""

import json
import math

import pytest
import torch

from fusionkit.model.momentum import MomentumTeacher
from fusionkit.negatives import HardNegatives, OfflineNegatives, Queue, RandomNegatives
from fusionkit.negatives.pool import OwnBatch
from fusionkit.tasks.itm import ITM, bernoulli_pairs
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


def test_an_empty_queue_gives_no_wrong_captions():
    """What was never written there is no caption, however little it looks like the image's own."""
    queue = Queue(size=4, image_shape=(17, 32), text_shape=(9, 32), embed_size=16)
    model, task, batch, encoded = build(Ranking, images=3, negatives=HardNegatives(queue, k=9))
    assert (~task(model, batch, encoded).logits.isneginf()).sum(dim=1).tolist() == [3, 3, 3]


def test_wrong_captions_are_those_that_a_file_names(tmp_path):
    file = tmp_path / "mined.json"
    model, task, batch, encoded = build(Ranking, images=4)
    names = batch["image_ids"]
    file.write_text(json.dumps({str(names[row]): [names[(row + 1) % 4]] for row in range(4)}))
    task.negatives = OfflineNegatives(str(file))
    logits = task(model, batch, encoded).logits
    pairs = task.score_pairs(model, encoded.memory, encoded.text["captions"], torch.tensor([3, 0, 1, 2]))[:, 1]
    torch.testing.assert_close(logits[:, 1], pairs.roll(-1))


def test_a_teacher_can_draw_the_wrong_captions():
    """At so low a temperature each image gets the caption that is nearest to it by the teacher's features."""
    model, task, batch, encoded = build(Ranking, negatives=HardNegatives(by_teacher=True))
    model.temperature.data.fill_(1e-4)
    teacher = MomentumTeacher(model, {"ranking": task})
    with torch.no_grad():
        for parameter in teacher.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    seen = teacher.encode(batch, ["captions"])
    cosines = encoded.image_feats @ seen.text_feats["captions"].T
    nearest = cosines.fill_diagonal_(-1).argmax(dim=1)
    logits = task(model, batch, encoded, teacher.view("ranking", seen, 0.0)).logits
    pairs = task.score_pairs(model, encoded.memory, encoded.text["captions"].take(nearest), torch.arange(6))[:, 1]
    torch.testing.assert_close(logits[:, 1], pairs)


def test_triplets_of_sigmoids():
    logits = torch.tensor([[0.0, 0.0, -math.inf], [math.log(3), 0.0, -20.0]])  # sigmoids .5 | .5; .75 | .5, 0
    assert triplet_loss(logits, 0.2).item() == pytest.approx(0.2 / 3)
    assert triplet_loss(logits, 0.3).item() == pytest.approx((0.3 + 0.05) / 3)


def test_a_tossed_coin_makes_one_pair_a_caption():
    model, task, batch, encoded = build(ITM, images=8, join=bernoulli_pairs)
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


class Behind(OwnBatch):
    """The own texts behind two of another rank's, here copies of the first."""

    def forward(self, encoded, kind, image_keys, text_keys):
        own = super().forward(encoded, kind, image_keys, text_keys)
        rows = torch.cat([torch.zeros(2, dtype=torch.long), torch.arange(len(text_keys))])
        moved = {"text": own.text.take(rows), "text_feats": own.text_feats[rows], "text_keys": text_keys[rows]}
        return own._replace(**moved, first_text=2)


def test_the_true_caption_is_the_own_one_where_other_ranks_stand_before():
    model, task, batch, encoded = build(Ranking, negatives=RandomNegatives(Behind(), k=2))
    logits = task(model, batch, encoded).logits
    true = task.score_pairs(model, encoded.memory, encoded.text["captions"], torch.arange(6))[:, 1]
    torch.testing.assert_close(logits[:, 0], true)
