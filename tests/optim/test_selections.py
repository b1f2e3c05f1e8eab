"""Selections of lines and of matrices: who is at work when, and what becomes of moments."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import torch
from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.optim import FrugalAdamW
from lowrank_core.optim.parts.selectors import selected
from lowrank_core.optim.parts.subspaces.selection import Lines
from optim_cases import draw, same
from torch import nn


def test_selections_are_fair_and_a_function_of_their_place() -> None:
    """Each of 8 numbers is among 3 of 4000 periods' with its chance, to five standard deviations; so are pairs."""
    single: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    for period in range(4000):
        chosen = sorted(selected(7, period, 8, 3))
        assert len(set(chosen)) == 3 and selected(7, period, 8, 3) == set(chosen)
        single.update(chosen)
        pairs.update((a, b) for a in chosen for b in chosen if a < b)
    for counts, chance, kinds in ((single, 3 / 8, 8), (pairs, 3 / 28, 28)):
        spread = (4000 * chance * (1 - chance)) ** 0.5
        assert len(counts) == kinds and all(abs(n - 4000 * chance) < 5 * spread for n in counts.values())
    assert selected(7, 0, 3, 9) == {0, 1, 2} and selected(7, 0, 3, 0) == set()
    assert len({selected(seed, period, 20, 5) for seed in range(4) for period in range(5)}) == 20


def test_stagger_takes_turns_and_ends_each_period_with_as_many_blocks() -> None:
    weights = [nn.Parameter(torch.zeros(6, 8)) for _ in range(8)]
    optimizer = FrugalAdamW(weights, subspace="block", density=0.5, update_proj_gap=8, stagger=True)
    chosen = []
    for step in range(25):
        for weight in weights:
            weight.grad = draw(6, 8, seed=step)
        optimizer.step()
        chosen.append({i for i, weight in enumerate(weights) if optimizer.state[weight]["proj.rank"]})
    assert [chosen[step] for step in (0, 8, 16, 24)] == [selected(0, period, 8, 4) for period in range(4)]
    assert all(len(before ^ after) <= 1 for before, after in pairwise(chosen))


def test_lines_are_turned_by_what_both_have() -> None:
    old, new = (Lines(Geometry(3, 6, Side.RIGHT, 3), torch.tensor(places)) for places in ([0, 2, 5], [1, 2, 5]))
    moment = draw(3, 3)
    turn = new.turn_from(old)
    assert same(turn.linear(moment), torch.stack([0 * moment[:, 0], moment[:, 1], moment[:, 2]], dim=1))
    assert same(turn.squared(moment), turn.linear(moment)) and float(turn.overlap()) == float(torch.tensor(2 / 3))
