"""The distribution of negatives, where they come from, and what happens at the edges."""

import json
import math

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fusionkit.errors import ConfigError, DataError
from fusionkit.model.momentum import Teacher
from fusionkit.negatives import AllRanks, HardNegatives, OfflineNegatives, Queue, RandomNegatives
from fusionkit.tasks.itm import ITM
from fusionkit.types import Encoded, Tokens
from tests.toys import CONF, choices, measured, of_size, toy_batch, toy_dims, toy_model, toy_no_rows, toy_task

OFFLINE = {"100": [101, 103], "101": [100]}


def draw_often(negatives, similarity, same, times=20_000, **options):
    drawn = negatives(*(part.expand(times, -1) for part in (similarity, same)), **options)
    assert drawn.is_valid.all()
    return torch.bincount(drawn.columns.flatten(), minlength=similarity.shape[1]) / times


def test_hard_negatives_follow_the_softmax_over_other_images():
    torch.manual_seed(0)
    similarity = torch.tensor([[1.0, 0.0, 2.0, -1.0]])
    same = torch.tensor([[False, False, True, False]])
    distribution = similarity.masked_fill(same, -torch.inf).softmax(dim=1)[0]
    torch.testing.assert_close(draw_often(HardNegatives(), similarity, same), distribution, atol=0.015, rtol=0)
    entropy = HardNegatives()(similarity, same).entropy
    assert entropy.item() == pytest.approx(-sum(p * math.log(p) for p in distribution.tolist() if p))


def test_random_negatives_are_uniform_over_other_images():
    torch.manual_seed(0)
    similarity, same = torch.tensor([[9.0, 0.0, 5.0]]), torch.tensor([[False, True, False]])
    torch.testing.assert_close(
        draw_often(RandomNegatives(), similarity, same), torch.tensor([0.5, 0.0, 0.5]), atol=0.015, rtol=0
    )
    assert RandomNegatives()(similarity, same).entropy.item() == pytest.approx(math.log(2))


def test_k_partners_are_different_and_never_more_than_there_are():
    torch.manual_seed(0)
    same = torch.tensor([[True, False, False, False], [True, True, True, False]])
    drawn = HardNegatives(k=3)(torch.randn(2, 4), same)
    assert sorted(drawn.columns[0].tolist()) == [1, 2, 3]
    assert drawn.is_valid.sum(dim=1).tolist() == [3, 1]
    assert drawn.columns[1][drawn.is_valid[1]].tolist() == [3]
    assert HardNegatives(k=9)(torch.randn(2, 4), same).columns.shape == (2, 4)


def test_a_row_without_another_image_is_invalid_and_low_temperatures_do_not_crash():
    similarity = torch.tensor([[300.0, 0.0], [0.0, -9000.0], [5.0, 4.0]])
    same = torch.tensor([[True, False], [False, True], [True, True]])
    columns, is_valid, entropy = HardNegatives()(similarity, same)
    assert is_valid.flatten().tolist() == [True, True, False]
    assert columns.flatten()[:2].tolist() == [1, 0]
    assert entropy == 0  # no row has a choice


def test_offline_negatives_are_those_of_the_file_and_hard_ones_elsewhere(tmp_path):
    (tmp_path / "hard.json").write_text(json.dumps(OFFLINE))
    negatives = OfflineNegatives(str(tmp_path / "hard.json"))
    mined = negatives.mined({"image_ids": [100, 101, 102, 103]})
    assert mined.nonzero().tolist() == [[0, 1], [0, 3], [1, 0]]
    torch.manual_seed(0)
    similarity, same = torch.tensor([[0.0, 1.0, 9.0, 5.0]]), torch.tensor([[True, False, False, False]])
    found = draw_often(negatives, similarity, same, mined=mined[:1].expand(20_000, -1))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.5, 0.0, 0.5]), atol=0.015, rtol=0)
    found = draw_often(negatives, similarity, same, mined=mined[2:3].expand(20_000, -1))
    torch.testing.assert_close(found, draw_often(HardNegatives(), similarity, same), atol=0.015, rtol=0)


