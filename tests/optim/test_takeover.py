"""Changing over in the middle of a run: what fits is carried to the bit, the rest is said."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from lowrank_core.optim import ApolloAdamW, GaLoreAdamW, param_groups
from optim_cases import Zoo, draw, every_optimizer, plain_on_purpose, same, snapshot, train
from torch import Tensor, nn


def adamw(model: nn.Module, named: bool = True) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.named_parameters() if named else model.parameters(), lr=0.02, weight_decay=0.1)


@plain_on_purpose
@pytest.mark.parametrize("form", ["the optimizer", "names", "positions"])
def test_plain_weights_go_on_as_under_adamw(form: str) -> None:
    """The next steps are those of AdamW to the bit."""
    model = Zoo()
    theirs = adamw(model, named=form == "names")
    train(model, theirs, range(4))
    twin = copy.deepcopy(model)
    params = model if form == "the optimizer" else twin
    ours = GaLoreAdamW(params.named_parameters(), rank=10_000, lr=0.02, weight_decay=0.1)
    rows = ours.from_state(theirs if form == "the optimizer" else theirs.state_dict())
    assert {row.name for row in rows if not row.carried} == {"unused", "empty"} - (
        {"empty"} if model.empty in theirs.state else set()
    )
    assert all(row.reason == "moments and step" for row in rows if row.carried)
    other = copy.deepcopy(model)
    reference = adamw(other)
    reference.load_state_dict(adamw_named(theirs.state_dict(), other))
    train(params, ours, range(4, 8))
    train(other, reference, range(4, 8))
    assert same(dict(params.state_dict()), dict(other.state_dict()))


def adamw_named(saved: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """A state dict with the names that a named twin asks for."""
    names = [name for name, _ in model.named_parameters()]
    return {**saved, "param_groups": [{**saved["param_groups"][0], "param_names": names}]}


def test_a_state_of_adamw_is_no_state_to_load_and_where_it_goes_is_said() -> None:
    """Whatever its groups are."""
    for groups in (1, 2):
        model = Zoo()
        params = list(model.parameters())
        theirs = torch.optim.AdamW(
            [{"params": some} for some in ([params] if groups == 1 else [params[:3], params[3:]])]
        )
        ours = GaLoreAdamW(model.named_parameters(), rank=4)
        with pytest.raises(ValueError, match=r"must come from GaLoreAdamW, got groups without .* by `from_state`"):
            ours.load_state_dict(theirs.state_dict())


def test_names_count_where_the_order_is_another() -> None:
    model = Zoo()
    theirs = adamw(model)
    train(model, theirs, range(3))
    ours = GaLoreAdamW(param_groups(model, ["up"], rank=4, verbose=False))
    rows = {row.name: row for row in ours.from_state(theirs.state_dict())}
    assert rows["down.weight"].carried and not rows["up.weight"].carried
    assert rows["up.weight"].reason == "its moments (20, 12) are none of a subspace of rank 4 (20, 4): it starts anew"
    for name, p in model.named_parameters():
        if rows[name].carried:
            assert same(ours.state[p]["exp_avg"], theirs.state[p]["exp_avg"])
            assert float(ours.state[p]["step"]) == 3
    assert model.up.weight not in ours.state
    train(model, ours, range(3, 8))
    assert float(ours.state[model.up.weight]["step"]) == 5


class Projector:
    """What galore_torch keeps in a state: a basis with rows on the right side."""

    def __init__(self, basis: Tensor) -> None:
        self.ortho_matrix = basis


def galore_state(weight: Tensor, rank: int, step: int) -> dict[str, Any]:
    m, n = weight.shape
    basis = torch.linalg.qr(draw(min(m, n), rank, seed=9)).Q
    low = (m, rank) if m >= n else (rank, n)
    moments = {"exp_avg": draw(*low, seed=1), "exp_avg_sq": draw(*low, seed=2).square()}
    return {"step": step, "projector": Projector(basis.mT if m >= n else basis), **moments}


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (12, 12)])
@pytest.mark.parametrize("moment_dtype", ["float32", "bfloat16"])
def test_projected_weights_go_on_as_under_galore_torch(shape: tuple[int, int], moment_dtype: str) -> None:
    """Basis and moments are those, and the next search comes when it would have come."""
    weight = nn.Parameter(draw(*shape))
    saved = {"state": {0: galore_state(weight, 4, 7)}, "param_groups": [{"params": [0], "rank": 4}]}
    ours = GaLoreAdamW([weight], rank=4, update_proj_gap=5, lr=0.02, moment_dtype=moment_dtype)
    assert ours.from_state(saved)[0][1:] == (True, "moments, basis and step")
    state, given = ours.state[weight], saved["state"][0]
    right = shape[0] >= shape[1]
    basis = given["projector"].ortho_matrix
    assert same(state["proj.basis"], (basis.mT if right else basis).contiguous())
    before, moment = weight.detach().clone(), state["exp_avg"].float().clone()
    assert bool(((moment - given["exp_avg"]).abs() <= 2.0**-7 * given["exp_avg"].abs()).all())
    weight.grad = draw(*shape, seed=5)
    ours.step()
    low = weight.grad @ state["proj.basis"] if right else state["proj.basis"].mT @ weight.grad
    m = 0.9 * moment + 0.1 * low
    v = 0.999 * given["exp_avg_sq"] + 0.001 * low.square()
    direction = (m / (1 - 0.9**8)) / ((v / (1 - 0.999**8)).sqrt() + 1e-8)
    lifted = direction @ state["proj.basis"].mT if right else state["proj.basis"] @ direction
    bound = 1e-5 if moment_dtype == "float32" else 1e-2
    assert bool(((before - weight) - 0.02 * 0.25 * lifted).abs().max() <= bound * lifted.abs().max())
    refreshes = []
    for step in range(8):
        weight.grad = draw(*shape, seed=6 + step)
        ours.step()
        refreshes.append(state["proj.refreshes"])
    assert refreshes == [1, 1, 2, 2, 2, 2, 2, 3]  # before steps 10 and 15, counted from the start of the run


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (12, 12)])
@pytest.mark.parametrize("form", ["the optimizer", "its state dict"])
def test_a_run_of_galore_torch_goes_on(shape: tuple[int, int], form: str) -> None:
    """The package's own optimizer, which goes on beside ours: same weights up to its search, when we search too."""
    package = pytest.importorskip("galore_torch", reason="needs the package galore_torch, to change over from")
    shared, gap = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-300, "weight_decay": 0.0}, 5

    def make(weight: nn.Parameter) -> torch.optim.Optimizer:
        group = {"params": [weight], "rank": 4, "update_proj_gap": gap, "scale": 0.4, "proj_type": "std"}
        made: torch.optim.Optimizer = package.GaLoreAdamW([group], no_deprecation_warning=True, **shared)
        return made

    weight = nn.Parameter(draw(*shape).double())
    before = make(weight)
    for step in range(7):
        weight.grad = draw(*shape, seed=step).double()
        before.step()
    twin = nn.Parameter(weight.detach().clone())
    theirs = make(twin)
    theirs.load_state_dict(copy.deepcopy(before.state_dict()))
    ours = GaLoreAdamW([weight], rank=4, update_proj_gap=gap, scale=0.4, **shared)
    (row,) = ours.from_state(before if form == "the optimizer" else before.state_dict())
    assert row[1:] == (True, "moments, basis and step")
    path, refreshes = 0.0, []
    for step in range(7, 11):
        old, weight.grad, twin.grad = twin.detach().clone(), *(draw(*shape, seed=step).double() for _ in range(2))
        ours.step()
        theirs.step()
        refreshes.append(ours.state[weight]["proj.refreshes"])
        path += float((twin.detach() - old).norm())
        if step < 10:
            assert float((weight - twin).detach().norm()) <= 2.0**-40 * path
    assert refreshes == [1, 1, 1, 2]


