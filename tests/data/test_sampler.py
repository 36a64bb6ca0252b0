import itertools

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


def test_a_rank_without_samples_has_no_batches():
    assert list(ShardBatches(1, 4, 1, 2)) == []