def encoded_rows(rows: int, length: int = 3) -> Encoded:
    """Random states of ``rows`` images and as many captions."""

    def tokens(count: int, width: int) -> Tokens:
        return Tokens(torch.randn(rows, count, width), torch.ones(rows, count).long(), torch.randn(rows, width))

    feats = torch.nn.functional.normalize(torch.randn(2, rows, 4), dim=-1)
    return Encoded(
        tokens(2, 5)._replace(mask=None), None, feats[0], {"captions": tokens(length, 6)}, {"captions": feats[1]}
    )


def test_a_queue_offers_what_went_before_in_turn_and_saves_it():
    queue = Queue(3, image_shape=(2, 5), text_shape=(4, 6), embed_size=4)
    first, second = encoded_rows(2), encoded_rows(2)
    queue(first, "captions", torch.tensor([1, 2]), torch.tensor([1, 2]))
    found = queue(second, "captions", torch.tensor([3, 4]), torch.tensor([3, 4]))
    assert found.image_keys[:4].tolist() == [3, 4, 1, 2]
    assert (found.metrics["queue_age"], found.metrics["queue_age_max"]) == (1, 1)
    assert found.text.embeds.shape == (5, 4, 6)
    torch.testing.assert_close(found.image.embeds[2:4], first.image.embeds)
    torch.testing.assert_close(found.text.embeds[2:4, :3], first.text["captions"].embeds)
    assert found.text.mask[2].tolist() == [1, 1, 1, 0]
    assert queue.get_buffer("image_keys").tolist() == [4, 2, 3]  # the oldest is gone
    again = Queue(3, (2, 5), (4, 6), 4)
    again.load_state_dict(queue.state_dict())
    assert torch.equal(again.get_buffer("text_embeds"), queue.get_buffer("text_embeds"))
    queue.eval()(first, "captions", torch.tensor([8, 9]), torch.tensor([8, 9]))
    assert queue.get_buffer("image_keys").tolist() == [4, 2, 3]


def toy_negatives(name: str, folder):
    """The component of conf/negatives/NAME.yaml, for the toy model."""
    negatives = OmegaConf.load(CONF / f"negatives/{name}.yaml")
    config = of_size("small", model={"embed_size": 16}, negatives=negatives)
    if name == "queue":
        config.negatives.pool.update(image_shape=[17, 32], text_shape=[12, 32])
    if name == "offline":
        (folder / "hard.json").write_text(json.dumps(OFFLINE))
        config.negatives.file = str(folder / "hard.json")
    return instantiate(config.negatives, k=2)


@pytest.mark.parametrize("name", choices("negatives"))
def test_every_choice_trains_matching(name, tmp_path):
    torch.manual_seed(0)
    model = toy_model()
    itm = ITM(toy_dims(model), toy_negatives(name, tmp_path))
    for _ in range(2):  # the second time there is something in a queue
        batch = toy_batch(images=4, texts_per_image=2)
        batch["image_keys"] = torch.randint(10**6, (4,))
        out = itm(model, batch, model.encode(batch, ["captions"]))
    assert out.targets.tolist() == [1] * 8 + [0] * 32
    assert 0 < measured(itm, out)["negatives_entropy"] < math.log(8 + 256)
    out.loss.backward()
    assert all(p.grad is not None for p in [*itm.parameters(), *model.image_encoder.parameters()])
    model.zero_grad()
    batch["captions"] = toy_no_rows("captions")
    out = itm(model, batch, model.encode(batch, ["captions"]))
    out.loss.backward()
    assert out.loss == 0
    assert not [n for n, p in [*model.fusion.named_parameters(), *itm.named_parameters()] if p.grad is None]


