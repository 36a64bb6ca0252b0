import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fusionkit.data.dataset import EvalData, TrainData, choose
from fusionkit.data.images import CachedImages, ImageFiles
from fusionkit.data.sample import Sample, Text
from fusionkit.data.sampler import Draw
from fusionkit.data.transforms import Augment, Finish
from fusionkit.errors import DataError
from tests.data.worlds import make_samples, write_photo

FINISH = Finish(8, (0, 0, 0), (1, 1, 1))


def make_data(samples, augment=None, cache=False, count=2) -> TrainData:
    paths = [sample.image for sample in samples]
    images = CachedImages(paths, 8) if cache else ImageFiles(paths, 8)
    return TrainData("shapes", samples, images, {"captions": count}, FINISH, 8, augment)


def with_corrupt(folder: Path, total: int, *corrupt: int) -> list[Sample]:
    good = write_photo(folder / "good.png", 1, (8, 8))
    samples = [Sample(n, good, {"captions": (Text(n, "x"),)}) for n in range(total)]
    for number in corrupt:
        (folder / f"bad{number}.png").write_bytes(b"bad")
        samples[number] = Sample(number, folder / f"bad{number}.png", samples[number].texts)
    return samples


def test_texts_are_drawn_without_repetition():
    texts = [Text(number, "x") for number in range(5)]
    draws = [[text.id for text in choose(texts, 3, random.Random(seed))] for seed in range(50)]
    assert all(len(set(draw)) == 3 for draw in draws)
    assert {number for draw in draws for number in draw} == set(range(5))
    assert choose(texts, 9, random.Random(0)) == texts


def test_an_item_is_a_function_of_its_draw_and_leaves_the_global_generator_alone(tmp_path):
    def by_torchvision(image, boxes, words, size, rng):
        rng.random()
        return image.point(lambda value: int(value * torch.rand(()))), boxes

    by_torchvision.decode_side = lambda size: size
    for augment in (Augment(), by_torchvision):
        data = make_data(make_samples(tmp_path, range(3)), augment)
        torch.manual_seed(3)
        before = torch.get_rng_state()
        first = data[Draw(1, 17)]
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(99)
        random.seed(99)
        again, other = data[Draw(1, 17)], data[Draw(1, 18)]
        assert first.texts == again.texts
        assert torch.equal(first.pixel_values, again.pixel_values)
        assert not torch.equal(first.pixel_values, other.pixel_values) or first.texts != other.texts


def test_the_augmentation_is_told_the_answers_too(tmp_path):
    told = []

    def listen(image, boxes, words, size, rng):
        told.extend(words)
        return image, boxes

    question = Text(1, "which side?", {"answers": ["left"] * 10})
    sample = Sample(1, write_photo(tmp_path / "a.png"), {"captions": (question,)})
    make_data([sample], listen)[Draw(0, 0)]
    assert told == ["which side?"] + ["left"] * 10


@pytest.mark.parametrize("size", [(64, 48), None])
def test_boxes_refer_to_the_size_that_the_annotations_say(tmp_path, size):
    path = write_photo(tmp_path / "a.png", size=(32, 24))
    scale = 2 if size else 1
    box = Text(7, "thing", {"box": (8 * scale, 6 * scale, 16 * scale, 6 * scale)})
    sample = Sample(1, path, {"expressions": (box,)}, size)
    item = EvalData([sample], ImageFiles([path], 8), ["expressions"], FINISH)[0]
    assert item.boxes["expressions", 7].tolist() == pytest.approx([0.5, 0.375, 0.5, 0.25])
    assert item.size == (size or (32, 24))


def test_a_box_beyond_the_border_ends_there(tmp_path):
    path = write_photo(tmp_path / "a.png", size=(32, 24))
    sample = Sample(1, path, {"expressions": (Text(7, "thing", {"box": (-0.5, 0, 33, 24)}),)})
    item = EvalData([sample], ImageFiles([path], 8), ["expressions"], FINISH)[0]
    assert item.boxes["expressions", 7].tolist() == [0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("cache", [False, True])
def test_a_corrupt_training_image_is_replaced_and_counted(tmp_path, cache):
    data = make_data(with_corrupt(tmp_path, 200, 5, 8), cache=cache)
    items = [data[Draw(5, seed)].sample.image_id for seed in (1, 1, 2)]
    assert items[0] == items[1] != items[2]
    assert not {5, 8} & set(items)
    assert data.corrupt.sum() == 1
    data[Draw(8, 3)]
    assert data.corrupt.sum() == 2


def test_more_than_one_percent_stops_the_run(tmp_path):
    data = make_data(with_corrupt(tmp_path, 200, 5, 8, 100))
    assert len(data.__getitems__([Draw(100, 0), Draw(8, 1)])) == 2
    error = data.__getitems__([Draw(5, 2)])
    assert isinstance(error, DataError)
    assert str(error) == (
        "3 of the 200 training images of source 'shapes' cannot be decoded, more than 1%; "
        f"the first is {tmp_path / 'bad5.png'}: download the images again"
    )


def test_evaluation_needs_every_image(tmp_path):
    samples = with_corrupt(tmp_path, 4, 2)
    data = EvalData(samples, ImageFiles([sample.image for sample in samples], 8), ["captions"], FINISH)
    assert [item.sample.image_id for item in data.__getitems__([0, 1])] == [0, 1]
    assert "bad2.png cannot be decoded" in str(data.__getitems__([1, 2]))


def test_what_stands_in_for_a_corrupt_image_is_drawn_by_its_weight(tmp_path):
    samples = with_corrupt(tmp_path, 300, 0)
    paths, weights = [sample.image for sample in samples], np.ones(300)
    weights[1:] = np.arange(299) % 3 == 0

    def drawn(weights, seed):
        data = TrainData("x", samples, ImageFiles(paths, 8), {"captions": 1}, FINISH, 8, None, weights)
        return data[Draw(0, seed)].sample.image_id

    assert {weights[drawn(weights, seed)] for seed in range(20)} == {1.0}
    assert all(drawn(None, seed) == drawn(np.full(300, 0.5), seed) for seed in range(5))


def test_too_many_corrupt_images_are_those_of_what_is_drawn(tmp_path):
    samples = with_corrupt(tmp_path, 300, 0)
    weights = np.zeros(300)
    weights[:2] = 1
    data = TrainData(
        "x", samples, ImageFiles([each.image for each in samples], 8), {"captions": 1}, FINISH, 8, None, weights
    )
    with pytest.raises(DataError, match="1 of the 2 training images of source 'x' cannot be decoded"):
        data[Draw(0, 0)]
