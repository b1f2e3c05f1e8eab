"""What must not show at all: how weights are grouped, listed, named and laid out, and where a run stopped."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lowrank_core.optim import LowRankOptimizer
from optim_cases import CASES, Case, Zoo, draw, every_dtype, every_optimizer, same, snapshot, train
from testing import layouts
from torch import Tensor, nn

SHAPES = ((24, 40), (40, 24), (24, 24), (7,), (6, 4, 3, 3), (33, 20))
Ends = tuple[list[Tensor], list[dict[str, Any]]]


def weights_of(dtype: torch.dtype, shapes: Any = SHAPES) -> list[nn.Parameter]:
    return [nn.Parameter(draw(*shape, seed=number).to(dtype)) for number, shape in enumerate(shapes)]


def set_gradients(weights: list[nn.Parameter], number: int) -> None:
    for place, weight in enumerate(weights):
        weight.grad = draw(*weight.shape, seed=100 * number + place).to(weight.dtype)


def ends(weights: list[nn.Parameter], optimizer: LowRankOptimizer, steps: int = 5) -> Ends:
    for number in range(1, steps + 1):
        set_gradients(weights, number)
        optimizer.step()
    return [weight.detach() for weight in weights], [optimizer.state[weight] for weight in weights]


SPLITS: dict[str, Callable[[list[nn.Parameter]], Any]] = {
    "two groups": lambda w: [{"params": w[:2]}, {"params": w[2:]}],
    "a group for each": lambda w: [{"params": [weight]} for weight in w],
    "named": lambda w: [(f"w{i}", weight) for i, weight in enumerate(w)],
    "a group that names its keys": lambda w: [{"params": w[:3], "lr": 0.02}, {"params": w[3:]}],
}


@every_optimizer
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_groups(case: Case, split: str, dtype: torch.dtype) -> None:
    """Draws are keyed by the position among all groups, so they too are the same."""
    if case.by_group:
        pytest.skip("which matrices are at work is drawn among those of a group")
    whole, parted = weights_of(dtype), weights_of(dtype)
    groups = SPLITS[split](parted)
    if split == "a group that names its keys":
        groups = [{**group, "rank": case.rank} for group in groups]
    one, other = case.make(whole, weight_decay=0.1), case.make(groups, weight_decay=0.1)
    assert same(ends(whole, one), ends(parted, other))


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_group_that_comes_later_was_there_from_the_start(case: Case, dtype: torch.dtype) -> None:
    early, late = weights_of(dtype), weights_of(dtype)
    one, other = case.make([{"params": early[:3]}, {"params": early[3:]}]), case.make(late[:3])
    other.add_param_group({"params": late[3:]})
    assert same(ends(early, one), ends(late, other))


@every_optimizer
def test_lists(case: Case) -> None:
    """More weights than are searched together, each against itself alone: in one list, or one step for each."""
    shapes = [(12, 10), (10, 12), (9, 9)] * 6
    together, alone = weights_of(torch.float32, shapes), weights_of(torch.float32, shapes)
    one, other = case.make(together), case.make(alone)
    for number in range(1, 5):
        set_gradients(together, number)
        one.step()
        for weight in alone:
            set_gradients(alone, number)
            for rest in alone:
                rest.grad = rest.grad if rest is weight else None
            other.step()
    assert same([w.detach() for w in together], [w.detach() for w in alone])
    assert same(one.state_dict(), other.state_dict())


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_run_that_stops_after_every_step(case: Case, dtype: torch.dtype) -> None:
    """At each place of a period, and before the first step."""
    model, stopped = Zoo(dtype), Zoo(dtype)
    optimizer, other = case.make(model.parameters()), case.make(stopped.parameters())
    for number in range(6):
        file = io.BytesIO()
        torch.save([stopped.state_dict(), other.state_dict()], file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        stopped = Zoo(dtype)
        stopped.load_state_dict(weights)
        other = case.make(stopped.parameters())
        other.load_state_dict(state)
        assert train(model, optimizer, [number]) == train(stopped, other, [number])
        assert same(snapshot(model, optimizer), snapshot(stopped, other))


def elsewhere(x: Tensor) -> Tensor:
    """The same numbers at an address that no vector is aligned to."""
    return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)


@every_optimizer
@every_dtype
def test_memory_that_has_moved(case: Case, dtype: torch.dtype) -> None:
    """Weights, gradients and states at other addresses, unaligned ones."""
    still, moved = weights_of(dtype), weights_of(dtype)
    one, other = case.make(still), case.make(moved)
    for number in range(1, 6):
        for weight in moved:
            weight.data = elsewhere(weight.detach())
            state = other.state.get(weight, {})
            state.update({key: elsewhere(value) for key, value in state.items() if isinstance(value, Tensor)})
        for weights, optimizer in ((still, one), (moved, other)):
            set_gradients(weights, number)
            if weights is moved:
                for weight in moved:
                    weight.grad = elsewhere(weight.grad)
            optimizer.step()
    assert same([w.detach() for w in still], [w.detach() for w in moved])
    assert same(one.state_dict()["state"], other.state_dict()["state"])


@pytest.mark.parametrize("case", [c for c in CASES if c.keys.get("proj_type") != "full"], ids=lambda c: c.name)
@pytest.mark.parametrize("layout", ["transposed", "embedded", "strided"])
def test_layouts_between_searches(case: Case, layout: str) -> None:
    """The compiled step reads any strides in one order. (A search's bits may follow the layout: LAPACK's do.)"""
    lay = layouts.LAYOUTS[layout]
    plain, laid = weights_of(torch.float32, SHAPES[:3]), weights_of(torch.float32, SHAPES[:3])
    one, other = (case.make(weights, update_proj_gap=100) for weights in (plain, laid))
    for number in range(1, 6):
        for weights, optimizer in ((plain, one), (laid, other)):
            set_gradients(weights, number)
            if weights is laid and number > 1:
                for weight in laid:
                    weight.data, weight.grad = lay(weight.detach()), lay(weight.grad)
            optimizer.step()
    assert same([w.detach().contiguous() for w in plain], [w.detach().contiguous() for w in laid])
    assert same(one.state_dict()["state"], other.state_dict()["state"])


@every_optimizer
def test_a_rate_is_a_number_or_a_tensor(case: Case) -> None:
    runs = []
    for lr in (0.125, torch.tensor(0.125), torch.tensor(0.125, dtype=torch.float64)):
        weights = weights_of(torch.float32)
        runs.append(ends(weights, case.make(weights, lr=lr, weight_decay=0.1)))
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])


@every_optimizer
def test_what_is_read_between_steps(case: Case) -> None:
    """Plans, sizes, shares and copies of the state are looked at, and change nothing."""
    quiet, watched = weights_of(torch.float32), weights_of(torch.float32)
    one, other = case.make(quiet), case.make(watched)
    for number in range(1, 6):
        for weights, optimizer in ((quiet, one), (watched, other)):
            set_gradients(weights, number)
            optimizer.step()
        other.plan(), other.state_bytes(), other.planned_state_bytes(), other.projections(), repr(other)
        copy.deepcopy(other), other.state_dict(), other.skipped_steps
    assert same(one.state_dict(), other.state_dict())
    assert same([w.detach() for w in quiet], [w.detach() for w in watched])
