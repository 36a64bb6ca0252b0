import itertools

import numpy as np
import pytest

from fusionkit.data.sampler import ShardBatches, Stream, StreamBatches


def make_batches(size=23, batch_size=4, rank=0, world_size=1, start=0, count=12, seed=0) -> list[list]:
    return list(StreamBatches(Stream(size, seed, "a"), batch_size, 6, lambda: (start, count), rank, world_size))


def test_a_stream_is_one_permutation_after_the_other():
    draws = list(itertools.islice(Stream(7, 0, "a"), 21))
    epochs = [[draw.sample_index for draw in draws[start : start + 7]] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len({draw.seed for draw in draws}) == 21
    assert all(0 <= draw.seed < 2**63 for draw in draws)


def test_the_order_depends_on_the_seed_and_the_source_only():
    draws = [list(itertools.islice(Stream(50, *key), 50)) for key in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert draws[0] != draws[3]
    stream = Stream(50, 0, "a")
    assert [stream[place] for place in reversed(range(120))][::-1][:50] == draws[0]


@pytest.mark.parametrize("start", [1, 5, 6, 11])
def test_a_resumed_run_goes_on_with_the_next_batch(start):
    assert make_batches(start=start, count=12 - start) == make_batches()[start:]


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_share_each_global_batch(world_size):
    ranks = [make_batches(batch_size=8 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    together = [[draw for part in parts for draw in part] for parts in zip(*ranks, strict=True)]
    assert together == make_batches(batch_size=8)


def test_an_epoch_keeps_its_length_after_a_resume():
    assert len(StreamBatches(Stream(23, 0, "a"), 4, 6, lambda: (4, 2))) == 6


@pytest.mark.parametrize(
    ("size", "batch_size", "world_size"), [(9, 4, 2), (100, 7, 3), (5, 2, 4), (16, 4, 1), (3, 8, 2)]
)
def test_shards_hold_each_sample_once_in_equally_many_batches(size, batch_size, world_size):
    shards = [ShardBatches(size, batch_size, rank, world_size) for rank in range(world_size)]
    batches = [batch for shard in shards for batch in shard]
    assert sorted(index for batch in batches for index in batch) == list(range(size))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert {len(shard) for shard in shards} == {len(list(shards[0]))}


@pytest.mark.parametrize(("size", "world_size"), [(1, 2), (2, 5), (3, 4)])
def test_no_rank_is_without_a_batch(size, world_size):
    """Lightning refuses a rank without one, and where none has any would leave out the end of the validation, a collective."""
    shards = [list(ShardBatches(size, 4, rank, world_size)) for rank in range(world_size)]
    assert shards == [[[min(rank, size - 1)]] for rank in range(world_size)]


def test_no_samples_are_no_batches():
    assert [list(ShardBatches(0, 4, rank, 2)) for rank in range(2)] == [[], []]


def counts(stream: Stream, permutations: int) -> np.ndarray:
    drawn = [stream[place].sample_index for place in range(permutations * stream.size)]
    return np.bincount(drawn, minlength=stream.size).reshape(-1)


def test_samples_come_as_often_as_their_weights_say():
    weights = np.array([0.0, 1.0, 2.0, 0.5, 0.0, 4.5, 0.0])
    stream = Stream(7, 0, "a", weights)
    expected = weights / weights.sum() * 7
    for number in range(50):
        found = np.bincount([stream[7 * number + place].sample_index for place in range(7)], minlength=7)
        assert np.all(np.abs(found - expected) < 1 + 1e-9)
        assert found[weights == 0].sum() == 0
    assert np.allclose(counts(stream, 2000) / 2000, expected, atol=0.05)


def test_equal_weights_are_none():
    drawn = [Stream(40, 3, "a", np.full(40, 2.0))[place].sample_index for place in range(80)]
    assert [sorted(drawn[:40]), sorted(drawn[40:])] == [[*range(40)]] * 2


def test_a_window_keeps_what_is_read_close_together():
    groups = np.repeat(np.arange(10), 20)
    stream = Stream(200, 0, "a", groups=groups, window=40)
    for number in range(3):
        drawn = [stream[200 * number + place].sample_index for place in range(200)]
        assert sorted(drawn) == [*range(200)]
        windows = [groups[drawn[start : start + 40]] for start in range(0, 200, 40)]
        assert [len(set(window)) for window in windows] == [2] * 5
        assert sum(len(set(window[:20])) for window in windows) == 10  # of two files at once
    one, other = ([groups[stream[start + place].sample_index] for place in range(200)] for start in (0, 200))
    assert one != other
    again = Stream(200, 0, "a", groups=groups, window=40)
    assert [again[place] for place in reversed(range(400))][::-1] == [stream[place] for place in range(400)]


def test_a_window_of_everything_is_any_order():
    stream = Stream(60, 0, "a", groups=np.repeat([0, 1, 2], 20), window=100)
    drawn = [stream[place].sample_index for place in range(60)]
    assert sorted(drawn) == [*range(60)]
    assert len({place // 20 for place in drawn[:20]}) == 3


def test_a_file_of_more_than_the_window_comes_in_pieces():
    stream = Stream(400, 0, "a", groups=np.repeat([0, 1, 2], [300, 20, 80]), window=40)
    drawn = [[stream[400 * number + place].sample_index for place in range(400)] for number in range(3)]
    assert all(sorted(each) == [*range(400)] for each in drawn)
    for each in drawn:
        means = [np.mean(each[start : start + 40]) for start in range(0, 400, 40)]
        assert np.abs(np.corrcoef(means, range(10))[0, 1]) < 0.8  # and not in the order of the file
        read = [sum(np.diff(sorted(each[start : start + 40])) > 1) for start in range(0, 400, 40)]
        assert max(read) <= 4  # of few places at once
    edges = [{frozenset(each[start : start + 40]) for start in range(0, 400, 40)} for each in drawn]
    assert not edges[0] & edges[1]
    again = Stream(400, 0, "a", groups=np.repeat([0, 1, 2], [300, 20, 80]), window=40)
    assert [again[place] for place in reversed(range(800))][::-1] == [stream[place] for place in range(800)]


def test_a_window_and_weights_go_together():
    weights = np.repeat([1.0, 3.0], 20)
    stream = Stream(40, 0, "a", weights, np.repeat([0, 1], 20), 10)
    drawn = [stream[place].sample_index for place in range(40)]
    assert 9 <= sum(place < 20 for place in drawn) <= 11