def test_what_the_teacher_takes_for_a_match_is_no_negative():
    torch.manual_seed(0)
    model = toy_model()
    itm = ITM(toy_dims(model), HardNegatives(k=3, teacher_threshold=0.9))
    assert itm.uses_teacher
    assert not ITM.uses_teacher
    batch = toy_batch(images=4)
    encoded = model.encode(batch, ["captions"])
    feats = torch.eye(16)[torch.tensor([0, 1, 0, 3])]  # to the teacher the images 0 and 2 are alike
    taught = Encoded(encoded.image, None, feats, encoded.text, {"captions": feats})
    out = itm(model, batch, encoded, Teacher(model, None, taught, 0.0))
    assert (out.targets == 0).sum() == 2 * (2 + 3 + 2 + 3)
    with pytest.raises(ConfigError, match=r"negatives.teacher_threshold needs a teacher; choose teacher=momentum"):
        itm(model, batch, encoded)


def test_mistakes_are_named(tmp_path):
    (tmp_path / "list.json").write_text("[1, 2]")
    queue = Queue(3, image_shape=(2, 5), text_shape=(3, 6), embed_size=4)
    with pytest.raises(ConfigError, match=r"negatives.k is 0"):
        HardNegatives(k=0)
    with pytest.raises(ConfigError, match=r"negatives.teacher_threshold: Queue keeps no states of the teacher"):
        HardNegatives(queue, teacher_threshold=0.5)
    with pytest.raises(ConfigError, match=r"name the json file of mined partners, negatives.file=PATH"):
        OfflineNegatives(None)
    with pytest.raises(DataError, match=r"list.json: expected json \{image id: \[image ids\]\}"):
        OfflineNegatives(str(tmp_path / "list.json"))
    with pytest.raises(ConfigError, match=r"set negatives.pool.text_shape=\[7,6\]"):
        queue(encoded_rows(2, length=7), "captions", torch.arange(2), torch.arange(2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_similarities_that_are_not_finite_draw_without_a_trace_and_say_so(value):
    similarity = torch.tensor([[0.0, 1.0, 2.0], [value, 1.0, 2.0]])
    same = torch.tensor([[True, False, False], [False, True, False]])
    drawn = HardNegatives(k=2)(similarity, same)
    assert drawn.entropy.isnan()
    assert drawn.columns.shape == (2, 2)
    assert HardNegatives(k=2)(similarity[:1], same[:1]).entropy.isfinite()
    assert HardNegatives()(similarity, torch.tensor([[True, False, False], [True, False, False]])).entropy.isfinite()


@pytest.mark.parametrize("task", ["itm", "ranking", "grounding_gradcam"])
def test_a_loss_says_that_negatives_could_not_be_drawn(task):
    torch.manual_seed(0)
    model = toy_model()
    task = toy_task(task, toy_dims(model))
    batch = toy_batch(images=3)
    encoded = model.encode(batch, [task.reads])
    assert task(model, batch, encoded).loss.isfinite()
    encoded.image_feats.data[1] = math.nan  # which the fusion does not read
    encoded.text_feats[task.reads].data[1] = math.nan
    assert task(model, batch, encoded).loss.isnan()


@pytest.mark.parametrize("part", ["embeds", "pooled", "feats"])
def test_a_queue_takes_no_rows_of_which_one_is_not_finite(part):
    torch.manual_seed(0)
    model, batch = toy_model(), toy_batch(images=2)
    queue = Queue(5, (17, 32), (9, 32), 16)
    encoded, keys = model.encode(batch, ["captions"]), batch["image_keys"]
    queue(encoded, "captions", keys, keys)
    before = {name: buffer.clone() for name, buffer in queue.named_buffers()}
    for spoilt in (encoded.image_feats,) if part == "feats" else (getattr(encoded.image, part),):
        spoilt.data[1] = math.inf
    queue(encoded, "captions", keys, keys)
    for name, buffer in queue.named_buffers():
        assert torch.equal(buffer, before[name]) == name.startswith("image"), name
    assert (int(queue.image_pointer), int(queue.text_pointer)) == (2, 4)


def test_how_many_others_there_are_to_draw_from():
    assert (HardNegatives().pool.partners(1, 4), HardNegatives().pool.partners(3, 4)) == (0, 2)
    assert AllRanks().partners(1, 4) == 3
    assert Queue(5, (17, 32), (9, 32), 16).partners(1, 4) == 5