@pytest.mark.parametrize(("step", "refreshes"), [(4, [1, 2]), (5, [2, 2]), (6, [1, 1]), (10, [2, 2])])
def test_a_search_comes_when_it_would_have_come(step: int, refreshes: list[int]) -> None:
    weight = nn.Parameter(draw(20, 12))
    ours = GaLoreAdamW([weight], rank=4, update_proj_gap=5)
    ours.from_state({"state": {0: galore_state(weight, 4, step)}, "param_groups": [{"params": [0]}]})
    found = []
    for number in range(2):
        weight.grad = draw(20, 12, seed=number)
        ours.step()
        found.append(ours.state[weight]["proj.refreshes"])
    assert found == refreshes


@pytest.mark.parametrize("make", [lambda w: GaLoreAdamW(w, rank=4, rule="lion"), lambda w: ApolloAdamW(w, rank=4)])
def test_other_moments_and_other_projections_start_anew(make: Any) -> None:
    weight = nn.Parameter(draw(20, 12))
    ours = make([weight])
    (row,) = ours.from_state({"state": {0: galore_state(weight, 4, 7)}, "param_groups": [{"params": [0]}]})
    assert not row.carried and "starts anew" in row.reason and not ours.state


def test_what_was_held_before_is_gone() -> None:
    weight = nn.Parameter(draw(20, 12))
    ours = GaLoreAdamW([weight], rank=4)
    weight.grad = draw(20, 12)
    ours.step()
    assert not ours.from_state({"state": {}, "param_groups": [{"params": [0]}]})[0].carried
    assert not ours.state


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda s: s.pop("projector"), "its moments came without the basis that they are in"),
        (lambda s: s["projector"].ortho_matrix.mul_(2), "its moments came without the basis that they are in"),
        (lambda s: s.update(projector=Projector(draw(4, 9))), "its moments came without the basis that they are in"),
        (lambda s: s.update(exp_avg=draw(20, 5)), r"its moments \(20, 5\) are none of a subspace of rank 4 \(20, 4\)"),
        (lambda s: s.pop("exp_avg_sq"), "it has no exp_avg and exp_avg_sq but exp_avg, projector, step"),
        (lambda s: s.clear(), "it has no state there"),
    ],
)
def test_what_does_not_fit_starts_anew_and_is_said(spoil: Any, reason: str) -> None:
    weight = nn.Parameter(draw(20, 12))
    theirs = torch.optim.SGD([weight])
    theirs.state[weight] = galore_state(weight, 4, 7)
    spoil(theirs.state[weight])
    ours = GaLoreAdamW([weight], rank=4)
    (row,) = ours.from_state(theirs)
    assert not row.carried and row.name == "parameter 0"
    assert re.match(reason + ".*: it starts anew", row.reason), row.reason
    assert weight not in ours.state


