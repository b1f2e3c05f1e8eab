"""Refreshes that take turns: when each weight's comes, and that it depends on nothing but its place."""

from __future__ import annotations

import copy

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW
from optim_cases import draw, same
from torch import nn


def weights(count: int) -> list[nn.Parameter]:
    return [nn.Parameter(draw(12, 10, seed=i)) for i in range(count)]


def refreshed(params: list[nn.Parameter], optimizer: GaLoreAdamW, steps: range, zeros: range = range(0)) -> list[set]:
    """The numbers of the weights that are refreshed before each of `steps`; weight 0 has zero gradients in `zeros`."""
    found = []
    for step in steps:
        before = [p.refreshes for p in optimizer.projections()]
        for i, param in enumerate(params):
            param.grad = draw(*param.shape, seed=100 + step) * (0.0 if i == 0 and step in zeros else 1.0)
        optimizer.step()
        after = [p.refreshes for p in optimizer.projections()]
        found.append({i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new})
    return found


@pytest.mark.parametrize(("count", "gap"), [(1, 3), (3, 3), (4, 10), (7, 3), (5, 5), (3, 1)])
def test_each_has_its_turn_once_a_period(count: int, gap: int) -> None:
    params = weights(count)
    optimizer = GaLoreAdamW(params, rank=2, update_proj_gap=gap, stagger=True)
    turns = refreshed(params, optimizer, range(3 * gap + 1))
    assert turns[0] == set(range(count))  # nobody has a subspace before
    for period in range(3):
        first = turns[1 + period * gap : 1 + (period + 1) * gap]
        assert sorted(i for turn in first for i in turn) == list(range(count))
        assert max(map(len, first)) == -(-count // gap)  # spread as evenly as can be
        assert first == turns[1 : 1 + gap]


def test_without_it_all_come_at_once() -> None:
    params = weights(4)
    optimizer = GaLoreAdamW(params, rank=2, update_proj_gap=3)
    assert [len(turn) for turn in refreshed(params, optimizer, range(7))] == [4, 0, 0, 4, 0, 0, 4]


def test_turns_go_on_after_a_resume() -> None:
    params = weights(4)
    optimizer = GaLoreAdamW(params, rank=2, update_proj_gap=6, stagger=True)
    refreshed(params, optimizer, range(8))
    twins = copy.deepcopy(params)
    other = GaLoreAdamW(twins, rank=2, update_proj_gap=6, stagger=True)
    other.load_state_dict(optimizer.state_dict())
    assert refreshed(params, optimizer, range(8, 20)) == refreshed(twins, other, range(8, 20))
    assert same(optimizer.state_dict(), other.state_dict())


def test_plain_weights_have_no_turn() -> None:
    params = [*weights(2), nn.Parameter(torch.ones(5)), *weights(2)]
    optimizer = GaLoreAdamW(params, rank=2, update_proj_gap=4, stagger=True)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    alone = [param for param in params if param.ndim == 2]
    assert [len(turn) for turn in refreshed(alone, optimizer, range(1, 5))] == [1, 1, 1, 1]


def test_a_weight_that_waits_keeps_its_turn() -> None:
    """Its first subspace comes when its gradient does, all others in its own turn."""
    params = weights(2)
    optimizer = GaLoreAdamW(params, rank=2, update_proj_gap=4, stagger=True)
    turns = refreshed(params, optimizer, range(11), zeros=range(3))
    assert [step for step, turn in enumerate(turns) if 0 in turn] == [3, 6, 10]
    assert [step for step, turn in enumerate(turns) if 1 in turn] == [0, 4, 8]


def test_a_turn_with_a_gradient_of_zeros_passes() -> None:
    params = weights(2)
    optimizer = GaLoreAdamW(params, rank=2, update_proj_gap=4, stagger=True)
    turns = refreshed(params, optimizer, range(8), zeros=range(2, 4))
    assert [step for step, turn in enumerate(turns) if 0 in turn] == [0, 6]


def test_it_may_be_turned_on_on_the_way() -> None:
    params = weights(3)
    optimizer = GaLoreAdamW(params, rank=2, update_proj_gap=3)
    refreshed(params, optimizer, range(4))
    optimizer.param_groups[0]["stagger"] = True
    assert [len(turn) for turn in refreshed(params, optimizer, range(4, 10))] == [1] * 6


@pytest.mark.parametrize(("count", "gap", "turns"), [(8, 8, True), (7, 8, False), (8, 7, False), (20, 40, True)])
def test_by_default_large_groups_with_long_gaps_take_turns(count: int, gap: int, turns: bool) -> None:
    params, twins = weights(count), weights(count)
    found = refreshed(params, GaLoreAdamW(params, rank=2, update_proj_gap=gap), range(2 * gap + 1))
    told = GaLoreAdamW(twins, rank=2, update_proj_gap=gap, stagger=turns)
    assert found == refreshed(twins, told, range(2 * gap + 1))
    assert max(map(len, found[1:])) == (-(-count // gap) if turns else count)


def test_the_weights_that_are_not_projected_do_not_count() -> None:
    params, vectors = weights(7), [nn.Parameter(draw(1, 12)[0]) for _ in range(5)]
    optimizer = GaLoreAdamW([*params, *vectors], rank=2, update_proj_gap=8)
    assert [len(turn) for turn in refreshed(params, optimizer, range(9))] == [7, 0, 0, 0, 0, 0, 0, 0, 7]


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_it_is_true_false_or_auto(value: object) -> None:
    with pytest.raises(ValueError, match='GaLoreAdamW: `stagger` must be True, False or "auto", got'):
        GaLoreAdamW(weights(1), rank=2, stagger=value)  # type: ignore[arg-type]
