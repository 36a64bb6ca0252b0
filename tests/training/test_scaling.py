"""The simulation of a step's time on many ranks: values worked out by hand, its limits, and what it refuses."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from fusionkit.distributed import (
    gather,
    gather_with_grad,
    is_running,
    largest_of_ranks,
    mean_over_ranks,
    rehearsal,
    world_size,
)
from fusionkit.errors import ConfigError
from fusionkit.training.scaling.step_time import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_REDUCE_ROWS,
    BROADCAST,
    Cluster,
    Exchange,
    Link,
    Work,
    expected_largest,
    step_time,
)
from fusionkit.training.scaling.table import Scaling, lines
from tests.toys import CONF, choices

FREE = Link(math.inf)
FAST, SLOW = Link(100.0, 0.25), Link(10.0, 1.0)  # bytes a second, seconds
TWO_NODES = Cluster(4, FAST, SLOW)
EVERYTHING = Work(
    2.0,
    gradients=800.0,
    exchanges=[
        Exchange(ALL_GATHER, 10.0),
        Exchange(ALL_REDUCE, 40.0),
        Exchange(ALL_REDUCE_ROWS, 10.0),
        Exchange(BROADCAST, 5.0),
    ],
    bucket=100.0,
    data=0.5,
)


def test_a_ring_by_hand() -> None:
    assert SLOW.all_gather(20, ranks=4) == 3 * (1 + 2)
    assert SLOW.reduce_scatter(80, ranks=4) == 3 * (1 + 2)
    assert SLOW.all_reduce(800, ranks=4) == 2 * 3 * (1 + 20)  # 2 (n - 1) / n of the bytes
    assert SLOW.all_reduce(1, ranks=1024) == pytest.approx(2 * (10 * 1 + 0.1))  # trees, not 2,046 hops
    assert SLOW.broadcast(20, ranks=5) == 3 * 1 + 2


def test_nodes_are_crossed_once_by_hand() -> None:
    assert TWO_NODES.all_gather(20, ranks=4) == FAST.all_gather(20, 4)
    # each rank with its twin in the other node, then 40 bytes of each of 4
    assert TWO_NODES.all_gather(20, ranks=8) == pytest.approx(1 * (1 + 2) + 3 * (0.25 + 0.4))
    # in the node 3 hops of 200 bytes there and back; between two nodes a quarter of the 800 bytes, 2 hops of 100
    assert TWO_NODES.all_reduce(800, ranks=8) == pytest.approx(2 * 3 * (0.25 + 2) + 2 * (1 + 10))
    assert TWO_NODES.reduce_scatter(800, ranks=8) == pytest.approx(3 * (0.25 + 2) + 1 * (1 + 10))
    assert TWO_NODES.broadcast(20, ranks=8) == pytest.approx(1 + 0.5 + 2 * 0.25 + 0.2)
    assert Cluster(1, FREE, SLOW).all_reduce(800, ranks=8) == SLOW.all_reduce(800, 8)


def test_exchanges_have_the_bytes_of_their_kind() -> None:
    assert Exchange(ALL_GATHER, 20).seconds(TWO_NODES, 8) == TWO_NODES.all_gather(20, 8)
    assert Exchange(ALL_REDUCE, 20).seconds(TWO_NODES, 8) == TWO_NODES.all_reduce(20, 8)
    assert Exchange(ALL_REDUCE_ROWS, 20).seconds(TWO_NODES, 8) == TWO_NODES.all_reduce(160, 8)
    assert Exchange(BROADCAST, 20).seconds(TWO_NODES, 8) == TWO_NODES.broadcast(20, 8)


def test_only_what_the_backward_pass_does_not_hide_counts() -> None:
    cluster = Cluster(2, Link(100.0), FREE)  # two ranks: as many seconds as bytes / 100
    work = Work(
        3.0, gradients=400.0, backward=2 / 3, bucket=100.0
    )  # a bucket each half a second, which travels for one
    assert step_time(work, cluster, 2).gradients == pytest.approx(0.5 + 4 * 1.0 - 2.0)
    assert step_time(replace(work, compute=30.0), cluster, 2).gradients == pytest.approx(1.0)  # the last one
    assert step_time(replace(work, bucket=math.inf), cluster, 2).gradients == pytest.approx(4.0)
    assert step_time(replace(work, passes=3), cluster, 2).gradients == pytest.approx(2.5)  # once a step


def test_split_weights_are_gathered_twice_a_pass() -> None:
    cluster = Cluster(2, Link(100.0), FREE)  # a gather or scatter of all 400 bytes: 200 / 100 seconds
    work = Work(3.0, gradients=400.0, weights=400.0, backward=2 / 3, bucket=100.0)
    # forwards 2 s beside 1 s of computing; backwards 2 + 2 s beside 2 s
    assert step_time(work, cluster, 2).gradients == pytest.approx(1.0 + 2.0)
    assert step_time(replace(work, passes=2), cluster, 2).gradients == pytest.approx((1.0 + 0.5) + (1.0 + 2.0))
    # all hidden but the first block, twice, and the last sum
    assert step_time(replace(work, compute=300.0), cluster, 2).gradients == pytest.approx(3 * 0.5)


def test_one_rank_alone_computes() -> None:
    found = step_time(replace(EVERYTHING, data=0.0), replace(TWO_NODES, spread=0.3), 1)
    assert (found.total, found.efficiency) == (2.0, 1.0)
    assert step_time(replace(EVERYTHING, weights=100.0), replace(TWO_NODES, spread=0.3), 1).total == 2.0


@pytest.mark.parametrize("weights", [0.0, 300.0])
def test_free_links_cost_nothing(weights: float) -> None:
    found = step_time(replace(EVERYTHING, weights=weights, passes=2), Cluster(4, FREE, FREE), 64)
    assert found.total == pytest.approx(4.0)


@pytest.mark.parametrize("weights", [0.0, 300.0])
def test_more_ranks_and_slower_links_take_longer(weights: float) -> None:
    work = replace(EVERYTHING, weights=weights)
    cluster = replace(TWO_NODES, spread=0.1)
    times = [step_time(work, cluster, ranks).total for ranks in (1, 2, 4, 8, 16, 64, 1024)]
    assert all(less < more for less, more in itertools.pairwise(times))
    slower = [
        replace(cluster, between=Link(5.0, 1.0)),
        replace(cluster, between=Link(10.0, 2.0)),
        replace(cluster, within=Link(50.0, 0.25)),
        replace(cluster, spread=0.2),
    ]
    for other in slower:
        assert step_time(work, other, 64).total > step_time(work, cluster, 64).total


def test_the_slowest_of_many_is_waited_for() -> None:
    assert expected_largest(2) == pytest.approx(1 / math.sqrt(math.pi), abs=1e-6)
    assert expected_largest(3) == pytest.approx(1.5 / math.sqrt(math.pi), abs=1e-6)
    assert expected_largest(1000) == pytest.approx(3.2414, abs=1e-4)  # tables of normal order statistics (Harter 1961)
    found = step_time(Work(2.0, 0.0, passes=3), Cluster(8, FREE, FREE, spread=0.1), 2)
    assert found.slowest == pytest.approx(6.0 * 0.1 / math.sqrt(math.pi))


def test_data_are_waited_for_where_they_take_longer_than_the_rest() -> None:
    cluster = Cluster(8, FREE, FREE)
    assert step_time(Work(2.0, 0.0, data=1.9), cluster, 8).data == 0.0
    assert step_time(Work(2.0, 0.0, data=2.5, passes=2), cluster, 8).data == pytest.approx(1.0)
    late = Work(2.0, 0.0, [Exchange(ALL_REDUCE, 100.0)], data=2.5)
    assert step_time(late, Cluster(2, Link(1000.0), FREE), 2).data == pytest.approx(0.4)  # made during the exchange too
    assert step_time(Work(2.0, 0.0, between=0.5, passes=2), cluster, 8).data == pytest.approx(1.0)


def section(**changes: Any) -> dict[str, Any]:
    return {**yaml.safe_load((CONF / "scaling/h100.yaml").read_text()), "ranks": [8], **changes}


@pytest.mark.parametrize("name", choices("scaling"))
def test_every_choice_is_understood(name: str) -> None:
    given = yaml.safe_load((CONF / f"scaling/{name}.yaml").read_text())
    given.pop("defaults", None)
    found = Scaling(section(**given))
    assert found.cluster.within.bandwidth > found.cluster.between.bandwidth > 1e9
    assert 1e-6 < found.cluster.within.latency < found.cluster.between.latency < 1e-3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ranks": [0]}, r"scaling\.ranks has 0; give whole numbers from 1"),
        ({"ranks": [8, 12]}, r"scaling\.ranks has 12, which is no multiple of scaling\.ranks_per_node=8"),
        ({"ranks": 8}, r"scaling\.ranks is 8; give a list"),
        ({"ranks": [1.5]}, r"scaling\.ranks has 1\.5"),
        ({"ranks_per_node": 0}, r"scaling\.ranks_per_node has 0"),
        ({"gigabytes_per_second": [200, -1]}, r"scaling\.gigabytes_per_second has -1; give numbers above 0"),
        ({"gigabytes_per_second": [0, 25]}, r"scaling\.gigabytes_per_second has 0"),
        ({"gigabytes_per_second": 25}, r"scaling\.gigabytes_per_second is 25; give two numbers"),
        ({"microseconds": [1, -2]}, r"scaling\.microseconds has -2; give numbers from 0"),
        ({"step_seconds": 0}, r"scaling\.step_seconds has 0; give numbers above 0"),
        ({"step_seconds": "fast"}, r"scaling\.step_seconds has 'fast'"),
        ({"backward": 1.5}, r"scaling\.backward is 1\.5"),
        ({"bucket_megabytes": 0}, r"scaling\.bucket_megabytes has 0"),
        ({"spread": -0.1}, r"scaling\.spread has -0\.1"),
        ({"spread": float("nan")}, r"scaling\.spread has nan"),
        ({"data_seconds": -1}, r"scaling\.data_seconds has -1"),
        ({"bandwidth": 3}, r"unknown key 'scaling\.bandwidth'"),
    ],
)
def test_bad_values_are_told_with_their_key(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Scaling(section(**changes))


def test_data_are_shared_among_workers() -> None:
    work = Work(2.0, 0.0)
    assert Scaling(section()).with_data(work, "auto") is work
    assert Scaling(section(data_seconds=3.0, workers=4)).with_data(work, "auto").data == 0.75
    assert Scaling(section(data_seconds=3.0)).with_data(work, 2).data == 1.5
    alone = Scaling(section(data_seconds=3.0)).with_data(work, 0)
    assert (alone.data, alone.between) == (0.0, 3.0)
    with pytest.raises(ConfigError, match=r"give scaling\.workers=N"):
        Scaling(section(data_seconds=3.0)).with_data(work, "auto")
    with pytest.raises(ConfigError, match=r"scaling\.workers has -1"):
        Scaling(section(data_seconds=3.0, workers=-1)).with_data(work, 2)


def test_the_table_has_a_line_a_number_of_ranks() -> None:
    head, one, many = lines(
        Work(2.0, 400.0, passes=2, bucket=math.inf), Cluster(8, Link(100.0), FREE), [1, 2], images=16
    )
    assert head.split("  ")[-1] == "efficiency"
    assert one.split() == ["1", "32", "4.0000", *4 * ["0.0000"], "4.0000", "8", "100.0%"]
    assert many.split() == ["2", "64", "4.0000", "4.0000", *3 * ["0.0000"], "8.0000", "8", "50.0%"]


def test_a_rehearsal_tells_what_two_ranks_would_exchange() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    with rehearsal() as seen:
        assert world_size() == 2
        assert not is_running()
        rows: Tensor = gather_with_grad(x)
        rows.square().sum().backward()
        assert gather(x[:, 0]).shape == (6,)
        assert mean_over_ranks(x).equal(x)
        assert largest_of_ranks(5, torch.device("cpu")) == 5
    assert world_size() == 1
    assert rows.equal(torch.cat([x, x]))
    assert x.grad is not None
    assert x.grad.equal(4 * x)  # the sum over what both did with a rank's rows
    size, own = ("all_gather", 8), ("all_gather", 96)
    assert seen == [size, own, ("all_reduce_rows", 96), size, ("all_gather", 24), ("all_reduce", 96), ("all_reduce", 8)]
    assert gather(x) is not None
    assert len(seen) == 7
