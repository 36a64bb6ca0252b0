"""Matching: which pairs are scored."""

import math

import pytest
import torch
from torch import nn

from fusionkit.errors import ConfigError
from fusionkit.negatives import HardNegatives, Queue
from fusionkit.tasks.itm import ITM, draw, join_pairs, prior_entropy
from tests.toys import measured, toy_batch, toy_dims, toy_model


def build(**options):
    torch.manual_seed(0)
    model = toy_model()
    return model, ITM(toy_dims(model), **options)


def run(model, itm, batch):
    return itm(model, batch, model.encode(batch, ["captions"]))


def test_one_true_pair_to_two_false_ones():
    model, itm = build()
    out = run(model, itm, toy_batch(images=4, texts_per_image=2))
    assert out.targets.tolist() == [1] * 8 + [0] * 16


def test_texts_per_image_limits_the_pairs():
    model, itm = build(texts_per_image=1)
    assert len(run(model, itm, toy_batch(images=4, texts_per_image=3)).targets) == 12


def test_rows_without_a_valid_negative_are_dropped():
    model, itm = build()
    batch = toy_batch(images=3)
    batch["image_keys"][:] = 5  # one photo three times: nothing to contrast with
    out = run(model, itm, batch)
    assert out.targets.tolist() == [1, 1, 1]
    assert torch.isfinite(out.loss)


def test_negatives_show_another_image():
    model, itm = build()
    batch = toy_batch(images=4, texts_per_image=2)
    batch["image_keys"][3] = batch["image_keys"][0]
    keys, index, rows = batch["image_keys"], batch["captions"]["image_index"], torch.arange(8)
    encoded = model.encode(batch, ["captions"])
    candidates = itm.negatives.pool(encoded, "captions", keys, keys[index])
    drawn = draw(itm.negatives, "captions", model, batch, encoded, candidates, rows, None)
    (images, texts), targets = join_pairs(index, rows, *drawn, candidates)
    match = keys[images] == keys[index[texts]]
    assert torch.equal(match, targets.bool())
    assert len(targets) == 24


def test_a_head_that_knows_nothing_costs_the_entropy_of_one_to_two():
    model, itm = build()
    torch.nn.init.zeros_(itm.head.weight)
    with torch.no_grad():
        itm.head.bias.copy_(torch.tensor([2 / 3, 1 / 3]).log())
    assert run(model, itm, toy_batch(images=4)).loss.item() == pytest.approx(
        -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3
    )


def test_a_head_that_guesses_has_no_gap_whatever_the_ratio():
    assert prior_entropy(torch.tensor(1 / 3)).item() == pytest.approx(0.6365, abs=1e-4)
    assert prior_entropy(torch.tensor(1.0)) == prior_entropy(torch.tensor(0.0)) == 0
    for k in (1, 3):
        model, itm = build(negatives=HardNegatives(k=k))
        with torch.no_grad():
            itm.head.weight.zero_()
            itm.head.bias.copy_(torch.tensor([2 * k / (2 * k + 1), 1 / (2 * k + 1)]).log())
        metrics = measured(itm, run(model, itm, toy_batch(images=5)))
        assert metrics["chance_gap"] == pytest.approx(0, abs=1e-6)
        assert metrics["logit_gap"] == 0
        with torch.no_grad():
            itm.head.weight.normal_()
        metrics = measured(itm, run(model, itm, toy_batch(images=5)))
        assert abs(metrics["chance_gap"]) > 1e-3
        assert metrics["logit_gap"] == pytest.approx(metrics["positive_logit"] - metrics["negative_logit"])


def test_at_a_low_temperature_the_nearest_wrong_partners_are_drawn():
    model, itm = build()
    model.temperature.data.fill_(1e-6)
    batch = toy_batch(images=5)
    encoded = model.encode(batch, ["captions"])
    keys = batch["image_keys"]
    candidates = itm.negatives.pool(encoded, "captions", keys, keys)
    wrong_image, wrong_text = draw(itm.negatives, "captions", model, batch, encoded, candidates, torch.arange(5), None)
    cosines = (encoded.text_feats["captions"] @ encoded.image_feats.T).detach()
    assert torch.equal(wrong_image.columns[:, 0], cosines.clone().fill_diagonal_(-2).argmax(dim=1))
    assert torch.equal(wrong_text.columns[:, 0], cosines.T.clone().fill_diagonal_(-2).argmax(dim=1))


def test_slots_of_a_queue_that_were_never_filled_are_no_partners():
    model, itm = build(negatives=HardNegatives(Queue(6, (17, 32), (9, 32), 16), k=4))
    batch = toy_batch(images=3)
    keys, encoded = batch["image_keys"], model.encode(batch, ["captions"])
    candidates = itm.negatives.pool(encoded, "captions", keys, keys)
    for drawn in draw(itm.negatives, "captions", model, batch, encoded, candidates, torch.arange(3), None):
        assert drawn.is_valid.sum(dim=1).tolist() == [2, 2, 2]
        assert (drawn.columns[drawn.is_valid] < 3).all()


def test_predictions_are_each_caption_with_its_own_and_with_the_next_image():
    model, itm = build()
    batch = toy_batch(images=3, texts_per_image=1)
    encoded = model.encode(batch, ["captions"])
    records = itm.eval().predict(model, batch, encoded)
    named = [(record["caption_id"], record["image_id"], record["label"]) for record in records]
    assert named == [(0, 100, 1), (1, 101, 1), (2, 102, 1), (0, 101, 0), (1, 102, 0), (2, 100, 0)]
    text = encoded.text["captions"]
    shares = itm.score_pairs(model, encoded.memory, text, torch.tensor([1, 2, 0])).softmax(dim=1)[:, 1]
    assert [record["score"] for record in records[3:]] == pytest.approx(shares.tolist())
    told = [record["match"] for record in itm.reply(model, batch, encoded, 1)]
    assert told == pytest.approx([record["score"] for record in records[:3]])
    alone = toy_batch(images=1, texts_per_image=2)
    assert [r["label"] for r in itm.predict(model, alone, model.encode(alone, ["captions"]))] == [1, 1]


def test_probabilities_are_of_fp32_where_the_head_speaks_bf16():
    model, itm = build()
    batch = toy_batch(images=3)
    encoded = model.encode(batch, ["captions"])
    itm.head = nn.Sequential(itm.head, Rounded())
    logits = itm.score_pairs(model, encoded.memory, encoded.text["captions"], batch["captions"]["image_index"])
    assert logits.dtype == torch.bfloat16
    shares = logits.double().softmax(dim=1)[:, 1].tolist()
    assert [record["match"] for record in itm.eval().reply(model, batch, encoded, 1)] == pytest.approx(shares, abs=1e-6)
    own = [record["score"] for record in itm.predict(model, batch, encoded) if record["label"]]
    assert own == pytest.approx(shares, abs=1e-6)


class Rounded(nn.Module):
    def forward(self, logits):
        return logits.bfloat16()


@pytest.mark.parametrize("negatives", [7, "x", {"k": 1}])
def test_negatives_that_are_none_are_told(negatives):
    model = toy_model()
    with pytest.raises(ConfigError, match=r"^task\.itm\.negatives is .*, but has to be built of a class; choose"):
        ITM(toy_dims(model), negatives=negatives)
