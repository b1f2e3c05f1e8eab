"""Equal tuning: what is tried, in which order, and where it ends."""

from __future__ import annotations

import math

import pytest
from lowrank_core.cli.study.ladders import Ladder, best, on_the_edge, walk

RATE = Ladder("lr", tuple(2.0**i for i in range(-8, 9)), (0.25, 0.5, 1.0, 2.0, 4.0))
DECAY = Ladder("decay", (0.0, 0.1, 1.0), (0.1,))
START = {"lr": 1.0, "decay": 0.0}


def bowl(at: float):
    """A loss with one valley, where lr is `at` and there is no decay."""
    return lambda point: (math.log2(point["lr"]) - math.log2(at)) ** 2 + point["decay"]


def test_a_rate_beyond_the_first_ones_is_followed_until_it_is_interior():
    tried = walk(START, (RATE, DECAY), bowl(16.0))
    assert [one.point["lr"] for one in tried[:8]] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert best(tried).point == {"lr": 16.0, "decay": 0.0}
    assert not on_the_edge((RATE, DECAY), tried)


def test_a_rate_below_the_first_ones_is_followed_too():
    tried = walk(START, (RATE,), bowl(1 / 16))
    assert [one.point["lr"] for one in tried[5:]] == [0.125, 0.0625, 0.03125] and best(tried).point["lr"] == 0.0625


def test_each_option_starts_from_the_best_of_those_before():
    tried = walk(START, (RATE, DECAY), bowl(2.0))
    assert tried[5].point == {"lr": 2.0, "decay": 0.1}, "all first rates are there, so the decay is next"
    assert len(tried) == 6, "every neighbour of the best has been tried"


def test_no_more_than_the_trials_and_none_twice():
    tried = walk(START, (RATE, DECAY), bowl(200.0), trials=9)
    assert len(tried) == 9 == len({(one.point["lr"], one.point["decay"]) for one in tried})


def test_a_best_at_the_edge_of_what_was_tried_is_told():
    tried = walk(START, (RATE, DECAY), bowl(200.0), trials=6)
    assert best(tried).point["lr"] == 8.0
    assert on_the_edge((RATE, DECAY), tried) == ["lr", "decay"]


@pytest.mark.parametrize("values", [(0.5, 1.0), (0.5, 1.0, 2.0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_end_of_the_ladder_is_no_edge(sign, values):
    short = Ladder("lr", values, values)
    assert on_the_edge((short,), walk({"lr": 1.0}, (short,), lambda point: sign * point["lr"])) == []


def test_a_diverged_run_is_never_the_best():
    def diverges_above_one(point):
        return math.inf if point["lr"] > 1 else -point["lr"]

    tried = walk(START, (RATE,), diverges_above_one)
    assert best(tried).point["lr"] == 1.0
    assert all(one.point["lr"] <= 4.0 for one in tried), "nothing beyond what diverged is looked for"


def test_what_the_loss_raises_ends_the_walk():
    class NotThere(Exception):
        pass

    def loss(point):
        if point["lr"] == 1.0:
            raise NotThere
        return point["lr"]

    with pytest.raises(NotThere):
        walk(START, (RATE,), loss)
