"""Which rank is given up, and the number of seconds for that."""

import os
import socket

import pytest

from fusionkit.errors import ConfigError
from fusionkit.training.processes.life import RankWatch, Sign, timeout_of


def watch(ranks: int) -> RankWatch:
    found = RankWatch(10.0)
    found._count = ranks
    return found


def sign(place: int, beat: int, moves: int | None = None) -> Sign:
    return Sign(place, place if moves is None else moves, beat, os.getpid(), socket.gethostname())


def test_a_rank_that_shows_nothing_any_more_is_given_up():
    two = watch(2)
    for now in range(8):
        two.note({0: sign(5, now), 1: sign(5, min(now, 1))}, float(now))
        assert two.given_up(now + 0.0) == []
    two.note({0: sign(5, 8), 1: sign(5, 1)}, 8.0)
    assert two.given_up(8.0) == [1]


def test_of_ranks_that_do_not_move_the_one_behind_is_given_up():
    three = watch(3)
    for now in range(12):
        three.note({0: sign(7, now), 1: sign(6, now), 2: sign(7, now)}, float(now))
        assert three.given_up(float(now)) == ([1] if now >= 7 else [])


def test_ranks_that_are_at_one_place_may_compute_and_one_behind_may_validate():
    two = watch(2)
    for now in range(30):
        two.note({0: sign(7, now), 1: sign(7, now)}, float(now))
        assert two.given_up(float(now)) == []
    for now in range(30, 60):
        two.note({0: sign(8, now), 1: sign(7, now, moves=7 + now)}, float(now))
        assert two.given_up(float(now)) == []


def test_at_one_place_the_one_of_fewer_batches_is_not_behind():
    two = watch(2)
    for now in range(12):
        two.note({0: sign(7, now, moves=9 + now), 1: sign(7, now, moves=8)}, float(now))
        assert two.given_up(float(now)) == []


def test_the_time_counts_from_the_moment_when_others_wait():
    two = watch(2)
    for now in range(40):
        two.note({0: sign(7 if now < 20 else 8, now), 1: sign(7, now)}, float(now))
        assert two.given_up(float(now)) == ([1] if now >= 27 else [])
    two.note({0: sign(8, 40), 1: sign(8, 40)}, 40.0)
    assert two.given_up(40.0) == []


def test_of_several_behind_the_last_is_given_up():
    three = watch(3)
    for now in range(12):
        three.note({0: sign(7, now), 1: sign(6, now), 2: sign(5, now)}, float(now))
        assert three.given_up(float(now)) == ([2] if now >= 7 else [])


def test_a_run_that_was_stopped_as_a_whole_counts_anew():
    two = watch(2)
    two.note({0: sign(8, 1), 1: sign(7, 1)}, 1.0)
    two.begin_anew(100.0)
    assert [two.given_up(now) for now in (100.0, 102.9)] == [[], []]
    two.note({0: sign(8, 2), 1: sign(7, 2)}, 103.0)
    assert [two.given_up(now) for now in (103.0, 106.9)] == [[], []]


def test_a_store_that_never_answers_gives_nobody_up():
    two = watch(2)
    two.begin_anew(1.0)
    assert two.given_up(1e6) == []


def test_where_the_store_does_not_answer_it_is_its_process():
    two = watch(2)
    two.note({0: sign(7, 1), 1: sign(7, 1)}, 1.0)
    assert [two.given_up(now) for now in (3.0, 7.9, 8.0)] == [[], [], [0]]


def test_before_all_have_shown_themselves_nobody_is_given_up():
    two = watch(2)
    two.note({0: sign(7, 1)}, 1.0)
    two.note({0: sign(7, 1)}, 20.0)
    assert two.given_up(20.0) == []


@pytest.mark.parametrize("value", [0, -1, True, "soon", float("inf")])
def test_a_timeout_is_a_number_of_seconds(value):
    with pytest.raises(ConfigError, match=r"trainer\.timeout is .*; give the seconds, from 1 up"):
        timeout_of(value)


def test_the_timeout_of_a_configuration_of_before():
    assert (timeout_of(None), timeout_of(15)) == (1800.0, 15.0)