@every_optimizer
def test_every_method_takes_over_what_it_can_and_trains_on(case: Any) -> None:
    model = Zoo()
    theirs = adamw(model)
    train(model, theirs, range(3))
    ours = case.make(param_groups(model, ["up", "down", "square"], rank=case.rank, verbose=False))
    rows = {row.name: row for row in ours.from_state(theirs)}
    assert rows["conv.weight"].carried and rows["up.bias"].carried and not rows["up.weight"].carried
    losses = train(model, ours, range(3, 30))
    assert losses[-1] < losses[0]
    twin = copy.deepcopy(model)
    other = case.make(param_groups(twin, ["up", "down", "square"], rank=case.rank, verbose=False))
    other.load_state_dict(ours.state_dict())  # an ordinary state from here on
    assert same(snapshot(twin, other), snapshot(model, ours))


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({}, "`saved` must be an optimizer or what its state_dict"),
        (3, "`saved` must be an optimizer or what its state_dict"),
        (
            {"state": {}, "param_groups": [{"params": [0]}]},
            r"got groups of \[1\] without known names for groups of \[2\]",
        ),
        (
            {"state": {}, "param_groups": [{"params": [0]}, {"params": [1]}]},
            r"got groups of \[1, 1\] without known names",
        ),
        (
            {"state": {0: {"exp_avg": torch.ones(3, 3)}}, "param_groups": [{"params": [0, 1]}]},
            r"got groups of \[2\] without known names",
        ),
    ],
)
def test_what_cannot_be_told_is_refused_and_changes_nothing(saved: Any, message: str) -> None:
    first, second = nn.Parameter(draw(8, 6)), nn.Parameter(draw(6))
    ours = GaLoreAdamW([first, second], rank=2)
    first.grad, second.grad = draw(8, 6), draw(6)
    ours.step()
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match=f"from_state: .*{message}"):
        ours.from_state(saved)
    assert same(ours.state_dict(), before)
